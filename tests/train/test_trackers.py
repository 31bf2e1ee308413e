"""Trackers mirror metrics.jsonl, and nothing that they do reaches the run."""

import itertools
import json
import sys
import threading
import time
import types

import pytest
from tensorboardX.proto.event_pb2 import Event

from dpo_jax.train import trackers
from dpo_jax.train.metrics import MetricsLog

ABOUT = trackers.About("", "run", "an-id", "project", {"seed": 0}, 0)


class Fake:
    """A tracker that keeps what it is told; `wrong` says what it does instead."""

    def __init__(self, wrong=""):
        self.wrong, self.told, self.starts = wrong, [], []
        self.ended, self.release = 0, threading.Event()

    def init(self, **given):
        self.starts.append(given)
        if self.wrong == "start":
            raise RuntimeError("no network")
        return self

    def log(self, values, step):
        if self.wrong == "log":
            raise ValueError("not a number")
        if self.wrong == "hang":
            self.release.wait(60)
        self.told.append((step, values))

    def finish(self):
        self.ended += 1


@pytest.fixture
def wandb(monkeypatch):
    """A package `wandb` whose `init` returns one tracker."""

    def make(wrong=""):
        fake = Fake(wrong)
        package = types.ModuleType("wandb")
        package.init, package.Settings = fake.init, lambda **given: given
        package.__spec__ = types.SimpleNamespace()
        monkeypatch.setitem(sys.modules, "wandb", package)
        return fake

    return make


def write(folder, steps, mirrors, first=0):
    log = MetricsLog(folder, resume_step=first, mirrors=mirrors)
    for step in steps:
        log.write(step, "train", {"loss": 1.0 / step, "note": "no number"})
    log.close()


def mirror(told=None):
    return trackers.Mirror("wandb", ABOUT, told or {})


def test_each_line_is_told_in_order_without_what_is_no_number(tmp_path, wandb):
    fake = wandb()
    write(tmp_path, [1, 2, 3], [mirror()])
    assert fake.told == [(s, {"train/loss": 1.0 / s}) for s in (1, 2, 3)]
    assert fake.ended == 1
    assert fake.starts[0]["id"] == "an-id" and fake.starts[0]["resume"] == "allow"
    assert fake.starts[0]["config"] == {"seed": 0}


def test_what_a_resumed_run_repeats_is_not_told_twice(tmp_path, wandb):
    """Stopped behind 5 of which 3 are kept: 4 and 5 come again, with equal values."""
    fake = wandb()
    write(tmp_path, [1, 2, 3, 4, 5], [mirror()])
    told = trackers.told((tmp_path / "metrics.jsonl").read_text().splitlines())
    assert told == {"train": 5}
    write(tmp_path, [4, 5, 6], [mirror(told)], first=3)
    assert [step for step, _ in fake.told] == [1, 2, 3, 4, 5, 6]


def test_splits_are_told_apart():
    """The line of an evaluation is new although that of its train step is not."""
    rows = ['{"step": 4, "split": "train"}', '{"step": 2, "split": "eval"}', "torn {"]
    assert trackers.told(rows) == {"train": 4, "eval": 2}


@pytest.mark.parametrize("wrong", ["start", "log"])
def test_one_that_fails_is_told_and_left(tmp_path, wandb, caplog, wrong):
    wandb(wrong)
    write(tmp_path, [1, 2, 3], [mirror()])
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    assert "log.to: wandb failed" in caplog.text


def test_one_that_hangs_holds_the_end_up_for_a_while_only(
    tmp_path, wandb, caplog, monkeypatch
):
    fake = wandb("hang")
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.3)
    monkeypatch.setattr(trackers, "WAITING", 2)
    begun = time.monotonic()
    write(tmp_path, range(1, 20), [mirror()])
    assert time.monotonic() - begun < 20
    fake.release.set()
    assert "did not end within 0.3 s" in caplog.text
    assert "too slow for" in caplog.text
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 19


def test_the_id_is_kept_over_a_resume_and_not_over_a_fork(tmp_path):
    file = tmp_path / "tracker.json"
    assert trackers.read_identity(file) == {}
    first = trackers.identity({}, "a")
    file.write_text(json.dumps(first))
    assert trackers.identity(trackers.read_identity(file), "a") == first
    assert trackers.identity(first, "b")["id"] != first["id"]
    assert trackers.identity({}, "a")["id"] != first["id"]
    for damaged in ("", "[]", "{", '{"id": 1}'):
        file.write_text(damaged)
        assert trackers.read_identity(file) == {}


def test_what_is_not_known_or_not_installed_is_named(monkeypatch):
    usual = trackers.PROJECT
    assert trackers.faults("tensorboard", usual) == trackers.faults("", usual) == []
    (told,) = trackers.faults("mlflow", usual)
    assert "names 'mlflow'. Known: tensorboard, trackio" in told
    (told,) = trackers.faults("tensorboard", "mine")
    assert "log.project='mine' is of wandb and trackio" in told
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    (told,) = trackers.faults("wandb", "mine")
    assert "package wandb is not installed; pip install 'dpo_jax[track]'" in told


def test_resumed_log_hides_later_tensorboard_events(tmp_path, monkeypatch):
    """A SessionLog START tells TensorBoard to purge events from that step on.

    The clock is turned on by a second at each look: event files are named after it.
    """
    clock = itertools.count(2e9)
    monkeypatch.setattr("tensorboardX.event_file_writer.time.time", clock.__next__)
    for steps, first in (([1, 2, 3], 0), ([3], 2), ([1], 0)):
        about = ABOUT._replace(folder=str(tmp_path), first=first)
        write(tmp_path, steps, [trackers.Mirror("tensorboard", about, {})], first)
    starts = []
    for path in sorted((tmp_path / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):  # u64 length, its crc32, the event, its crc32
            size = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + size])
            if event.HasField("session_log"):
                starts.append(event.step)
            at += 16 + size
    assert sorted(starts) == [0, 0, 3]
