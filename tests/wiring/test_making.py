"""What the runs of a sweep share is made by one of them; the others wait."""

import threading
import time

import pytest
from etils import epath

from dpo_jax import gcs
from dpo_jax.errors import WriteError
from dpo_jax.folders import Bucket, folder_at
from dpo_jax.launch import processes
from dpo_jax.launch.attempts import Claims, read_all
from dpo_jax.wiring import making


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path, store, fake_gcs, monkeypatch):
    """Where runs of other hosts make it, of which nothing is seen but their beats."""
    monkeypatch.setattr(Bucket, "rest", 0.001)
    monkeypatch.setattr(making, "LOOK", 0.01)
    monkeypatch.setattr(processes, "mark", lambda pid: "")
    disk = request.param == "disk"
    return epath.Path(tmp_path / "cache" if disk else "gs://bucket/cache")


def test_one_makes_it_and_the_other_waits(folder, caplog):
    caplog.set_level("INFO", logger="absl")
    whole, made = threading.Event(), []

    def run(name):
        with making.alone(folder, whole.is_set) as beat:
            beat()
            if not whole.is_set():
                made.append(name)
                until = time.monotonic() + 60
                while "waiting for pid" not in caplog.text:
                    assert time.monotonic() < until
                    time.sleep(0.01)
                whole.set()

    runs = [threading.Thread(target=run, args=(name,)) for name in ("one", "two")]
    for each in runs:
        each.start()
    for each in runs:
        each.join()
    assert len(made) == 1
    run("three")  # which finds it: no lease is asked for
    attempts = read_all(folder_at(folder / making.FOLDER))
    assert len(made) == 1 and [a.code for a in attempts] in ([0], [0, 0])


def test_of_one_that_fails_or_dies_another_takes_over(folder, monkeypatch):
    with pytest.raises(KeyError), making.alone(folder, lambda: False):
        raise KeyError("stopped")
    with making.alone(folder, lambda: False):
        pass
    monkeypatch.setattr(making, "SECONDS", 0.3)
    place, began = folder_at(folder / making.FOLDER), time.monotonic()
    assert Claims("dead", 0.3).take(place, "")
    with making.alone(folder, lambda: False):
        assert time.monotonic() - began > 0.3
    assert [a.code for a in read_all(place)] == [0, 0, None, 0]


def test_a_store_that_does_not_answer_is_not_waited_for(fake_gcs, monkeypatch, caplog):
    monkeypatch.setattr(gcs, "WITHIN", 0.0)
    fake_gcs.fault("GET", "/$", 503, times=9)
    with making.alone(epath.Path("gs://bucket/cache"), lambda: False) as beat:
        beat()
    assert "not waited for any other run" in caplog.text


def test_where_nothing_can_be_written_it_is_told(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(WriteError, match="cannot write .*cache/making"):
        with making.alone(epath.Path(tmp_path / "cache"), lambda: False):
            pass
