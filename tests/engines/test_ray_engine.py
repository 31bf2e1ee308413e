"""A real Ray on this machine, its TPUs fake, runs trials of two hosts each."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("ray")
pytestmark = [pytest.mark.engines]
HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
LIMIT = 1500  # seconds for a sweep
SWEEP = """
from sweep_file import SMALL, Trial

def get_sweep(arg="40"):
    sft = f"quickstart:stage=sft,steps={arg}"
    return [Trial(f"seed{i}", sft, {**SMALL, "seed": i}) for i in (1, 2)]
"""


@pytest.fixture(scope="module")
def cluster():
    """Starts the daemons of two slices; gives their address."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{HERE}", "JAX_PLATFORMS": "cpu"}
    environment["DPO_JAX_COMPILE_CACHE"] = str(ROOT / ".cache" / "jax")
    process = subprocess.Popen(
        [sys.executable, str(HERE / "ray_cluster.py"), "2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None and process.stdin is not None
    address = process.stdout.readline().strip()
    assert address, "the cluster does not start"
    yield address, environment
    process.stdin.close()
    process.wait(120)


def ranks_of(run):
    """Lists the processes that train a run, by what they were started with."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"train" in words and f"--workdir={run}".encode() in words:
            found.append(int(path.parent.name))
    return sorted(found)


def steps_of(run):
    metrics = run / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def test_two_trials_of_two_hosts_at_once_one_of_them_killed(cluster, tmp_path):
    """It is resumed, and both end; nobody but the launcher started anything again."""
    address, environment = cluster
    (tmp_path / "s.py").write_text(SWEEP)
    out = tmp_path / "out"
    line = [sys.executable, "-m", "dpo_jax", "sweep", f"{tmp_path}/s.py:200"]
    line += [f"--out={out}", "--launcher=ray", f"--ray_address={address}", "--hosts=2"]
    line += ["--ray_topology=2x2x2", "--ray_version=v4"]
    log = open(tmp_path / "log", "w")
    process = subprocess.Popen(line, env=environment, stdout=log, stderr=log)
    until = time.monotonic() + LIMIT
    while not (steps_of(out / "seed1") > 25 and steps_of(out / "seed2")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.2)
    for pid in ranks_of(out / "seed1"):
        os.kill(pid, signal.SIGKILL)
    assert process.wait(LIMIT) == 0, (tmp_path / "log").read_text()
    attempts = sorted((out / ".sweep" / "seed1").glob("*.log"))
    assert any("resumed from step" in path.read_text() for path in attempts)
    assert steps_of(out / "seed1") == steps_of(out / "seed2") == 200
