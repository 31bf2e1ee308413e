"""Processes whose devices are not neighbours in the mesh train as one; see DESIGN.

Reading the rows off the sharding is tested on all that libtpu describes, in tests/tpu.
Here real processes do it, and everything else of a run: weights, the reference's cache,
checkpoints, evaluation, export.
"""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
WORKER = "tests.faults.interleaved"
HOW = {  # an optimizer that does not blow rounding up, as the quotients of Adam do
    "optimizer__name": "sgd",
    "optimizer__lr": 0.01,
    "optimizer__warmup_steps": 0,
    "train__steps": 12,
    "ref__mode": "cached",
    "mesh__data": 1,
}


def start(runs, workdir, processes, **changed):
    """Starts processes of four devices together, dealt out in turn."""
    workdir.parent.mkdir(exist_ok=True)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    started = []
    for index in range(processes):
        env = {
            **os.environ,
            "DPO_JAX_COMPILE_CACHE": str(ROOT / ".cache" / "jax"),
            "DPO_JAX_CPU_DEVICES": str(4 // processes),
            "DPO_JAX_DISTRIBUTED": f"{address},{processes},{index}",
        }
        command = [sys.executable, "-m", WORKER, "train"]
        command += runs.flags(workdir, **changed)
        with open(f"{workdir}.{index}.stderr", "w") as stderr:
            started.append(
                subprocess.Popen(
                    command, cwd=ROOT, env=env, stdout=stderr, stderr=stderr
                )
            )
    return started


def assert_ended(processes, workdir, code):
    """Waits for all; shows what one printed if it ended otherwise."""
    for index, process in enumerate(processes):
        ended = process.wait(timeout=240)
        assert ended == code, Path(f"{workdir}.{index}.stderr").read_text()[-3000:]


def assert_same_losses(runs, run, alone):
    """Compares each line's loss to 1e-6."""
    lines = list(zip(runs.lines(run), runs.lines(alone), strict=True))
    assert len(lines) >= HOW["train__steps"]
    for one, two in lines:
        assert (one["step"], one["split"]) == (two["step"], two["split"])
        assert one["loss"] == pytest.approx(two["loss"], rel=0, abs=1e-6), one["step"]


@pytest.mark.faults
def test_interleaved_rows_give_one_processs_losses_and_go_on_on_four(runs, tmp_path):
    """Two processes hold rows 0, 2 and 1, 3 of four; four processes end the run."""
    how = {**HOW, "mesh__fsdp": 4}
    run, alone = tmp_path / "many" / "run", tmp_path / "alone"
    processes = start(runs, run, 2, **how)
    runs.wait_for_step(run, 4, processes[0])
    processes[1].send_signal(signal.SIGTERM)
    assert_ended(processes, run, 75)
    assert_ended(start(runs, run, 4, **how), run, 0)
    code, printed = runs.there(alone, devices=4, **how)
    assert code == 0, printed
    assert_same_losses(runs, run, alone)


@pytest.mark.faults
def test_two_processes_that_hold_the_same_rows_give_one_processs_losses(runs, tmp_path):
    """`tensor` lies across the processes, so that both lay out all rows."""
    how = {**HOW, "mesh__fsdp": 2, "mesh__tensor": 2}
    run, alone = tmp_path / "many" / "run", tmp_path / "alone"
    assert_ended(start(runs, run, 2, **how), run, 0)
    code, printed = runs.there(alone, devices=4, **how)
    assert code == 0, printed
    assert_same_losses(runs, run, alone)
