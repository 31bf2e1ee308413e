"""The quick tiers of the ablations, run, killed in the middle and tabled."""

import os
import signal
import subprocess
import sys
import time

import pytest

from dpo_jax.cli import sweep
from dpo_jax.launch import states, trial

pytestmark = pytest.mark.nightly
LIMIT = 1800  # seconds


def command(name, out, *more):
    file = f"experiments/{name}/sweep.py:tier=quick"
    line = [sys.executable, "-m", "dpo_jax", "sweep", file, f"--out={out}"]
    return [*line, *more]


def done(name, out):
    file = f"experiments/{name}/sweep.py:tier=quick"
    planned = trial.plan(sweep.load_sweep(file), str(out), sweep.load)
    found = states.states_of(planned)
    return {name for name, state in found.items() if state.word == "done"}


def test_a_sweep_over_beta_that_is_killed_does_the_missing_work_alone(tmp_path):
    """Killed with -9 after two trials; another β compiles nothing.

    The data of another seed may have other shapes, which are compiled.
    """
    out, name = tmp_path / "out", "beta_ablation"
    variables = {**os.environ, "DPO_JAX_COMPILE_CACHE": str(tmp_path / "cache")}
    process = subprocess.Popen(command(name, out), env=variables)
    until = time.monotonic() + LIMIT
    while len(before := done(name, out)) < 2:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(1)
    process.send_signal(signal.SIGKILL)
    process.wait(LIMIT)
    before = done(name, out)
    assert 2 <= len(before) < 5
    written = {f: f.stat().st_mtime_ns for n in before for f in (out / n).rglob("*")}
    half = subprocess.run(command(name, out, "--table"), capture_output=True, text=True)
    assert half.returncode == 0 and "HALF FINISHED" in half.stdout
    again = subprocess.run(
        command(name, out), env=variables, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    assert len(done(name, out)) == 5
    assert written == {f: f.stat().st_mtime_ns for f in written}
    lines = [line for line in again.stdout.splitlines() if "programs compiled" in line]
    assert len(lines) == 5 - len(before)
    second = [line for line in lines if line.startswith("beta=0.1")]
    assert second and all("; 0 programs compiled" in line for line in second), lines


@pytest.mark.parametrize("name", ["loss_ablation", "my_loss"])
def test_a_quick_tier_runs_and_is_tabled(tmp_path, name):
    out = tmp_path / "out"
    run = subprocess.run(command(name, out), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    table = subprocess.run(
        command(name, out, "--table"), capture_output=True, text=True
    )
    assert table.returncode == 0, table.stderr
    assert "All 4 trials are done." in table.stdout
    assert "n = 2 seeds × 256 test prompts" in table.stdout
