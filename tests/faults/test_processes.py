"""Two processes of one run: each fills its rows, both take the same steps."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(runs, workdir, **changed):
    """Starts two processes of two devices each; returns them."""
    address = f"127.0.0.1:{free_port()}"
    started = []
    for index in range(2):
        env = {
            **os.environ,
            "DPO_JAX_COMPILE_CACHE": str(ROOT / ".cache" / "jax"),
            "DPO_JAX_CPU_DEVICES": "2",
            "DPO_JAX_DISTRIBUTED": f"{address},2,{index}",
        }
        command = [sys.executable, "-m", "dpo_jax", "train"]
        with open(f"{workdir}.{index}.stderr", "w") as stderr:
            started.append(
                subprocess.Popen(
                    [*command, *runs.flags(workdir, **changed)],
                    cwd=ROOT,
                    env=env,
                    stdout=stderr,
                    stderr=stderr,
                )
            )
    return started


def codes(processes):
    return [process.wait(timeout=240) for process in processes]


@pytest.mark.faults
def test_two_processes_train_as_one(runs, tmp_path):
    """Losses to 1e-5 of one process with four devices, in the same line order."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert codes(start(runs, together)) == [0, 0]
    code, printed = runs.there(alone, devices=4)
    assert code == 0, printed
    lines = list(zip(runs.lines(alone), runs.lines(together), strict=True))
    assert len(lines) > 20
    for one, two in lines:
        assert (one["step"], one["split"]) == (two["step"], two["split"])
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert (together / "export" / "model.safetensors").exists()


@pytest.mark.faults
def test_a_signal_to_one_process_stops_both_at_one_step(runs, tmp_path):
    """F1: both exit 75 after the same committed step, and a relaunch ends the run."""
    run = tmp_path / "run"
    processes = start(runs, run)
    runs.wait_for_step(run, 6, processes[0])
    processes[1].send_signal(signal.SIGTERM)
    assert codes(processes) == [75, 75]
    said = [Path(f"{run}.{i}.stderr").read_text() for i in range(2)]
    steps = {text.split("preempted; step ")[1].split(" ")[0] for text in said}
    assert len(steps) == 1 and 6 <= int(steps.pop()) < 24
    assert codes(start(runs, run)) == [0, 0]
    assert runs.lines(run)[-1]["step"] == 24
