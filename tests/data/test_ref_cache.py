"""The cache of the reference: keyed by content, whole or not at all, never silent."""

import functools
import hashlib
import json
import os
import re

import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load, load_file, save

from dpo_jax.data import loader, mismatch, ref_cache
from dpo_jax.data.loader import Loader, Settings
from dpo_jax.data.ref_cache import Store, writer
from dpo_jax.errors import WriteError
from dpo_jax.types import Record

IDENTITY = {"format": 1, "weights": {"model.safetensors": "ab"}, "dtype": "float32"}


def records(count=10):
    rng = np.random.default_rng(0)

    def ids(low, high):
        return rng.integers(1, 50, rng.integers(low, high)).astype(np.int32)

    rows = [(ids(2, 9), (ids(1, 9), ids(1, 9))) for _ in range(count)]
    return [Record(i, *row, comparisons=((0, 1),)) for i, row in enumerate(rows)]


def value_at(index, which, position):
    return 1000.0 * index + 100.0 * which + position + 0.5


def numbered(rows):
    """Entries whose values say where they belong."""
    return {
        ref_cache.key_of(row.prompt, response): np.array(
            [value_at(row.index, r, t) for t in range(len(response))], np.float32
        )
        for row in rows
        for r, response in enumerate(row.responses)
    }


def batch_of(rows, layout, microbatches=1):
    settings = Settings(len(rows), microbatches, layout, 0, 1)
    return Loader(rows, loader.eval_steps(len(rows), pairs=len(rows)), settings)


def store_at(folder, wanted):
    """Reads what there is of some entries."""
    lengths = {key: len(entry) for key, entry in wanted.items()}
    store = Store(epath.Path(folder), lengths)
    store.refresh()
    return store


def shards(folder):
    return sorted(folder.glob("*.safetensors"))


def test_key_says_where_the_prompt_ends():
    one, two, three = (np.array(ids) for ids in ([1], [1, 2], [1, 2, 3]))
    keys = {
        ref_cache.key_of(one, np.array([2, 3])),
        ref_cache.key_of(two, np.array([3])),
        ref_cache.key_of(three, np.array([])),
        ref_cache.key_of(np.array([3]), two),
        ref_cache.key_of(np.array([0]), np.array([2, 3])),
    }
    assert len(keys) == 5 and all(len(key) == 32 for key in keys)
    masks = ([True, True], [True, False], [False, True])
    scored = [ref_cache.key_of(one, np.array([2, 3]), np.array(m)) for m in masks]
    assert scored[0] in keys and len({*keys, *scored}) == 7
    same = ref_cache.key_of(one.astype(np.int32), np.array([2, 3], np.int32)[::1])
    assert same in keys


@pytest.mark.parametrize("layout", ["padded", "packed", "prefix_shared"])
@pytest.mark.parametrize("microbatches", [1, 3])
def test_each_number_stands_where_its_token_is_scored(layout, microbatches):
    """Every scored entry's number is decoded and held against ids, slots, targets."""
    rows = records()
    logps = functools.partial(ref_cache.logps_of, entries=numbered(rows))
    plain = batch_of(rows, layout, microbatches)
    batch = plain.with_tokens("ref_logps", logps).batch_at(0)
    assert not plain.batch_at(0).token and batch.token.keys() == {"ref_logps"}
    column = batch.token["ref_logps"]
    assert column.dtype == np.float32 and column.shape == batch.targets.shape
    count = 0
    for m, b, c in np.ndindex(*column.shape):
        slot = batch.slots[m, b, c]
        if slot == batch.ends.shape[-1]:
            assert column[m, b, c] == 0.0
            continue
        index, rest = divmod(int(column[m, b, c]), 1000)
        which, position = divmod(rest, 100)
        assert batch.ids[m, b, slot] == index
        assert batch.targets[m, b, c] == rows[index].responses[which][position]
        assert position == (batch.slots[m, b, :c] == slot).sum()
        count += 1
    assert count == sum(len(r) for row in rows for r in row.responses)


@pytest.mark.parametrize("layout", ["padded", "prefix_shared"])
def test_responses_at_says_where_each_was_written(layout):
    """What a batch scores at those places is the response; a row a process or not."""
    rows = records()
    loads = batch_of(rows, layout, 2)
    batch, listed = loads.batch_at(0), list(loads.responses_at(0))
    assert len(listed) == 2 * len(rows)
    for record, which, at in listed:
        np.testing.assert_array_equal(batch.targets[at], record.responses[which])


def test_a_response_behind_another_prompt_is_another_entry():
    """KTO's mismatched responses: as `records_at` lists them, so the batch has them."""
    one = {"labels": (1,)}
    singles = [
        r._replace(responses=r.responses[:1], comparisons=(), response=one)
        for r in records()
    ]
    join = functools.partial(mismatch.mismatch, max_tokens=12)
    loads = Loader(
        singles, [[0, 1, 2], [3, 4]], Settings(3, 1, "packed", 0, 1), join=join
    )
    for step in range(2):
        wanted = [k for r in loads.records_at(step) for k in ref_cache.keys_of(r)]
        keys = [
            ref_cache.key_of(record.prompt, record.responses[which])
            for record, which, _ in loads.responses_at(step)
        ]
        assert sorted(keys) == sorted(wanted)
        assert len(keys) == 2 * len(loads.ids_at(step))


def test_a_record_without_an_entry_is_named():
    rows = records(2)
    with pytest.raises(KeyError, match="lacks a response of row 1"):
        ref_cache.logps_of(rows[1], entries=numbered(rows[:1]))


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
    other = store_at(store.folder, dict(list(entries.items())[:3]))
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
        store_at(tmp_path, {}).write({key: entries[key] for key in part})
    store = store_at(tmp_path, entries)
    assert store.missing() == 0
    spoilt = next(p for p in shards(tmp_path) if len(load_file(p)["lengths"]) == 5)
    bytes_ = SPOILS[how](spoilt.read_bytes())
    spoilt.write_bytes(bytes_)
    again = store_at(tmp_path, entries)
    assert again.missing() == 5 and again.entries.keys() == set(keys[5:])
    kept = spoilt.with_name(f"{spoilt.name}.corrupt")
    assert kept.read_bytes() == bytes_ and not spoilt.exists()
    assert re.search(f"sha256 mismatch in .*{spoilt.name}.*kept as", caplog.text)
    again.write({key: entries[key] for key in keys[:5]})
    again.refresh()
    assert again.missing() == 0 and spoilt.exists()
    spoilt.write_bytes(bytes_)
    assert store_at(tmp_path, entries).missing() == 5
    assert kept.exists() and spoilt.with_name(f"{spoilt.name}.2.corrupt").exists()


WRONG = {
    "is not finite": lambda entry: np.where(entry == entry[0], np.nan, entry),
    "has 2 log-probs for a response of 3 tokens": lambda entry: entry[:2],
    "is not what it was written as": lambda entry: entry - np.float32(50),
}


@pytest.mark.parametrize("told", WRONG)
def test_an_entry_that_cannot_be_right_is_computed_again(tmp_path, caplog, told):
    """A shard under its true name, one of whose entries somebody else has changed."""
    entries = numbered(records())
    bad = next(key for key, entry in entries.items() if len(entry) == 3)
    changed = {**entries, bad: WRONG[told](entries[bad]).astype(np.float32)}
    data = ref_cache._packed(changed)
    if "written" in told:  # its check is that of the entry that was written first
        shard = {**load(data), "checks": load(ref_cache._packed(entries))["checks"]}
        data = save(shard)
    name = hashlib.sha256(data).hexdigest() + ".safetensors"
    (tmp_path / name).write_bytes(data)
    store = store_at(tmp_path, entries)
    assert store.missing() == 1 and bad not in store.entries
    assert f"an entry of {tmp_path / name} {told}: computed again" in caplog.text
    store.write({bad: entries[bad]})
    assert store_at(tmp_path, entries).missing() == 0


def test_file_that_is_no_shard_under_a_true_name_is_not_read(tmp_path, caplog):
    data = b"no tensors"
    name = hashlib.sha256(data).hexdigest() + ".safetensors"
    (tmp_path / name).write_bytes(data)
    assert store_at(tmp_path, {b"k": [0]}).missing() == 1
    assert "is no shard of a cache" in caplog.text


def test_killed_while_writing_leaves_no_shard(tmp_path, monkeypatch):
    entries = numbered(records(2))
    store = store_at(tmp_path / "c", entries)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / ".0123.part").write_bytes(save({"x": np.zeros(3)})[:20])

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(WriteError, match=r"bytes\).*No space left.*free some space"):
        store.write(entries)
    store.refresh()
    assert store.missing() == len(entries)
    assert [p.name for p in (tmp_path / "c").iterdir()] == [".0123.part"]


def test_writer_cuts_shards_by_tokens_and_keeps_the_rest_of_a_failed_pass(tmp_path):
    entries = numbered(records())
    store = store_at(tmp_path, entries)
    with pytest.raises(ZeroDivisionError), writer(store, shard_tokens=20) as add:
        for key in list(entries)[:15]:
            add({key: entries[key]})
        raise ZeroDivisionError
    sizes = [len(load_file(shard)["logps"]) for shard in shards(tmp_path)]
    assert sum(sizes) == sum(len(v) for v in list(entries.values())[:15])
    assert len(sizes) > 2 and sum(size < 20 for size in sizes) <= 1
    assert max(sizes) < 20 + 8
    store.refresh()
    assert store.missing() == len(entries) - 15


def test_name_follows_every_part_of_the_identity(tmp_path):
    names = {ref_cache.name_of(IDENTITY)}
    for key in IDENTITY:
        names.add(ref_cache.name_of({**IDENTITY, key: "other"}))
    names.add(ref_cache.name_of({**IDENTITY, "weights": {"model.safetensors": "ac"}}))
    assert len(names) == 5
    assert ref_cache.name_of(dict(reversed(IDENTITY.items()))) in names


def test_folders_of_a_reference_are_numbered(tmp_path):
    cache = epath.Path(tmp_path)
    first = ref_cache.newest_folder(cache, IDENTITY)
    assert first == cache / ref_cache.name_of(IDENTITY)
    for number in range(2, 12):
        newest = ref_cache.newest_folder(cache, IDENTITY)
        newest.mkdir(exist_ok=True)
        assert ref_cache.next_folder(newest).name == f"{first.name}-{number}"
        ref_cache.next_folder(newest).mkdir()
    assert ref_cache.newest_folder(cache, IDENTITY).name.endswith("-11")


def test_other_references_are_told_by_what_differs(tmp_path):
    cache = epath.Path(tmp_path)
    assert ref_cache.differences(cache / "none", IDENTITY) == []
    for other in (IDENTITY, {**IDENTITY, "dtype": "bfloat16"}, {**IDENTITY, "new": 1}):
        Store(cache / ref_cache.name_of(other), {}).write_identity(other)
    (cache / "x").mkdir()
    (cache / "x" / "KEY.json").write_text("{")
    assert ref_cache.differences(cache, IDENTITY) == ["dtype", "new"]
    found = json.loads((cache / ref_cache.name_of(IDENTITY) / "KEY.json").read_text())
    assert found == IDENTITY


def test_agreement_by_hand():
    """|−1 − −1.5| = .5 and |−2 − −2| = 0, |−3 − −2.9| = .1: mean .2, largest .5."""
    entries = {b"a": np.array([-1.0, -2.0]), b"b": np.array([-3.0]), b"c": np.zeros(1)}
    live = {b"a": np.array([-1.5, -2.0]), b"b": np.array([-2.9]), b"d": np.ones(1)}
    found = ref_cache.compare(entries, live)
    assert found.responses == 2
    np.testing.assert_allclose(found[1:], [0.2, 0.5], rtol=1e-12)
    nothing = ref_cache.compare(entries, {b"d": np.ones(1)})
    assert nothing.responses == 0 and np.isnan(nothing.mean)
