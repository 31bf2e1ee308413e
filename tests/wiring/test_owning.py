"""Who owns a run folder of gs://: the lease, taken by hand or by a worker."""

import logging as std_logging
import threading
import time

import pytest
from absl import logging

from dpo_jax.errors import ConfigError, LeaseLostError, Preempted, RunFolderError
from dpo_jax.folders import Bucket
from dpo_jax.launch import processes
from dpo_jax.launch.attempts import Claims, read_all
from dpo_jax.wiring import owning
from dpo_jax.wiring.owning import owned

RUN = "gs://bucket/run"
LEASES = Bucket(f"{RUN}/lease")


@pytest.fixture(autouse=True)
def quick(store, fake_gcs, monkeypatch):
    """A store at which beats are quick, and workers of which nothing can be seen."""
    del store
    monkeypatch.setattr(Bucket, "rest", 0.05)
    monkeypatch.setattr(owning, "LOOK", 0.05)
    monkeypatch.setattr(processes, "mark", lambda pid: "")
    return fake_gcs


def test_a_disk_has_a_lock(tmp_path):
    with owned(tmp_path / "run", attempt=0) as mine:
        assert mine == (0, "") and (tmp_path / "run" / ".lock").read_text()
        mine.check()
        with (
            pytest.raises(RunFolderError, match="is in use by"),
            owned(tmp_path / "run", attempt=0),
        ):
            pass


def test_by_hand_the_lease_is_taken_beaten_and_ended():
    with owned(RUN, attempt=0, seconds=1.0) as mine:
        assert mine == (1, f"{RUN}/lease/0002.json")
        until = time.monotonic() + 60
        while read_all(LEASES)[0].beat < 2:
            assert time.monotonic() < until
            time.sleep(0.05)
        with pytest.raises(RunFolderError, match="is in use by"):
            with owned(RUN, attempt=0, seconds=20.0):
                pass
        assert Claims("a worker", 60.0).take(LEASES, "id") is None
    assert [(a.token, a.code) for a in read_all(LEASES)] == [(1, 0)]
    taken = Claims("a worker", 60.0).take(LEASES, "id")
    assert taken is not None and taken[0].token == 2


@pytest.mark.parametrize(
    "error, code, line",
    [
        (Preempted(7), 75, "preempted; step 7 committed"),
        (ConfigError("no"), 2, "error[2]: no"),
        (KeyError("x"), 70, "error[70]: 'x'"),
    ],
)
def test_how_a_run_ended_is_written(error, code, line):
    with pytest.raises(type(error)), owned(RUN, attempt=0, seconds=1.0):
        raise error
    assert [(a.code, a.line) for a in read_all(LEASES)] == [(code, line)]


def test_of_an_owner_without_beats_it_is_taken_in_its_time(monkeypatch):
    """A killed run is gone on in the time of a lease, though nobody can ask for it.

    Here it was starved: before it writes it looks, and learns that it has lost.
    """
    monkeypatch.setattr(owning, "LOOK", 600.0)  # its thread gets no turn
    began = time.monotonic()
    with owned(RUN, attempt=0, seconds=1.0) as starved:
        monkeypatch.setattr(owning, "LOOK", 0.05)
        with owned(RUN, attempt=0, seconds=1.0) as mine:
            assert mine.attempt == 2 and time.monotonic() - began > 1.0
            with pytest.raises(LeaseLostError, match="another worker has this run"):
                starved.check()
            mine.check()
    assert [(a.token, a.code) for a in read_all(LEASES)] == [(1, None), (2, 0)]


def test_what_a_worker_holds_is_not_taken_again(quick):
    lease, _ = Claims("worker", 60.0).take(LEASES, "id")
    changes = len(quick.changes)
    with owned(RUN, attempt=lease.token) as mine:
        assert mine == (1, lease.successor)
        mine.check()
        assert len(quick.changes) == changes
        quick.change("POST", "bucket/run/lease/0002.json", {}, b"{}")
        with pytest.raises(LeaseLostError, match="another worker has this run"):
            mine.check()


def test_the_log_is_uploaded_in_parts(store, monkeypatch):
    """No append: each part is an object of its own, under its attempt's number."""
    monkeypatch.setattr(owning, "PART", 0.2)
    lease, _ = Claims("worker", 60.0).take(LEASES, "id")
    logging.set_verbosity(logging.INFO)
    with owned(RUN, attempt=lease.token):
        said = std_logging.LogRecord(
            "absl", 20, owning.__file__, 1, "first", None, None
        )
        logging.get_absl_logger().handle(said)
        until = time.monotonic() + 60
        while not (store(RUN) / "log").exists() and time.monotonic() < until:
            time.sleep(0.05)
        said.msg = "second"
        logging.get_absl_logger().handle(said)
    parts = sorted((store(RUN) / "log").iterdir())
    assert [p.name for p in parts] == ["0001-0001.txt", "0001-0002.txt"]
    assert [p.read_text().split("] ")[1] for p in parts] == ["first\n", "second\n"]
    assert not [t for t in threading.enumerate() if "upload" in t.name]
