"""The pointer of a run on gs://: what is published, by whom, and what is garbage."""

import json
import shutil
import threading

import jax.numpy as jnp
import pytest
from etils import epath

from dpo_jax.errors import LeaseLostError, ModelError
from dpo_jax.folders import Bucket
from dpo_jax.train import checkpoint, manifest, published
from dpo_jax.train.checkpoint import Checkpoints
from dpo_jax.train.published import Pointer

RUN = "gs://bucket/run/checkpoints"


@pytest.fixture
def folder(store, fake_gcs):
    """Checkpoints whose files lie in memory; the pointer is asked for over HTTP."""
    del fake_gcs
    return store(RUN)


def step(folder, attempt, number, text="weights"):
    """Writes a step of an attempt, and its manifest; returns where it lies."""
    place = f"{published.name_of(attempt)}/{number}"
    (folder / place).mkdir(parents=True)
    (folder / place / "d").write_text(text)
    files = manifest.hash_files(folder / place)
    body = {"step": number, "meta": {}, "metrics": {}, "arrays": {}, "files": files}
    manifest.write_manifest(folder / place, body)
    return place


def test_a_step_counts_once_it_is_published(folder):
    pointer = Pointer(folder, 1)
    pointer.take()
    place = step(folder, 1, 10)
    assert manifest.newest_verified(folder, rename=False) is None
    pointer.change(add={10: place})
    assert manifest.newest_verified(folder, rename=False) == 10
    assert manifest.step_folders(folder) == {10: folder / "attempt-0001/10"}
    assert published.read(folder) == (1, {10: "attempt-0001/10"})


def test_who_was_taken_over_publishes_nothing_more(folder, fake_gcs):
    """I1: an upload of the old attempt that lands late is garbage, and is cleared."""
    old, new = Pointer(folder, 1), Pointer(folder, 2)
    old.change(add={10: step(folder, 1, 10)})
    new.take()
    before = fake_gcs.data(f"{RUN}/published.json")
    with pytest.raises(LeaseLostError, match="attempt 2 has this run") as raised:
        old.change(add={20: step(folder, 1, 20)})
    assert raised.value.code == 76
    with pytest.raises(LeaseLostError):
        Pointer(folder, 1).take()
    with pytest.raises(LeaseLostError):
        old.change(drop=[10])
    assert fake_gcs.data(f"{RUN}/published.json") == before
    assert manifest.newest_verified(folder, rename=False) == 10
    published.clear(folder, 2)
    assert [p.name for p in (folder / "attempt-0001").iterdir()] == ["10"]
    new.change(add={20: step(folder, 2, 20)})
    assert published.read(folder) == (2, {10: "attempt-0001/10", 20: "attempt-0002/20"})


@pytest.mark.parametrize("what", ["lost", "dropped", 429, 503, 412])
def test_an_answer_that_is_lost_is_looked_at_again(folder, fake_gcs, what):
    pointer = Pointer(folder, 1)
    fake_gcs.fault("POST", "published", what)
    pointer.take()
    fake_gcs.fault("POST", "published", what)
    pointer.change(add={10: "attempt-0001/10"})
    pointer.change(add={20: "attempt-0001/20"})
    assert sorted(published.read(folder).steps) == [10, 20]


def test_a_lease_that_is_lost_while_a_step_is_saved(tmp_path, fake_gcs, monkeypatch):
    """I1: what is uploaded then is never published, and nothing is deleted.

    The files lie on a disk, where orbax can write them; the pointer is that of gs://.
    """
    monkeypatch.setattr(Bucket, "rest", 0.001)
    monkeypatch.setattr(published, "folder_at", lambda path: Bucket(RUN))
    taken, hashed = threading.Event(), checkpoint.hashed

    def held(path, step, saves):
        assert step != 20 or taken.wait(60)
        return hashed(path, step, saves)

    monkeypatch.setattr(checkpoint, "hashed", held)
    state = {"params": {"w": jnp.arange(4.0)}}
    with Checkpoints(tmp_path, every_steps=1, keep=1, attempt=1) as mine:
        mine.save(10, state, {})
        mine.save(20, state, {})
        Pointer(epath.Path(tmp_path), 2).take()
        before = fake_gcs.data(f"{RUN}/published.json")
        taken.set()
        with pytest.raises(LeaseLostError, match="attempt 2 has this run"):
            mine.wait()
    assert fake_gcs.data(f"{RUN}/published.json") == before
    folder = epath.Path(tmp_path)
    assert manifest.newest_verified(folder, rename=False) == 10
    assert manifest.verify(folder / "attempt-0001" / "10") == ""


def test_a_corrupt_step_is_marked_and_no_longer_named(folder):
    """An object store renames nothing; a mere reader marks nothing."""
    pointer = Pointer(folder, 1)
    pointer.change(add={n: step(folder, 1, n) for n in (10, 20)})
    (folder / "attempt-0001/20/d").write_text("weightz")
    assert manifest.newest_verified(folder, rename=False) == 10
    assert sorted(published.read(folder).steps) == [10, 20]
    assert manifest.newest_verified(folder, pointer=pointer) == 10
    assert sorted(published.read(folder).steps) == [10]
    told = json.loads((folder / "attempt-0001/20.corrupt").read_text())
    assert told["why"] == "sha256 mismatch in d"
    assert (folder / "attempt-0001/20/d").read_text() == "weightz"
    published.clear(folder, 2)
    (folder / "attempt-0001/10/d").write_text("")
    with pytest.raises(ModelError, match="refusing to start from scratch"):
        manifest.newest_verified(folder, pointer=pointer)


def test_old_steps_are_forgotten_before_they_are_deleted(folder, fake_gcs):
    pointer = Pointer(folder, 1)
    pointer.change(add={n: step(folder, 1, n) for n in (10, 20, 30)})
    manifest.prune(folder, keep=2, keep_best=("", ""), pointer=pointer)
    assert sorted(published.read(folder).steps) == [20, 30]
    assert not (folder / "attempt-0001/10").exists()
    assert not fake_gcs.too_fast()
    manifest.give_up(folder, "none", pointer)
    assert published.read(folder).steps == {} and manifest.given_up(folder) == "none"


def test_a_copy_on_a_disk_is_sound(folder, fake_gcs, tmp_path):
    """And one that was made on a disk counts on gs://, where nothing was published."""
    Pointer(folder, 1).change(add={10: step(folder, 1, 10)})
    copied = epath.Path(tmp_path / "checkpoints")
    for name in manifest.files.names_below(folder):
        (copied / name).parent.mkdir(parents=True, exist_ok=True)
        (copied / name).write_bytes((folder / name).read_bytes())
    text = fake_gcs.data(f"{RUN}/published.json")
    (copied / "published.json").write_bytes(text)
    assert manifest.newest_verified(copied) == 10
    (copied / "published.json").write_text("{")
    with pytest.raises(ModelError, match="published.json"):
        manifest.newest_verified(copied)
    shutil.move(copied / "attempt-0001/10", copied / "10")
    (copied / "published.json").unlink()
    assert manifest.newest_verified(copied) == 10
