"""Slices of TPU VMs are kept there: a stand-in for gcloud goes through their states."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import metadata
import pytest
from launch_cases import chain, shim

from dpo_jax.cli import sweep
from dpo_jax.errors import ConfigError
from dpo_jax.launch import processes, tpu_vm, trial
from dpo_jax.launch.job import AGAIN, Here, Job

LIMIT = 600  # seconds
STAND_IN = Path(__file__).with_name("stand_in_gcloud.py")
OPTIONS = tpu_vm.Options(
    type="v4-32",
    runtime="tpu-ubuntu2204-base",
    zone="us-central2-b",
    package="git+https://example.org/dpo_jax",
)
UP = ["CREATING", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
TAKEN = [*UP, "ACTIVE", "SUSPENDING", "SUSPENDING", "SUSPENDED"]


@pytest.fixture
def job(tmp_path):
    out = tmp_path / "out"
    return Job("beta", f"{tmp_path}/s.py:0.1", str(out), (), chain(out), {})


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """Starts the stand-in: (lives, …) -> what reads its state."""
    (tmp_path / "s.py").write_text("")
    monkeypatch.setattr(tpu_vm, "POLL", 0)
    monkeypatch.setattr(tpu_vm, "REST", 0.1)
    path = tmp_path / "state.json"

    def start(*lives, processes=False, faults=None, nodes=(), resources=None):
        state = {"resources": resources or {}, "hosts": {}, "calls": [],
                 "lives": list(lives), "faults": faults or {}, "nodes": list(nodes),
                 "processes": processes}  # fmt: skip
        path.write_text(json.dumps(state))
        line = f'exec {sys.executable} {STAND_IN} $HERE "$@"'
        shim(tmp_path, monkeypatch, "gcloud", line)
        return lambda: json.loads(path.read_text())

    return start


class Rounds(processes.Stop):
    """Ends a launch after so many looks; the worker of a late slice ends by itself."""

    def __init__(self, job, looks, ends_at=10**6):
        super().__init__()
        self.job, self.looks, self.ends_at, self.seen = job, looks, ends_at, set()

    def tell(self, line):
        name, _, state = line.partition(": ")
        if state == "ACTIVE":
            self.seen.add(name)
            if len(self.seen) >= self.ends_at:
                path = Path(tpu_vm.marker(self.job, name))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("0\n")

    def __bool__(self):
        self.looks -= 1
        return self.looks < 0


def launch(job, looks=200, ends_at=10**6, options=OPTIONS):
    stop = Rounds(job, looks, ends_at)
    told = []

    def tell(line):
        told.append(line)
        stop.tell(line)

    return tpu_vm.launch(job, options, Here(stop, tell, None)), told


def creates(state):
    return [c for c in state["calls"] if c.startswith("create")]


def test_a_slice_that_is_taken_away_is_deleted_and_when_it_is_gone_made_anew(
    job, cloud
):
    """Under a name of its own; at the end nothing is left."""
    state = cloud(TAKEN, UP)
    ended, told = launch(job, ends_at=2)
    first, second = (c.split()[1] for c in creates(state()))
    assert first != second and first.rpartition("-")[0] == second.rpartition("-")[0]
    assert state()["calls"] == [
        f"create {first}", f"delete {first}", f"create {second}", f"delete {second}"
    ]  # fmt: skip
    assert state()["resources"] == {}
    states = [line.split(": ")[1] for line in told if line.startswith(first)]
    assert states == [*UP, "SUSPENDING", "SUSPENDED", "DELETING"]
    assert f"{second}: its worker ended with 0" in told
    assert ended.code == 75 and ended.left == ["base", "one", "two", "last"]


def test_one_that_failed_is_made_anew(job, cloud):
    state = cloud(["FAILED"], ["ACCEPTED", "ACTIVE"])
    launch(job, ends_at=1)
    assert len(creates(state())) == 2 and state()["resources"] == {}


def test_what_is_not_known_is_waited_for(job, cloud):
    """A state of tomorrow, and a gcloud that fails, make no second slice."""
    faults = {"queued-resources list": ["", "", "", "503", "", "503"],
              "tpu-vm list": ["", "", "401"]}  # fmt: skip
    state = cloud(["CREATING", "RESUMING", "RESUMING", "ACTIVE"], faults=faults)
    launch(job, ends_at=1)
    assert len(creates(state())) == 1 and state()["resources"] == {}


def test_an_answer_that_is_lost_makes_no_second_slice(job, cloud):
    faults = {"queued-resources create": ["quota", "lost", "lost"]}
    state = cloud(UP, faults=faults)
    launch(job, ends_at=1)
    names = {c.split()[1] for c in creates(state())}
    assert len(names) == 1 and len(creates(state())) >= 2
    assert state()["resources"] == {}


def test_a_node_that_is_dead_is_lost_whatever_the_queue_says(job, cloud):
    state = cloud(UP)
    stop = Rounds(job, 60)
    told = []

    def tell(line):
        told.append(line)
        name, _, word = line.partition(": ")
        if word == "ACTIVE" and not state()["nodes"]:
            path = Path(job.trials[0].folder).parents[1] / "state.json"
            node = {"name": f"projects/p/nodes/{name}", "state": "PREEMPTED"}
            path.write_text(json.dumps({**state(), "nodes": [node]}))

    tpu_vm.launch(job, OPTIONS, Here(stop, tell, None))
    first = creates(state())[0].split()[1]
    assert f"delete {first}" in state()["calls"] and len(creates(state())) == 2


def test_what_an_earlier_launch_left_is_taken_on(job, cloud):
    """A slice that lives is kept, a lost one deleted, another sweep's left alone."""
    base = tpu_vm.slices(job)[0].name
    resources = {f"{base}-a1": ["SUSPENDED"], f"{base}-a2": ["ACTIVE"],
                 "other-a3": ["SUSPENDED"]}  # fmt: skip
    state = cloud(UP, resources=resources)
    launch(job, ends_at=1)
    assert state()["calls"] == [f"delete {base}-a1", f"delete {base}-a2"]
    assert [*state()["resources"]] == ["other-a3"]


def test_stopped_it_says_what_goes_on_and_how_to_end_it(job, cloud, tmp_path):
    state = cloud(UP)
    ended, told = launch(job._replace(workers=2), looks=12)
    assert ended.code == 75 and len(state()["resources"]) == 2
    said, _, commands = told[-1].partition("to end them: ")
    assert said == "2 slices go on by themselves; "
    subprocess.run(["bash", "-c", commands], check=True)
    assert {s[0] for s in state()["resources"].values()} == {"DELETING"}


def test_dry_run_prints_the_commands_as_the_documentation_has_them(job):
    printed = tpu_vm.render(job, OPTIONS._replace(project="trc"))
    name = f"{tpu_vm.slices(job)[0].name}-0"
    assert printed.splitlines()[1] == (
        f"gcloud compute tpus queued-resources create {name} --node-id={name} "
        "--zone=us-central2-b --project=trc --accelerator-type=v4-32 "
        "--runtime-version=tpu-ubuntu2204-base --spot "
        "--metadata-from-file=startup-script=startup-script.sh"
    )
    assert printed.splitlines()[2] == (
        f"gcloud compute tpus queued-resources delete {name} --zone=us-central2-b "
        "--project=trc --force --quiet --async"
    )
    code = printed.replace("|".join(map(str, AGAIN)), "").replace("||", "")
    assert "|" not in code and "EXIT" not in code


def test_options_that_are_missing_are_named(job):
    with pytest.raises(ConfigError, match="needs --tpu_vm_zone, --tpu_vm_package"):
        tpu_vm.render(job, OPTIONS._replace(zone="", package=""))
    with pytest.raises(ConfigError, match="--hosts=2: leave it out"):
        tpu_vm.render(job._replace(hosts=2), OPTIONS)
    with pytest.raises(ConfigError, match="--out=here: name a folder gs://"):
        tpu_vm.render(job._replace(out="here"), OPTIONS)


SWEEP = """
from dpo_jax.launch import Trial

SMALL = {"batch.pairs": 8, "data.limit": 64, "data.max_tokens": 24, "data.eval": "",
         "eval.rollouts": 0, "checkpoint.every_steps": 20}


def get_sweep(arg=None):
    start = {"model.preset": "", "model.path": "{sft}", "train.steps": 10}
    return [
        Trial("sft", "quickstart:stage=sft,steps=150", SMALL),
        Trial("dpo", "quickstart", {**SMALL, **start, "loss.beta": float(arg)}),
    ]
"""


@pytest.fixture
def host(tmp_path, monkeypatch):
    """Makes this machine a host of a slice whose package is installed."""
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    (home / ".installed").touch()
    python = home / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    root = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", root)
    monkeypatch.setenv("DPO_JAX_HOME", str(home))
    monkeypatch.setenv("DPO_JAX_COMPILE_CACHE", f"{root}/.cache/jax")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


@pytest.mark.faults
def test_create_preempt_recreate_resume_done(job, cloud, host, tmp_path, monkeypatch):
    """The script of the slice runs here; its hosts are processes, killed in between."""
    state = cloud(UP, processes=True)
    (tmp_path / "s.py").write_text(SWEEP)
    monkeypatch.setattr(tpu_vm, "POLL", 0.5)
    job = job._replace(
        trials=trial.plan(sweep.load_sweep(job.file), job.out, sweep.load)
    )
    metrics = Path(job.out) / "sft" / "metrics.jsonl"
    told = []

    class Preempts(processes.Stop):
        """Takes the slice away once it has trained 30 steps."""

        def __init__(self):
            super().__init__()
            self.until, self.did = time.monotonic() + LIMIT, False

        def __bool__(self):
            steps = metrics.read_text().count("\n") if metrics.exists() else 0
            if steps > 30 and not self.did:
                self.did = True
                now = state()
                (name,) = now["resources"]
                now["resources"][name] = ["SUSPENDING", "SUSPENDING", "SUSPENDED"]
                (tmp_path / "state.json").write_text(json.dumps(now))
            return time.monotonic() > self.until

    with metadata.served(2) as ports:
        (tmp_path / "ports.json").write_text(json.dumps(ports))
        ended = tpu_vm.launch(job, OPTIONS, Here(Preempts(), told.append, None))
    assert ended == (0, {}, []), told
    assert len(creates(state())) == 2 and state()["resources"] == {}
    logs = [p.read_text() for p in (Path(job.out) / ".sweep" / "sft").glob("*.log")]
    assert len(logs) == 2 and any("resumed from step" in log for log in logs)
    assert (
        len([*(Path(job.out) / ".sweep" / "hosts").iterdir()]) == 2
    )  # no slice's twice
    lines = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert lines == list(range(1, 151))


SITE = """
import os
if "GCE_METADATA_IP" in os.environ:
    from jax._src.clusters import cloud_tpu_cluster
    cloud_tpu_cluster.running_in_cloud_tpu_vm = True  # though there is no chip
    os.environ.pop("TPU_SKIP_MDS_QUERY", None)  # which jax sets where there is none
"""


@pytest.mark.faults
def test_a_pod_that_is_started_by_hand_finds_its_hosts(host, tmp_path, monkeypatch):
    """DPO_JAX_DISTRIBUTED=auto: jax asks the metadata server, as on a TPU VM.

    Nine pairs do not divide by the devices of both hosts, which are refused together,
    before anything compiles.
    """
    (tmp_path / "sitecustomize.py").write_text(SITE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ['PYTHONPATH']}")
    monkeypatch.setenv("DPO_JAX_DISTRIBUTED", "auto")
    line = [sys.executable, "-m", "dpo_jax", "train", f"--workdir={tmp_path}/run"]
    line += ["--config=quickstart:stage=sft,steps=2", "--config.batch.pairs=9"]
    with metadata.served(2) as ports:
        ranks = [
            subprocess.Popen(
                line,
                env={**os.environ, "GCE_METADATA_IP": f"127.0.0.1:{port}"},
                stderr=subprocess.PIPE,
                text=True,
            )
            for port in ports
        ]
        told = [rank.communicate(timeout=LIMIT)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [5, 5], told
    for said in told:
        assert "error[5]: batch.pairs=9 is not a multiple of the 2 data shards" in said
