"""A real SLURM of two nodes on loopback runs sweeps of trials of two nodes each."""

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import processes
import pytest
from equal_runs import TIMING_KEYS

pytestmark = [pytest.mark.engines]
HERE = Path(__file__).parent
SCRIPT, SWEEP = HERE / "slurm.sh", HERE / "sweep_file.py"
LIMIT = 1500  # seconds for a sweep
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Starts the daemons; gives the environment of those who submit."""
    if not all(map(shutil.which, ("slurmctld", "slurmd", "munged"))):
        pytest.skip("SLURM is not installed: tests/engines/slurm.sh install")
    if os.geteuid() != 0:
        pytest.skip("the daemons of SLURM are started by root")
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([SCRIPT, "start", folder], check=True, timeout=120)
    yield {
        **os.environ,
        "SLURM_CONF": f"{folder}/slurm.conf",
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "DPO_JAX_COMPILE_CACHE": str(ROOT / ".cache" / "jax"),
    }
    subprocess.run([SCRIPT, "stop", folder], check=True, timeout=120)


def called(slurm, *line):
    done = subprocess.run(line, env=slurm, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def sweep(slurm, out, *flags):
    line = [sys.executable, "-m", "dpo_jax", "sweep", str(SWEEP), f"--out={out}"]
    return called(slurm, *line, *flags)


def submit(slurm, out, *flags):
    args = "--slurm_args=--mem=500 --gres=tpu:1 --time=1:00:00"
    return sweep(slurm, out, "--launcher=slurm", args, *flags)


wait_for = functools.partial(processes.wait_for, seconds=LIMIT, every=0.5)


def finished(slurm, out):
    """Waits until no job is left; returns how many trials are done."""
    wait_for(lambda: not called(slurm, "squeue", "--noheader").strip())
    return sweep(slurm, out, "--dry_run").splitlines()[0]


def running(slurm):
    told = called(slurm, "squeue", "--noheader", "--states=R", "--format=%i")
    return told.split()


def steps_of(run):
    metrics = run / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def state_of(run):
    """What two runs that are equal have in common: weights, and metrics but timings."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    kept = [{k: v for k, v in x.items() if k not in TIMING_KEYS} for x in lines]
    return (run / "export" / "model.safetensors").read_bytes(), kept


def test_an_array_of_trials_of_two_nodes_with_a_requeue_in_the_middle(slurm, tmp_path):
    """Its final state is that of a trial that nobody disturbed."""
    out, quiet = tmp_path / "out", tmp_path / "quiet"
    told = submit(slurm, out, "--hosts=2", "--slurm_at_once=3")
    assert told.count("submitted as") == 4 and "dpo: submitted as 2_0" in told
    most = 0

    def begun():
        nonlocal most
        most = max(most, len(running(slurm)))
        return steps_of(out / "sft") > 5

    wait_for(begun)
    called(slurm, "scontrol", "requeue", "1_0")
    log = out / ".sweep" / "slurm" / "1_0.log"
    wait_for(lambda: "sft ended with" in log.read_text())
    assert "ended with 75 after a signal (slurm)" in log.read_text()
    wait_for(lambda: "PENDING" in called(slurm, "squeue", "-h", "-j1_0", "-o%T"))
    called(slurm, "scontrol", "update", "job=1_0", "StartTime=now")
    assert finished(slurm, out) == f"4 trials in {out}: 4 done"
    assert 1 <= most <= 3
    attempts = sorted((out / ".sweep" / "sft").glob("*.log"))
    assert len(attempts) == 2 and "resumed from step" in attempts[1].read_text()
    line = [sys.executable, "-m", "dpo_jax", "sweep", str(SWEEP), f"--out={quiet}"]
    line += ["--only=sft", "--hosts=2", "--host_address=127.0.0.1"]
    hosts = [subprocess.Popen([*line, f"--host_index={i}"], env=slurm) for i in (0, 1)]
    assert [host.wait(LIMIT) for host in hosts] == [0, 0]
    assert state_of(quiet / "sft") == state_of(out / "sft")


def test_workers_walk_the_list_together(slurm, tmp_path):
    out = tmp_path / "out"
    assert submit(slurm, out, "--workers=3").count("submitted as") == 3
    assert finished(slurm, out) == f"4 trials in {out}: 4 done"
    made = {p.name: len([*p.glob("*.json")]) for p in (out / ".sweep").glob("s*[0-9t]")}
    assert made == {"sft": 1, "seed1": 1, "seed2": 1}
