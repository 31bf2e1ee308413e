"""Two processes of one run: they train as one, agree, stop together, die together.

Exit codes, messages and what is left, of the cases F1 to F7 of the plan's faults.
"""

import contextlib
import gzip
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from etils import epath

from dpo_jax.train import manifest

ROOT = Path(__file__).parent.parent.parent
FAULTY = str(Path(__file__).parent / "faulty.py")
SHORT = {"eval.every_steps": 0, "data.eval": "", "checkpoint.every_steps": 5}
NIGHTLY = pytest.mark.nightly  # what tests/cli/test_parent.py holds more cheaply
PATIENCE = 240  # seconds that a test waits before it calls itself failed


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Pair:
    """Processes of one run, two devices each; stderr goes beside the run folder."""

    def __init__(self, runs, workdir, *, count=2, fault=(), each=({}, {}), **changed):
        self.workdir = workdir
        address = f"127.0.0.1:{free_port()}"
        self.processes = []
        self.began = time.monotonic()
        for rank, own in enumerate(each):
            env = {
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "DPO_JAX_COMPILE_CACHE": str(ROOT / ".cache" / "jax"),
                "DPO_JAX_CPU_DEVICES": "2",
                "DPO_JAX_DISTRIBUTED": f"{address},{count},{rank}",
            }
            head = [FAULTY, *fault] if fault else ["-m", "dpo_jax"]
            own, cwd = dict(own), own.get("cwd", ROOT)
            own.pop("cwd", None)
            flags = runs.flags(own.pop("workdir", workdir), **{**changed, **own})
            with open(f"{workdir}.{rank}.stderr", "w") as stderr:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, *head, "train", *flags],
                        cwd=cwd,
                        env=env,
                        stdout=stderr,
                        stderr=stderr,
                    )
                )

    def codes(self):
        """Waits for all; returns their exit codes as a shell sees them."""
        found = [process.wait(timeout=PATIENCE) for process in self.processes]
        return [code if code >= 0 else 128 - code for code in found]

    def said(self, rank):
        return Path(f"{self.workdir}.{rank}.stderr").read_text()

    def lines(self, rank):
        """Returns the lines that say how a rank ended."""
        heads = ("error[", "preempted")
        return [line for line in self.said(rank).splitlines() if line.startswith(heads)]

    def child(self, rank):
        """Returns the process id of the child that trains."""
        (found,) = psutil.Process(self.processes[rank].pid).children()
        return found.pid

    def kill(self):
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def pair(runs, tmp_path):
    """Starts pairs; leaves no process behind."""
    with contextlib.ExitStack() as stack:

        def start(name="run", **options):
            started = Pair(runs, tmp_path / name, **options)
            stack.callback(started.kill)
            return started

        yield start


def within(seconds, started):
    """Asserts that less than `seconds` passed; this machine may do other work, too."""
    assert time.monotonic() - started < seconds


@pytest.mark.faults
def test_two_processes_train_as_one(runs, pair, tmp_path):
    """Losses to 1e-5 of one process with four devices, in the same line order, and the
    same texts sampled of 7 prompts."""
    sampled = {"data.eval": "sentiment", "eval.rollouts": 7, "eval.every_steps": 12}
    together = pair("together", **sampled)
    assert together.codes() == [0, 0]
    code, printed = runs.there(tmp_path / "alone", devices=4, **sampled)
    assert code == 0, printed
    pairs = zip(
        runs.lines(tmp_path / "alone"), runs.lines(tmp_path / "together"), strict=True
    )
    lines = list(pairs)
    assert len(lines) > 20
    for one, two in lines:
        assert (one["step"], one["split"]) == (two["step"], two["split"])
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        if one["split"] == "eval":
            for name in ("reward", "kl", "length"):
                key = f"rollouts/{name}"
                assert two[key] == pytest.approx(one[key], rel=1e-4, abs=1e-6)
    assert (tmp_path / "together" / "export" / "model.safetensors").exists()
    saved = epath.Path(tmp_path / "together" / "checkpoints" / "24")
    files = manifest.read_manifest(saved)["files"]
    assert any("ocdbt.process_1/" in name for name in files)  # hashed by rank 1
    assert sorted(files) == sorted(manifest.files_of(saved))
    assert not manifest.verify(saved)
    assert "finished 24 steps" in together.said(0)
    assert "finished" not in together.said(1)


@pytest.mark.faults
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=NIGHTLY)]
)
def test_a_signal_to_one_process_stops_both_at_one_step(runs, pair, tmp_path, number):
    """F1: both exit 75 after the same committed step, and a relaunch ends the run."""
    stopped = pair(**SHORT)
    runs.wait_for_step(tmp_path / "run", 6, stopped.processes[0], seconds=PATIENCE)
    stopped.processes[1].send_signal(number)
    assert stopped.codes() == [75, 75]
    steps = {stopped.lines(rank)[0] for rank in range(2)}
    step = int(steps.pop().split("preempted; step ")[1].split(" ")[0])
    assert not steps and 6 <= step < 24
    if number == signal.SIGTERM:
        assert pair(**SHORT).codes() == [0, 0]
        assert runs.lines(tmp_path / "run")[-1]["step"] == 24


@pytest.mark.faults
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_is_named_by_the_other(runs, pair, tmp_path, rank):
    """F2: 137 of the killed, 71 of the other, which says who is lost."""
    broken = pair(**SHORT)
    runs.wait_for_step(tmp_path / "run", 11, broken.processes[0], seconds=PATIENCE)
    began = time.monotonic()
    broken.processes[rank].kill()
    other = 1 - rank
    assert broken.codes()[rank] == 137 and broken.codes()[other] == 71
    within(30, began)
    assert f"error[71]: lost rank {rank}; relaunch" in broken.lines(other)[0]
    assert (tmp_path / "run" / "checkpoints" / "5").exists()


@pytest.mark.faults
@pytest.mark.nightly
def test_a_child_killed_alone_is_told_by_its_parent(runs, pair, tmp_path):
    """As the kernel does where memory runs out."""
    broken = pair(**SHORT)
    runs.wait_for_step(tmp_path / "run", 11, broken.processes[0], seconds=PATIENCE)
    os.kill(broken.child(1), signal.SIGKILL)
    assert broken.codes() == [71, 137]
    assert "lost rank 1 (killed by SIGKILL)" in broken.lines(0)[0]


@pytest.mark.faults
@pytest.mark.parametrize(
    "where, rank", [("hook", 1), pytest.param("hook", 0, marks=NIGHTLY), ("save", 1)]
)
def test_an_exception_on_one_rank_ends_both(runs, pair, tmp_path, where, rank):
    """F3, F7: both exit 70, the traceback is kept, the step before stands."""
    broken = pair(fault=(where, str(rank)), **SHORT)
    assert broken.codes() == [70, 70]
    (line,) = broken.lines(rank)
    what = {"hook": "KeyError: 'nobody has it'", "save": "RuntimeError: no save today"}
    assert line.startswith(f"error[70]: {what[where]}")
    (other,) = broken.lines(1 - rank)
    assert other.startswith(f"error[70]: rank {rank} ended: {what[where]}")
    kept = (tmp_path / "run" / "errors" / f"rank{rank}.txt").read_text()
    assert "Traceback" in kept and what[where].partition(":")[0] in kept
    if where == "hook":
        assert (tmp_path / "run" / "checkpoints" / "5").exists()


@pytest.mark.faults
def test_a_fault_of_the_loader_keeps_its_code(pair, tmp_path):
    """C4 on one rank of two: 3 of both, naming the rows."""
    broken = pair(fault=("loader", "1"), **SHORT)
    assert broken.codes() == [3, 3]
    assert "step 8 cannot be made (OSError: disk gone); its rows" in broken.lines(0)[0]
    assert (tmp_path / "run" / "errors" / "rank1.txt").exists()


@pytest.mark.faults
def test_a_stopped_process_is_missed(runs, pair, tmp_path):
    """F4: the other shows its stacks and ends; its parent ends the stopped one."""
    stuck = pair(**SHORT, **{"train.watchdog_seconds": 20.0})
    runs.wait_for_step(tmp_path / "run", 6, stuck.processes[0], seconds=PATIENCE)
    os.kill(stuck.child(1), signal.SIGSTOP)
    began = time.monotonic()
    assert stuck.codes() == [124, 124]
    within(60, began)
    (line,) = stuck.lines(0)
    assert line.startswith("error[124]: no progress since step ")
    stacks = (tmp_path / "run" / "errors" / "stacks0.txt").read_text()
    assert "loop.py" in stacks
    assert "error[124]: rank 0 ended: exit code 124" in stuck.lines(1)[0]


@pytest.mark.faults
@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=NIGHTLY)])
def test_a_process_alone_says_who_is_missing(runs, tmp_path, rank):
    """F5: within the time it was told, not 306 s."""
    each = [{}] if rank == 0 else [{}, {}]
    alone = Pair(runs, tmp_path / "run", each=each, distributed__timeout_seconds=5)
    if rank:
        alone.processes[0].kill()
    try:
        code = alone.processes[rank].wait(timeout=60)
    finally:
        alone.kill()
    assert code == 5
    (line,) = alone.lines(rank)
    assert line.startswith(f"error[5]: rank {1 - rank} did not appear at 127.0.0.1:")
    assert not (tmp_path / "run").exists()


@pytest.mark.faults
def test_processes_that_differ_do_not_start(pair, tmp_path):
    """F6: fields are named with both values, on both; nothing is left."""
    other = {
        "loss__beta": 0.5,
        "seed": 5,
        "checkpoint__every_steps": 7,
        "workdir": tmp_path / "elsewhere",
    }
    mixed = pair(each=({}, other))
    assert mixed.codes() == [5, 5]
    for rank in range(2):
        (line,) = mixed.lines(rank)
        assert line.startswith("error[5]: ") and "processes disagree: " in line
        assert f"--workdir is '{tmp_path}/run' on rank 0, '{tmp_path}/e" in line
        for said in (
            "loss.beta is 1.0 on rank 0, 0.5 on rank 1",
            "seed is 0 on rank 0",
        ):
            assert said in line
    assert not (tmp_path / "run").exists() and not (tmp_path / "elsewhere").exists()


@pytest.mark.faults
def test_other_rows_under_the_same_path_are_seen(runs, pair, tmp_path):
    """F6: a stale copy on one host; here a relative path in two working folders."""
    rows = gzip.decompress(Path(runs.rows["data.train"]).read_bytes()).splitlines()
    for rank in range(2):
        folder = tmp_path / f"host{rank}"
        folder.mkdir()
        (folder / "configs").symlink_to(ROOT / "configs")
        stale = b"\n".join(rows[: len(rows) - rank]) + b"\n"
        (folder / "rows.jsonl").write_bytes(stale)
    folders = [{"cwd": tmp_path / f"host{rank}"} for rank in range(2)]
    mixed = pair(each=folders, **{**SHORT, "data.train": "rows.jsonl"})
    assert mixed.codes() == [5, 5]
    for rank in range(2):
        (line,) = mixed.lines(rank)
        assert line.startswith("error[5]: ") and "content of data.train is" in line
    assert not (tmp_path / "run").exists()
