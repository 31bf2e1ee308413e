"""The lease: one winner, tokens that rise, staleness by the reader's own clock."""

import json
import threading

import pytest

from dpo_jax import gcs
from dpo_jax.errors import WriteError
from dpo_jax.folders import Bucket, Disk, folder_at
from dpo_jax.gcs import Unreachable
from dpo_jax.launch import attempts, processes
from dpo_jax.launch.attempts import Claims, read_all

ID = "0123456789abcdef"


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self, now=0.0):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path, fake_gcs, monkeypatch):
    """The folder of a trial's attempts: all holds on a disk and on gs://."""
    monkeypatch.setattr(Bucket, "rest", 0.001)
    disk = request.param == "disk"
    return folder_at(tmp_path / "trial" if disk else "gs://bucket/trial")


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
    for number in range(200 if isinstance(folder, Disk) else 40):
        place, won = folder_at(folder.path(str(number))), []
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
    before = {name: folder.read(name) for name in folder.names()}
    assert not lease.beat("process") and lease.lost
    lease.end(0, "")
    assert {name: folder.read(name) for name in folder.names()} == before
    assert taken.beat("mine") and not taken.lost


def test_a_store_that_fails_is_tried_again_until_the_lease_runs_out(
    folder, strangers, monkeypatch
):
    owner, _ = claims("owner", seconds=60.0)
    lease, _ = owner.take(folder, ID)
    now, broken = Clock(lease._began), [True]
    monkeypatch.setattr(attempts.time, "monotonic", now)
    error = WriteError if isinstance(folder, Disk) else Unreachable
    replace = folder.replace

    def write(*arguments):
        if broken[0]:
            raise error("no")
        return replace(*arguments)

    monkeypatch.setattr(folder, "replace", write)
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
    folder.create("0007.json", b"{", b"{")
    reader, clock = claims()
    assert reader.take(folder, ID) is None
    clock.now = 61.0
    lease, _ = reader.take(folder, ID)
    assert lease.token == 8 and json.loads(folder.read("0008.json").data)


@pytest.fixture
def bucket(fake_gcs, strangers, monkeypatch):
    monkeypatch.setattr(Bucket, "rest", 0.001)
    return Bucket("gs://bucket/trial")


def test_a_creation_whose_answer_was_lost_is_ones_own(bucket, fake_gcs, monkeypatch):
    """Lost once it is looked at again; lost for good, the next look adopts it."""
    mine, _ = claims("mine")
    fake_gcs.fault("POST", "0001", "lost")
    assert mine.take(bucket, ID) is not None
    monkeypatch.setattr(gcs, "WITHIN", 0.0)
    fake_gcs.fault("POST", "other/0001", "lost")
    other = Bucket("gs://bucket/other")
    with pytest.raises(Unreachable):
        mine.take(other, ID)
    assert claims("another")[0].take(other, ID) is None
    lease, stale = mine.take(other, ID)
    assert (lease.token, stale) == (1, None) and lease.beat("p")
    assert [a.process for a in read_all(other)] == ["p"]


@pytest.mark.parametrize("what", ["lost", "dropped", 409, 412, 429, 503])
@pytest.mark.parametrize("step", ["GET /", "GET 0001", "POST 0001", "GET 0002"])
def test_faults_at_every_step_of_the_protocol(bucket, fake_gcs, step, what):
    """I3: read again, then decide; one owner, whose beats and end are written."""
    method, name = step.split()
    if method == "GET" and what == 412:
        what = 404 if name != "/" else 500  # gone between list and read
    mine, _ = claims("mine")
    fake_gcs.fault(method, f"{name}.json$" if name != "/" else "/$", what)
    taken = mine.take(bucket, ID)
    for _ in range(3):
        taken = taken or mine.take(bucket, ID)
    lease, _ = taken
    fake_gcs.fault(method, f"{name}.json$" if name != "/" else "/$", what)
    if step == "GET 0001":
        fake_gcs.fault("POST", "0001", 412)  # so that it is read
    if what == 404 and step == "GET 0001":  # gone: never taken back
        assert not lease.beat("p") and read_all(bucket)[0].beat == 0
        return
    assert lease.beat("p") and lease.beat("q")
    lease.end(0, "")
    assert [(a.token, a.beat, a.code) for a in read_all(bucket)] == [(1, 2, 0)]


def test_a_takeover_fences_the_stale_attempt_first(bucket, fake_gcs):
    """A beat between the judgement and the takeover keeps the lease; none after it."""
    owner, _ = claims("owner")
    lease, _ = owner.take(bucket, ID)
    reader, clock = claims("reader")
    assert reader.take(bucket, ID) is None
    clock.now = 61.0
    read, beaten = bucket.read, []

    def late(name):
        found = read(name)
        if not beaten:
            beaten.append(lease.beat("late"))
        return found

    bucket.read = late
    assert reader.take(bucket, ID) is None and beaten == [True]
    bucket.read = read
    clock.now = 122.0
    assert reader.take(bucket, ID) is None
    clock.now = 183.0
    fake_gcs.fault("POST", "0002", 403)
    with pytest.raises(WriteError, match="403"):
        reader.take(bucket, ID)  # it dies between the two writes
    assert not lease.beat("later") and lease.lost
    third, other = claims("third")
    assert third.take(bucket, ID) is None
    other.now = 61.0
    assert third.take(bucket, ID)[0].token == 2


def test_no_object_is_changed_twice_a_second(fake_gcs, strangers, monkeypatch):
    """And a lease of a minute is beaten every ten seconds or so."""
    fake_gcs._strict = True
    bucket = Bucket("gs://bucket/trial")
    lease, _ = claims("mine")[0].take(bucket, ID)
    assert lease.beat("process")
    lease.end(0, "")
    assert not fake_gcs.too_fast() and read_all(bucket)[0].code == 0
    assert len(fake_gcs.changes) == 3
    lease, _ = claims("mine")[0].take(Bucket("gs://bucket/other"), ID)
    now = Clock(lease._began)
    monkeypatch.setattr(attempts.time, "monotonic", now)
    monkeypatch.setattr(attempts.time, "sleep", lambda seconds: None)
    beaten = []
    for _ in range(1200):
        now.now += 0.1
        before = len(fake_gcs.changes)
        assert lease.beat()
        beaten += [now.now] if len(fake_gcs.changes) > before else []
        fake_gcs._last.clear()
    pauses = [b - a for a, b in zip(beaten, beaten[1:], strict=False)]
    assert 8 <= len(beaten) <= 12 and 10 <= min(pauses) <= max(pauses) < 13
    assert len(set(pauses)) > 1  # with jitter
