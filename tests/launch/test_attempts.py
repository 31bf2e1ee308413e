"""The lease: one winner, tokens that rise, staleness by the reader's own clock."""

import json
import threading

import pytest

from dpo_jax.errors import WriteError
from dpo_jax.launch import attempts, processes
from dpo_jax.launch.attempts import Claims, read_all

ID = "0123456789abcdef"


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self, now=0.0):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "trial"


@pytest.fixture
def strangers(monkeypatch):
    """Makes each worker look like one of another host, of which nothing is seen."""
    monkeypatch.setattr(processes, "mark", lambda pid: "")


def claims(name="a", seconds=60.0, now=0.0):
    clock = Clock(now)
    return Claims(name, seconds, clock), clock


def test_tokens_rise_and_a_trial_has_one_owner(folder, strangers):
    (one, _), (two, _) = claims("one"), claims("two")
    lease, stale = one.take(folder, ID)
    assert (lease.token, stale) == (1, None)
    assert two.take(folder, ID) is None
    lease.end(6, "error[6]: it")
    lease, stale = two.take(folder, ID)
    assert (lease.token, stale) == (2, None)
    first, second = read_all(folder)
    assert (first.code, first.line, first.worker) == (6, "error[6]: it", "one")
    assert (second.code, second.worker, second.id) == (None, "two", ID)


def test_of_many_who_race_one_wins(folder, strangers):
    """Two hundred times, five at once; the creation of a file decides."""
    for number in range(200):
        place, won = folder / str(number), []
        barrier = threading.Barrier(5)

        def race(name, place=place, won=won, barrier=barrier):
            mine = Claims(name, 60.0)
            barrier.wait()
            won.append(mine.take(place, ID))

        racing = [threading.Thread(target=race, args=(f"w{i}",)) for i in range(5)]
        for each in racing:
            each.start()
        for each in racing:
            each.join()
        assert sum(taken is not None for taken in won) == 1


@pytest.mark.parametrize("skew", [-3600.0, 0.0, 3600.0])
def test_a_beating_lease_is_never_stale_and_a_dead_one_is(folder, strangers, skew):
    """I2: the owner's clock is nowhere compared with the reader's."""
    owner, _ = claims("owner", now=skew)
    lease, _ = owner.take(folder, ID)
    reader, clock = claims("reader")
    for beat in range(10):
        assert reader.take(folder, ID) is None
        clock.now += 59.0
        assert lease.beat(f"process {beat}")  # a new process is written at once
    assert reader.take(folder, ID) is None
    clock.now += 60.5
    taken, stale = reader.take(folder, ID)
    assert (taken.token, stale.worker, stale.process) == (2, "owner", "process 9")


def test_who_lost_a_lease_writes_nothing_more(folder, strangers):
    """Nor does a worker of the same name and process come back to its old attempt."""
    owner, _ = claims("same")
    lease, _ = owner.take(folder, ID)
    reader, clock = claims("same")
    assert reader.take(folder, ID) is None
    clock.now = 61.0
    taken, _ = reader.take(folder, ID)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert not lease.beat("process") and lease.lost
    lease.end(0, "")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert taken.beat("mine") and not taken.lost


def test_a_disk_that_fails_is_tried_again_until_the_lease_runs_out(
    folder, strangers, monkeypatch
):
    owner, _ = claims("owner", seconds=60.0)
    lease, _ = owner.take(folder, ID)
    now, broken = Clock(lease._began), [True]
    monkeypatch.setattr(attempts.time, "monotonic", now)
    whole = attempts.files.write_whole

    def write(path, data):
        if broken[0]:
            raise WriteError("no")
        whole(path, data)

    monkeypatch.setattr(attempts.files, "write_whole", write)
    now.now += 30.0
    assert lease.beat()
    broken[0] = False
    now.now += 1.0
    assert lease.beat() and read_all(folder)[0].beat == 1
    broken[0] = True
    now.now += 39.0
    assert lease.beat()
    now.now += 2.0
    assert not lease.beat()


def test_a_worker_that_is_gone_from_this_host_is_waited_for_no_longer(
    folder, monkeypatch
):
    gone = "host boot 77 1"
    marks = {1: "host boot 1 5", 77: gone}
    monkeypatch.setattr(processes, "mark", lambda pid: marks.get(pid, marks[1]))
    monkeypatch.setattr(attempts.os, "getpid", lambda: 77)
    owner, _ = claims("owner")
    assert owner.take(folder, ID)
    monkeypatch.setattr(attempts.os, "getpid", lambda: 1)
    reader, _ = claims("reader")
    assert reader.take(folder, ID) is None  # it lives
    marks[77] = "host boot 77 9"  # another process now has its number
    _, stale = reader.take(folder, ID)
    assert stale.mark == gone


def test_an_attempt_that_cannot_be_read_is_one_that_goes_on(folder, strangers):
    folder.mkdir()
    (folder / "0007.json").write_text("{")
    reader, clock = claims()
    assert reader.take(folder, ID) is None
    clock.now = 61.0
    lease, _ = reader.take(folder, ID)
    assert lease.token == 8 and json.loads((folder / "0008.json").read_text())
