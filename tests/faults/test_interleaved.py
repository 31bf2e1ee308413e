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
from unittest import mock

import jax
import pytest

from tests.wiring.test_scoring import saved

ROOT = Path(__file__).parent.parent.parent
WORKER = "tests.faults.interleaved"
HOW = {  # rounding is not blown up, as by Adam's quotients and quickstart's β = 1
    "loss__beta": 0.1,
    "optimizer__name": "sgd",
    "optimizer__lr": 0.03,
    "optimizer__warmup_steps": 0,
    "train__steps": 12,
    "ref__mode": "cached",
    "mesh__data": 1,
}


def start(runs, workdir, processes, **changed):
    """Starts processes of four devices together, dealt out in turn."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    started = []
    for index in range(processes):
        env = {
            **os.environ,
            "DPO_JAX_CPU_DEVICES": str(4 // processes),
            "NPROC": "16",  # threads of XLA: a collective holds one while it waits
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
        ended = process.wait(timeout=1200)
        assert ended == code, Path(f"{workdir}.{index}.stderr").read_text()[-3000:]


def assert_same_losses(runs, run, one):
    """Compares each line's loss to 1e-6."""
    lines = list(zip(runs.lines(run), runs.lines(one), strict=True))
    assert len(lines) >= HOW["train__steps"]
    for ours, wanted in lines:
        assert (ours["step"], ours["split"]) == (wanted["step"], wanted["split"])
        assert ours["loss"] == pytest.approx(wanted["loss"], rel=0, abs=1e-6), ours


def alone(runs, workdir, **changed):
    """Runs in this process on a mesh of the same sizes; returns the run folder."""
    four = jax.devices()[:4]
    with mock.patch.object(jax, "devices", lambda: four):
        runs.here(workdir, **changed)
    return workdir


@pytest.mark.faults
def test_interleaved_rows_give_one_processs_losses_and_go_on_on_four(runs, tmp_path):
    """Two processes hold rows 0, 2 and 1, 3 of four; four processes end the run."""
    how, run = {**HOW, "mesh__fsdp": 4}, tmp_path / "run"
    processes = start(runs, run, 2, **how)
    runs.wait_for_step(run, 4, processes[0], seconds=240)
    processes[1].send_signal(signal.SIGTERM)
    assert_ended(processes, run, 75)
    assert "processes: [0, 1, 0, 1]" in Path(f"{run}.0.stderr").read_text()
    assert_ended(start(runs, run, 4, **how), run, 0)
    assert_same_losses(runs, run, alone(runs, tmp_path / "one" / "run", **how))


@pytest.mark.faults
def test_two_processes_that_hold_the_same_rows_give_one_processs_losses(runs, tmp_path):
    """`tensor` lies across the processes, so that both lay out all rows.

    Their rollouts are those of one process, too: to the accuracy of a mean reward.
    """
    how = {**HOW, "mesh__fsdp": 2, "mesh__tensor": 2, "ref__mode": "live"}
    how |= {"data__eval": "sentiment", "eval__rollouts": 8, "eval__every_steps": 12}
    run, one = tmp_path / "run", tmp_path / "one" / "run"
    assert_ended(start(runs, run, 2, **how), run, 0)
    assert_same_losses(runs, run, alone(runs, one, **how))
    ours, wanted = (runs.lines(folder)[-1] for folder in (run, one))
    names = [name for name in wanted if name.startswith("rollouts/")]
    assert names and {n: ours[n] for n in names} == pytest.approx(
        {n: wanted[n] for n in names}, abs=1e-4
    )


@pytest.mark.faults
@pytest.mark.parametrize(
    "objective", ["online", pytest.param("ppo", marks=pytest.mark.nightly)]
)
def test_interleaved_rows_are_sampled_judged_and_trained_as_on_one_process(
    objective, runs, tmp_path
):
    """The rewards are asked on the first process, and told to the other.

    `online` is judged by a reward model, which both hold: its scores are standardized
    on samples of the reference, which both draw.
    """
    how = {
        **{"objective": objective, "mesh__data": 1, "mesh__fsdp": 4},
        **{"data__train": "sentiment", "data__limit": 40, "data__eval": ""},
        **{"data__max_tokens": 20, "reward__name": "sentiment", "train__steps": 6},
        **{"rollout__prompts": 16, "rollout__samples": 2, "rollout__max_new_tokens": 8},
        **{"optimizer__name": "sgd", "optimizer__lr": 0.03, "loss__beta": 0.1},
        **{"optimizer__warmup_steps": 0, "data__row_shapes": 0, "eval__rollouts": 0},
        **{"ppo__epochs": 2, "online__ref": "each_round"}
        | {"batch__pairs": 16 if objective == "online" else 64, "eval__every_steps": 0},
    }
    how.pop("online__ref" if objective == "ppo" else "ppo__epochs")
    if objective == "online":
        how |= {"reward__name": "", "reward__path": saved(tmp_path / "reward")}
        how |= {"reward__standardize": 24}
    run, one = tmp_path / "run", tmp_path / "one" / "run"
    assert_ended(start(runs, run, 2, **how), run, 0)
    lines = zip(runs.lines(run), runs.lines(alone(runs, one, **how)), strict=True)
    for ours, wanted in lines:
        times = {name for name in wanted if name.endswith("_seconds")}
        for name in wanted.keys() - times - {"split"}:
            assert ours[name] == pytest.approx(wanted[name], rel=1e-4, abs=1e-5), name
