"""A few mutated inputs of every kind, and the judge of what comes of them.

`make fuzz` runs as many as one likes; its modules say how.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FUZZ = ROOT / "tests" / "fuzz" / "fuzz.py"


def fuzz(*flags):
    """Runs the fuzzer; returns its exit code and what it printed."""
    command = [sys.executable, FUZZ, *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr[-2000:]


@pytest.mark.faults
def test_inputs_of_every_kind(tmp_path):
    code, printed = fuzz("--seed=1", "--count=54", f"--keep={tmp_path}")
    assert code == 0, printed
    assert "54 inputs" in printed and "none ended badly" in printed


@pytest.mark.nightly
def test_many_inputs(tmp_path):
    code, printed = fuzz("--seed=2", "--count=1400", f"--keep={tmp_path}")
    assert code == 0, printed
