"""Workers that race, die and are stopped: real processes, real leases, toy trials."""

import collections
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from processes import starting, wait_for
from racing import STEPS, TRIALS, planned, state_of

from dpo_jax.launch import states
from dpo_jax.launch.attempts import folder_of, read_all

SCRIPT = Path(__file__).with_name("racing.py")
LIMIT = 240  # seconds


@pytest.fixture
def worker(tmp_path, fake_gcs):
    """Starts workers; none outlives the test."""
    with starting({"STORAGE_EMULATOR_HOST": fake_gcs.url}) as start:
        yield lambda seconds, whose: start(
            sys.executable, SCRIPT, tmp_path, seconds, whose
        )


def events(out):
    """Lists (time, trial, token, what) of all writes so far."""
    path = out / "events.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    split = [line.split(" ", 3) for line in lines]
    return [(float(at), name, int(token), what) for at, name, token, what in split]


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def child_of(process):
    """The trial that a worker runs now."""
    found = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdecimal()]
    for pid in found:
        try:
            if parent_of(pid) == process.pid:
                return pid
        except (OSError, IndexError):
            continue
    raise AssertionError("the worker runs nothing")


def assert_all_done_once(out):
    """Each trial has ended once, and its state is that of a quiet sweep."""
    ends = collections.Counter(
        name for _, name, _, what in events(out) if what == "end"
    )
    assert ends == {f"t{i}": 1 for i in range(TRIALS)}
    for trial in planned(out):
        assert states.state_of(trial).word == "done"
        kept = Path(trial.folder) / "checkpoints" / str(STEPS)
        assert kept.read_text() == state_of(trial.name)
    steps = [(name, what) for _, name, _, what in events(out) if "step" in what]
    assert len(set(steps)) == TRIALS * STEPS


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
@pytest.mark.parametrize("whose", ["here", "strangers", "store"])
def test_two_race_one_is_killed_and_one_more_comes(tmp_path, worker, whose, fake_gcs):
    """Six trials; a dead worker of this host is found at once, another's in time.

    On gs:// answers are lost after writes were applied, and the store is busy at times.
    """
    seconds = {"here": 600.0, "strangers": 2.0, "store": 4.0}[whose]
    for number in range(6):
        fake_gcs.fault("POST", "/lease/", ("lost", 429)[number % 2], after=5 * number)
        fake_gcs.fault("GET", "/lease/", ("dropped", 503)[number % 2], after=9 * number)
    first, second = worker(seconds, whose), worker(seconds, whose)
    wait_for(lambda: len({name for _, name, _, _ in events(tmp_path)}) >= 2)
    wait_for(lambda: len(events(tmp_path)) > 6)
    first.kill()
    killed = time.monotonic()
    third = worker(seconds, whose)
    for process in (second, third):
        printed, _ = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, printed
    assert_all_done_once(tmp_path)
    names = [trial.name for trial in planned(tmp_path)]
    out = "gs://bucket/out" if whose == "store" else str(tmp_path)
    made = {n: read_all(folder_of(out, n)) for n in names}
    taken = [name for name, attempts in made.items() if len(attempts) > 1]
    assert len(taken) == 1 and [a.code for a in made[taken[0]]] == [None, 0]
    mine = [each for each in events(tmp_path) if each[1] == taken[0]]
    late = [each for each in mine if each[2] == 2]
    assert all(at < late[0][0] for at, _, token, _ in mine if token == 1)
    if whose != "here":
        assert late[0][0] - killed > seconds / 2  # it beats six times a lease


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
@pytest.mark.parametrize("whose", ["here", "store"])
def test_who_is_stopped_past_its_lease_and_goes_on_writes_nothing(
    tmp_path, worker, whose, fake_gcs
):
    """I1: worker and trial are stopped together, as by a host that is suspended.

    The trial is killed by who takes over on this host; of another, by its own worker.
    """
    first = worker(2.0, whose)
    wait_for(lambda: len(events(tmp_path)) > 3)
    child = child_of(first)
    name = events(tmp_path)[-1][1]
    os.kill(first.pid, signal.SIGSTOP)
    os.kill(child, signal.SIGSTOP)
    second = worker(2.0, whose)
    assert second.wait(LIMIT) == 0
    assert_all_done_once(tmp_path)
    changes = len(fake_gcs.changes)
    files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    os.kill(first.pid, signal.SIGCONT)
    printed, _ = first.communicate(timeout=LIMIT)
    assert first.returncode == 76 and f"error[76]: {name}: pid {second.pid}" in printed
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == files
    uploaded = {c.name.rpartition("/")[2] for c in fake_gcs.changes[changes:]}
    assert uploaded <= {"0001.log"}  # what it had printed, under its own number


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_a_trial_whose_worker_is_stopped_ends_itself(tmp_path, worker):
    """Where nobody could kill it: its own look at the lease does."""
    first = worker(2.0, "strangers")
    wait_for(lambda: len(events(tmp_path)) > 3)
    name = events(tmp_path)[-1][1]
    os.kill(first.pid, signal.SIGSTOP)
    second = worker(2.0, "strangers")
    assert second.wait(LIMIT) == 0
    assert_all_done_once(tmp_path)
    os.kill(first.pid, signal.SIGCONT)
    first.communicate(timeout=LIMIT)
    assert first.returncode in (0, 76)
    log = tmp_path / ".sweep" / name / "0001.log"
    done = [what for _, n, token, what in events(tmp_path) if (n, token) == (name, 1)]
    assert "error[76]" in log.read_text() or done[-1] == "end"
