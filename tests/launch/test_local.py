"""Devices of a machine split between workers, and the workers that have them."""

import os
import subprocess
import sys

import pytest
from launch_cases import Ended, Stub, chain, walker

from dpo_jax.errors import ConfigError
from dpo_jax.launch import devices, environment, local, processes
from dpo_jax.launch.devices import Share
from dpo_jax.launch.job import Here, Job

LINUX = sys.platform == "linux"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Builds a machine of so many GPUs and TPU chips; gives its variables."""

    def build(gpus=0, chips=0):
        told = "".join(f"GPU {i}: H100 (UUID: GPU-{i})\\n" for i in range(gpus))
        shim = tmp_path / "nvidia-smi"
        shim.write_text(f"#!/bin/sh\nprintf '{told}'\n")
        shim.chmod(0o755)
        found = {"/dev/vfio/[0-9]*": [f"/dev/vfio/{i}" for i in range(chips)]}
        monkeypatch.setattr(devices.glob, "glob", lambda p: found.get(p, []))
        path = f"{tmp_path}:/usr/bin:/bin"
        monkeypatch.setenv("PATH", path)
        return {"PATH": path}

    return build


def test_gpus_are_split_in_neighbours(machine):
    shares = devices.shares(machine(gpus=4), 2, 0)
    assert [s.variables for s in shares] == [
        {"CUDA_VISIBLE_DEVICES": "0,1"},
        {"CUDA_VISIBLE_DEVICES": "2,3"},
    ]
    few = {**machine(gpus=4), "CUDA_VISIBLE_DEVICES": "5,7"}
    shares = devices.shares(few, 2, 0)
    assert [s.variables["CUDA_VISIBLE_DEVICES"] for s in shares] == ["5", "7"]
    with pytest.raises(ConfigError, match="=3 does not divide the 4 GPUs.*use 1, 2, 4"):
        devices.shares(machine(gpus=4), 3, 0)


def test_tpu_chips_are_split_into_slices_of_their_own(machine):
    """The variables of libtpu: which chips, their grid, and one process alone."""
    shares = devices.shares(machine(chips=4), 2, 0)
    first, second = (s.variables for s in shares)
    assert first["TPU_VISIBLE_CHIPS"] == "0,1" and second["TPU_VISIBLE_CHIPS"] == "2,3"
    for variables in (first, second):
        assert variables["TPU_CHIPS_PER_PROCESS_BOUNDS"] == "1,2,1"
        assert variables["TPU_PROCESS_BOUNDS"] == "1,1,1"
        assert variables["TPU_WORKER_HOSTNAMES"] == "localhost"
    with pytest.raises(ConfigError, match="=3 does not divide the 8 TPU chips"):
        devices.shares(machine(chips=8), 3, 0)


def test_cpus_are_split_where_that_is_asked_for(machine, monkeypatch):
    variables = {**machine(gpus=4), "JAX_PLATFORMS": "cpu"}
    assert devices.shares(variables, 3, 0) == [Share()] * 3
    assert devices.shares(machine(), 2, 0) == [Share()] * 2
    monkeypatch.setattr(devices, "own_cpus", lambda: [0, 2, 5, 7, 8])
    assert [s.cpus for s in devices.shares(variables, 2, 2)] == [(0, 2), (5, 7)]
    with pytest.raises(ConfigError, match="cpus=2 for each of 3 workers.* 5 CPUs"):
        devices.shares(variables, 3, 2)


def test_one_worker_has_all(machine):
    assert devices.shares(machine(gpus=4, chips=4), 1, 0) == [Share()]


@pytest.mark.skipif(not LINUX, reason="the system binds no process to CPUs")
def test_what_is_started_runs_on_its_cpus_alone():
    before = os.sched_getaffinity(0)
    code = "import os; print(*sorted(os.sched_getaffinity(0)))"
    with local.on_cpus([min(before)]):
        line = [sys.executable, "-c", code]
        told = subprocess.run(line, capture_output=True, text=True).stdout
    assert told.split() == [str(min(before))] and os.sched_getaffinity(0) == before


def test_what_engines_say_of_places_is_not_for_trials():
    """A trial of one process is not told that it were one of many."""
    kept = {"PATH": "/bin", "HOME": "/root", "CUDA_VISIBLE_DEVICES": "1", "LC_ALL": "C",
            "DPO_JAX_COMPILE_CACHE": "/cache", "https_proxy": "http://proxy:1",
            "HF_TOKEN": "t", "XLA_FLAGS": "--a", "TPU_WORKER_ID": "0"}  # fmt: skip
    dropped = {"SLURM_JOB_ID": "7", "SLURM_LOCALID": "1", "OMPI_COMM_WORLD_SIZE": "4",
               "PMI_RANK": "2", "KUBERNETES_SERVICE_HOST": "10.0.0.1",
               "JOB_COMPLETION_INDEX": "3", "RAY_JOB_ID": "5", "MY_SECRET": "s",
               "DPO_JAX_DISTRIBUTED": "host:1,2,1"}  # fmt: skip
    assert environment.of_trials({**kept, **dropped}) == kept
    assert environment.of_trials(dropped, ["MY_SECRET"]) == {"MY_SECRET": "s"}
    assert environment.of_trials(dropped, ["DPO_JAX_DISTRIBUTED"]) == {}


def test_several_workers_have_their_devices_and_this_process_walks_last(
    machine, monkeypatch, tmp_path
):
    """What the others left is done on the devices of the first."""
    planned = chain(tmp_path)
    job = Job("s", "s.py", str(tmp_path), ("--failures=2",), planned, machine(gpus=2))
    started = []

    def start(line, log, variables):
        started.append((line, variables["CUDA_VISIBLE_DEVICES"]))
        return Ended(0)

    monkeypatch.setattr(processes, "start", start)
    stub, told = Stub(planned), []
    here = Here(processes.Stop(), told.append, walker(tmp_path, stub, told))
    ended = local.launch(job._replace(workers=2), local.Options(), here)
    line = ["sweep", "s.py", f"--out={tmp_path}", "--worker", "--failures=2"]
    assert started == [(line, "0"), (line, "1")]
    assert ended.code == 0 and stub.environments[0]["CUDA_VISIBLE_DEVICES"] == "0"
