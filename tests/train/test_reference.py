"""The cache of the reference: keyed by content, whole or not at all, never silent."""

import functools
import hashlib
import json
import os
import re

import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save

from dpo_jax.data import loader, mismatch
from dpo_jax.data.loader import Loader, Settings
from dpo_jax.errors import WriteError
from dpo_jax.train import reference
from dpo_jax.train.reference import Store, Writer
from dpo_jax.types import Record

IDENTITY = {"format": 1, "weights": {"model.safetensors": "ab"}, "dtype": "float32"}


def records(count=10):
    rng = np.random.default_rng(0)

    def ids(low, high):
        return rng.integers(1, 50, rng.integers(low, high)).astype(np.int32)

    rows = [(ids(2, 9), (ids(1, 9), ids(1, 9))) for _ in range(count)]
    return [Record(i, prompt, responses) for i, (prompt, responses) in enumerate(rows)]


def value_at(index, which, position):
    return 1000.0 * index + 100.0 * which + position + 0.5


def numbered(rows):
    """Entries whose values say where they belong."""
    return {
        reference.key_of(row.prompt, response): np.array(
            [value_at(row.index, r, t) for t in range(len(response))], np.float32
        )
        for row in rows
        for r, response in enumerate(row.responses)
    }


def batch_of(rows, layout, microbatches=1):
    settings = Settings(len(rows), microbatches, layout, 0, 1)
    return Loader(rows, loader.eval_steps(len(rows), pairs=len(rows)), settings)


def store_at(folder, wanted):
    store = Store(epath.Path(folder), wanted)
    store.refresh()
    return store


def shards(folder):
    return sorted(folder.glob("*.safetensors"))


def test_key_says_where_the_prompt_ends():
    one, two, three = (np.array(ids) for ids in ([1], [1, 2], [1, 2, 3]))
    keys = {
        reference.key_of(one, np.array([2, 3])),
        reference.key_of(two, np.array([3])),
        reference.key_of(three, np.array([])),
        reference.key_of(np.array([3]), two),
        reference.key_of(np.array([0]), np.array([2, 3])),
    }
    assert len(keys) == 5 and all(len(key) == 32 for key in keys)
    same = reference.key_of(one.astype(np.int32), np.array([2, 3], np.int32)[::1])
    assert same in keys


@pytest.mark.parametrize("layout", ["padded", "packed", "prefix_shared"])
@pytest.mark.parametrize("microbatches", [1, 3])
def test_fill_puts_each_number_where_its_token_is_scored(layout, microbatches):
    """Every scored entry's number is decoded and held against ids, slots, targets."""
    rows = records()
    batch = batch_of(rows, layout, microbatches).batch_at(0)
    filled = reference.fill(batch, entries=numbered(rows)).token["ref_logps"]
    assert filled.dtype == np.float32 and filled.shape == batch.targets.shape
    count = 0
    for m, b, c in np.ndindex(*filled.shape):
        slot = batch.slots[m, b, c]
        if slot == batch.ends.shape[-1]:
            assert filled[m, b, c] == 0.0
            continue
        index, rest = divmod(int(filled[m, b, c]), 1000)
        which, position = divmod(rest, 100)
        assert batch.ids[m, b, slot] == index
        assert batch.targets[m, b, c] == rows[index].responses[which][position]
        assert position == (batch.slots[m, b, :c] == slot).sum()
        count += 1
    assert count == sum(len(r) for row in rows for r in row.responses)


@pytest.mark.parametrize("layout", ["padded", "prefix_shared"])
def test_split_takes_apart_what_fill_put_together(layout):
    entries = numbered(records())
    batch = batch_of(records(), layout, 2).batch_at(0)
    filled = reference.fill(batch, entries=entries)
    again = reference.split(batch, filled.token["ref_logps"])
    assert again.keys() == entries.keys()
    assert all(np.array_equal(again[key], entries[key]) for key in entries)


def test_a_response_behind_another_prompt_is_another_entry():
    """KTO's mismatched responses: as `records_at` lists them, so the batch has them."""
    one = {"labels": (1,)}
    singles = [r._replace(responses=r.responses[:1], response=one) for r in records()]
    join = functools.partial(mismatch.mismatch, max_tokens=12)
    loads = Loader(
        singles, [[0, 1, 2], [3, 4]], Settings(3, 1, "packed", 0, 1), join=join
    )
    for step in range(2):
        wanted = [k for r in loads.records_at(step) for k in reference.keys_of(r)]
        found = [place.key for place in reference.places(loads.batch_at(step))]
        assert sorted(found) == sorted(wanted)
        assert len(found) == 2 * len(loads.ids_at(step))


def test_fill_without_an_entry_names_the_row():
    rows = records(2)
    entries = numbered(rows[:1])
    with pytest.raises(KeyError, match="lacks a response of row"):
        reference.fill(batch_of(rows, "padded").batch_at(0), entries=entries)


def test_shard_comes_back_bit_for_bit_and_is_named_by_its_bytes(tmp_path):
    entries = numbered(records())
    store = store_at(tmp_path / "a" / "b", entries)
    assert store.missing() == len(entries) and not (tmp_path / "a").exists()
    store.write(entries)
    (shard,) = shards(store.folder)
    assert shard.stem == hashlib.sha256(shard.read_bytes()).hexdigest()
    assert load_file(shard)["logps"].nbytes == 4 * sum(map(len, entries.values()))
    store.refresh()
    assert store.missing() == 0
    for key, logps in entries.items():
        assert store.entries[key].tobytes() == logps.tobytes()
    other = store_at(store.folder, set(list(entries)[:3]))
    assert other.entries.keys() == set(list(entries)[:3])


def test_two_runs_fill_one_folder(tmp_path):
    """Equal shards are one file; what the other wrote is seen at the next look."""
    entries = numbered(records())
    one, two = (store_at(tmp_path, entries) for _ in range(2))
    half = dict(list(entries.items())[:7])
    one.write(half)
    two.write(dict(reversed(half.items())))
    assert len(shards(tmp_path)) == 1
    two.write({key: entries[key] for key in entries if key not in half})
    one.refresh()
    assert one.missing() == 0 and len(shards(tmp_path)) == 2


SPOILS = {
    "cut short": lambda data: data[:-5],
    "emptied": lambda data: b"",
    "longer": lambda data: data + b"\0",
    "one bit": lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
}


@pytest.mark.parametrize("how", SPOILS)
def test_spoilt_shard_is_set_aside_and_told(tmp_path, caplog, how):
    entries = numbered(records())
    keys = list(entries)
    for part in (keys[:5], keys[5:]):
        store_at(tmp_path, ()).write({key: entries[key] for key in part})
    store = store_at(tmp_path, entries)
    assert store.missing() == 0
    spoilt = next(p for p in shards(tmp_path) if len(load_file(p)["lengths"]) == 5)
    bytes_ = SPOILS[how](spoilt.read_bytes())
    spoilt.write_bytes(bytes_)
    again = store_at(tmp_path, entries)
    assert again.missing() == 5 and again.entries.keys() == set(keys[5:])
    kept = spoilt.with_suffix(".corrupt")
    assert kept.read_bytes() == bytes_ and not spoilt.exists()
    assert re.search(f"sha256 mismatch in .*{spoilt.name}.*kept as", caplog.text)
    again.write({key: entries[key] for key in keys[:5]})
    again.refresh()
    assert again.missing() == 0 and spoilt.exists()
    spoilt.write_bytes(bytes_)
    assert store_at(tmp_path, entries).missing() == 5
    assert kept.exists() and spoilt.with_suffix(".2.corrupt").exists()


def test_file_that_is_no_shard_under_a_true_name_is_not_read(tmp_path, caplog):
    data = b"no tensors"
    name = hashlib.sha256(data).hexdigest() + ".safetensors"
    (tmp_path / name).write_bytes(data)
    assert store_at(tmp_path, {b"k"}).missing() == 1
    assert "is no shard of a cache" in caplog.text


def test_killed_while_writing_leaves_no_shard(tmp_path, monkeypatch):
    entries = numbered(records(2))
    store = store_at(tmp_path / "c", entries)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / ".0123.part").write_bytes(save({"x": np.zeros(3)})[:20])

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(WriteError, match=r"bytes\).*No space left.*ref.cache_dir"):
        store.write(entries)
    store.refresh()
    assert store.missing() == len(entries)
    assert [p.name for p in (tmp_path / "c").iterdir()] == [".0123.part"]


def test_writer_cuts_shards_by_tokens_and_keeps_the_rest_of_a_failed_pass(tmp_path):
    entries = numbered(records())
    store = store_at(tmp_path, entries)
    with pytest.raises(ZeroDivisionError), Writer(store, shard_tokens=20) as writer:
        for key in list(entries)[:15]:
            writer.add({key: entries[key]})
        raise ZeroDivisionError
    sizes = [len(load_file(shard)["logps"]) for shard in shards(tmp_path)]
    assert sum(sizes) == sum(len(v) for v in list(entries.values())[:15])
    assert len(sizes) > 2 and sum(size < 20 for size in sizes) <= 1
    assert max(sizes) < 20 + 8
    store.refresh()
    assert store.missing() == len(entries) - 15


def test_name_follows_every_part_of_the_identity(tmp_path):
    names = {reference.name_of(IDENTITY)}
    for key in IDENTITY:
        names.add(reference.name_of({**IDENTITY, key: "other"}))
    names.add(reference.name_of({**IDENTITY, "weights": {"model.safetensors": "ac"}}))
    assert len(names) == 5
    assert reference.name_of(dict(reversed(IDENTITY.items()))) in names


def test_folders_of_a_reference_are_numbered(tmp_path):
    cache = epath.Path(tmp_path)
    first = reference.newest_folder(cache, IDENTITY)
    assert first == cache / reference.name_of(IDENTITY)
    for number in range(2, 12):
        newest = reference.newest_folder(cache, IDENTITY)
        newest.mkdir(exist_ok=True)
        assert reference.next_folder(newest).name == f"{first.name}-{number}"
        reference.next_folder(newest).mkdir()
    assert reference.newest_folder(cache, IDENTITY).name.endswith("-11")


def test_other_references_are_told_by_what_differs(tmp_path):
    cache = epath.Path(tmp_path)
    assert reference.differences(cache / "none", IDENTITY) == []
    for other in (IDENTITY, {**IDENTITY, "dtype": "bfloat16"}, {**IDENTITY, "new": 1}):
        Store(cache / reference.name_of(other), ()).write_identity(other)
    (cache / "x").mkdir()
    (cache / "x" / "KEY.json").write_text("{")
    assert reference.differences(cache, IDENTITY) == ["dtype", "new"]
    found = json.loads((cache / reference.name_of(IDENTITY) / "KEY.json").read_text())
    assert found == IDENTITY


def test_agreement_by_hand():
    """|−1 − −1.5| = .5 and |−2 − −2| = 0, |−3 − −2.9| = .1: mean .2, largest .5."""
    entries = {b"a": np.array([-1.0, -2.0]), b"b": np.array([-3.0]), b"c": np.zeros(1)}
    live = {b"a": np.array([-1.5, -2.0]), b"b": np.array([-2.9]), b"d": np.ones(1)}
    found = reference.compare(entries, live)
    assert found.responses == 2
    np.testing.assert_allclose(found[1:], [0.2, 0.5], rtol=1e-12)
    nothing = reference.compare(entries, {b"d": np.ones(1)})
    assert nothing.responses == 0 and np.isnan(nothing.mean)
