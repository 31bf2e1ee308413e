"""Batches as a function of the step."""

import functools
import math

import jax
import numpy as np
import pytest

from dpo_jax.data import loader, sizes
from dpo_jax.data.loader import Loader, Settings
from dpo_jax.data.mismatch import mismatch
from dpo_jax.types import Batch, Record

REQUIRED = [name for name in Batch._fields if name not in Batch._field_defaults]


def records(n, seed=0):
    rng = np.random.default_rng(seed)

    def ids(low, high):
        return rng.integers(1, 50, rng.integers(low, high)).astype(np.int32)

    rows = [(ids(2, 9), (ids(1, 9), ids(1, 9))) for _ in range(n)]
    return [Record(i, *row, comparisons=((0, 1),)) for i, row in enumerate(rows)]


def make(layout="prefix_shared", *, steps=6, pairs=4, microbatches=1, shards=1, **kw):
    rows = records(10)
    order = loader.train_steps(10, pairs=pairs, steps=steps, seed=3, shuffle=True)
    settings = Settings(pairs, microbatches, layout, 0, shards, **kw)
    return Loader(rows, order, settings)


def test_steps_are_slices_of_concatenated_permutations():
    steps = loader.train_steps(10, pairs=4, steps=5, seed=3, shuffle=True)
    flat = [i for step in steps for i in step]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:] and flat[:10] != list(range(10))
    longer = loader.train_steps(10, pairs=4, steps=9, seed=3, shuffle=True)
    assert longer[:5] == steps


def test_in_order_without_shuffling():
    steps = loader.train_steps(3, pairs=2, steps=3, seed=0, shuffle=False)
    assert steps == [[0, 1], [2, 0], [1, 2]]


def test_evaluation_takes_each_record_once():
    assert loader.eval_steps(5, pairs=2) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("layout", ["padded", "packed", "prefix_shared"])
@pytest.mark.parametrize("microbatches, shards", [(1, 1), (2, 1), (3, 4)])
def test_the_same_pairs_in_every_layout(layout, microbatches, shards):
    loads = make(layout, microbatches=microbatches, shards=shards)
    for step in range(len(loads)):
        batch = loads.batch_at(step)
        assert batch.tokens.shape[0] == microbatches
        assert batch.tokens.shape[1] % shards == 0
        ids = batch.ids[batch.ids >= 0]
        assert sorted(ids) == sorted(2 * loads.ids_at(step))
        assert (batch.pairs[..., 0] >= 0).sum() == 4


def test_shapes_are_a_handful_and_counted():
    loads = make("packed", steps=40)
    shapes = {loads.batch_at(s).tokens.shape for s in range(40)}
    assert len(shapes) == len(loads.compiled_shapes()) <= sizes.MOST_BUCKETS
    assert sum(loads.compiled_shapes().values()) == 40
    assert {s[1] for s in shapes} == set(loads.compiled_shapes())


def every(number, of):
    """Rows of a process whose shards are not neighbours: every `of`-th row."""
    return lambda rows: np.arange(number, rows, of)


@pytest.mark.parametrize("processes", [2, 4])
def test_the_examples_do_not_depend_on_the_processes(processes):
    """One sequence of ids; each process fills its rows, and none sees another's."""
    alone = make("packed", shards=4)
    parts = [
        make("packed", shards=4, rows_here=every(number, processes))
        for number in range(processes)
    ]
    for step in range(len(alone)):
        batch, filled = alone.batch_at(step), [part.batch_at(step) for part in parts]
        assert {tuple(p.ids_at(step)) for p in parts} == {tuple(alone.ids_at(step))}
        for name in REQUIRED:
            whole = getattr(batch, name)
            for number, rows in enumerate(filled):
                mine = whole[:, number::processes]
                np.testing.assert_array_equal(getattr(rows, name), mine, err_msg=name)


def test_iterating_from_a_step_equals_asking_for_it():
    loads = make()
    for step, batch in enumerate(loads.iterate(2, threads=2, ahead=2), start=2):
        np.testing.assert_array_equal(batch.tokens, loads.batch_at(step).tokens)
    assert step == 5


def test_row_tokens_are_chosen_by_cost():
    """40-token documents: one a row wastes what longer rows share out."""
    rng = np.random.default_rng(0)
    rows = [
        Record(i, np.ones(20, np.int32), (np.ones(rng.integers(1, 20), np.int32),))
        for i in range(64)
    ]
    settings = Settings(64, 1, "packed", 0, 1)
    chosen = Loader(rows, [list(range(64))], settings)
    tight = Loader(rows, [list(range(64))], Settings(64, 1, "packed", 40, 1))
    assert chosen.row_tokens > 40
    assert chosen.facts(0)["padding_fraction"] < tight.facts(0)["padding_fraction"]
    assert Loader(rows, [[0, 1]], Settings(2, 1, "padded", 0, 1)).row_tokens == 40


def test_dense_attention_keeps_rows_short():
    """64 documents of 20 tokens: rows of 40 waste nothing, those of 24 see less."""
    rows = [
        Record(i, np.ones(12, np.int32), (np.ones(8, np.int32),)) for i in range(64)
    ]

    def chosen(even):
        settings = Settings(64, 1, "packed", 0, 1, even_tokens=even)
        return Loader(rows, [list(range(64))], settings).row_tokens

    assert chosen(math.inf) == 40 and chosen(1.0) == 24


def dialogues(size):
    """Pairs as long as those of hh-harmless: the logs of lengths are about normal."""
    rng, ids = np.random.default_rng(0), np.ones(256, np.int32)

    def draw(median, spread):
        lengths = rng.lognormal(np.log(median), spread, size)
        return lengths.clip(2, 256).astype(int)

    lengths = zip(draw(78, 0.99), draw(28, 0.87), draw(34, 0.92), strict=True)
    return [
        Record(i, ids[:p], (ids[:c], ids[:r]), comparisons=((0, 1),))
        for i, (p, c, r) in enumerate(lengths)
    ]


@pytest.mark.parametrize("pairs, least", [(64, 0.95), (32, 0.90), (8, 0.70)])
def test_rows_are_well_filled(pairs, least):
    """Tokens of an epoch by the places that its steps run, in at most 6 shapes."""
    steps = 2304 // pairs
    order = loader.train_steps(2304, pairs=pairs, steps=steps, seed=0, shuffle=True)
    loads = Loader(dialogues(2304), order, Settings(pairs, 1, "prefix_shared", 0, 1))
    tokens = sum(loads.facts(step)["tokens"] for step in range(steps))
    places = sum(n * rows for rows, n in loads.compiled_shapes().items())
    assert tokens / (places * loads.row_tokens) >= least
    assert len(loads.compiled_shapes()) <= 6


def test_padding_is_what_the_batch_holds():
    loads = make("prefix_shared", microbatches=2)
    for step in range(len(loads)):
        batch, facts = loads.batch_at(step), loads.facts(step)
        empty = (batch.docs == 0).mean()
        unscored = (batch.slots == batch.ends.shape[-1]).mean()
        assert facts["padding_fraction"] == pytest.approx(empty)
        assert facts["scored_padding_fraction"] == pytest.approx(unscored)


KINDS = {
    "singles": lambda r: r._replace(
        responses=r.responses[:1],
        comparisons=(),
        response={"labels": (1 - 2 * (r.index % 2),)},
    ),
    "rated": lambda r: r._replace(response={"ratings": (r.index + 0.5, -1.0)}),
    "rankings": lambda r: r._replace(ranked=True),
}
FIELDS = {"singles": {"labels"}, "rated": {"ratings"}, "rankings": {"groups"}}
ONE = {"labels": (1,)}
FIRST = functools.partial(mismatch, max_tokens=20)


def of_kind(kind, layout, microbatches, *, pairs=4, join=None, **kw):
    rows = [KINDS[kind](r) for r in records(10)]
    order = loader.eval_steps(10, pairs=pairs)
    return Loader(rows, order, Settings(pairs, microbatches, layout, 0, 1, **kw), join)


def seen(batch):
    """Lists (ids, labels, ratings, targets) of all responses, in any order."""
    found = []
    for part, row, slot in np.argwhere(batch.ids >= 0):
        scored = batch.slots[part, row] == slot
        judged = [
            None if field is None else field[part, row, slot].item()
            for field in (batch.ids, *map(batch.response.get, ("labels", "ratings")))
        ]
        found.append((*judged, tuple(batch.targets[part, row][scored])))
    return sorted(found, key=str)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["padded", "packed", "prefix_shared"])
@pytest.mark.parametrize("microbatches", [1, 3])
def test_optional_fields_are_there_in_every_batch_or_none(kind, layout, microbatches):
    """The last step has 2 records, so that one of 3 microbatches stays empty."""
    loads = of_kind(kind, layout, microbatches)
    rows = [KINDS[kind](r) for r in records(10)]
    for step in range(3):
        batch = loads.batch_at(step)
        there = {*batch.response} | ({"groups"} if batch.groups is not None else set())
        assert there == FIELDS[kind] and not batch.token
        assert seen(batch) == sorted(
            [
                (
                    r.index,
                    r.response["labels"][at] if kind == "singles" else None,
                    r.response["ratings"][at] if kind == "rated" else None,
                    tuple(response),
                )
                for r in rows[4 * step : 4 * step + 4]
                for at, response in enumerate(r.responses)
            ],
            key=str,
        )
        assert (batch.pairs[..., 0] >= 0).sum() == (
            0 if kind == "singles" else len(loads.ids_at(step))
        )
        if kind == "rankings":
            groups = batch.groups.reshape(microbatches, -1, 2)
            pairs = batch.pairs.reshape(microbatches, -1, 2)
            assert [set(map(tuple, g)) for g in groups if (g >= 0).any()] == [
                set(map(tuple, p)) for p in pairs if (p >= 0).any()
            ]


@pytest.mark.parametrize("layout", ["padded", "packed", "prefix_shared"])
@pytest.mark.parametrize("microbatches", [1, 2])
def test_joined_records_are_those_of_the_whole_step(layout, microbatches):
    """In every layout, the lender is the next record of the step, not of a part."""
    loads = of_kind("singles", layout, microbatches, pairs=5, join=FIRST)
    rows = [KINDS["singles"](r) for r in records(10)]
    for step in range(2):
        own = rows[5 * step : 5 * step + 5]
        batch = loads.batch_at(step)
        expected = [
            (r.index, *r.response["labels"], None, tuple(r.responses[0])) for r in own
        ]
        expected += [
            (r.index, 0, None, tuple(own[(i + 1) % 5].responses[0]))
            for i, r in enumerate(own)
        ]
        assert seen(batch) == sorted(expected, key=str)
        facts = loads.facts(step)
        assert facts["scored"] == (batch.slots < batch.ends.shape[-1]).sum()
        assert facts["tokens"] == (batch.docs > 0).sum()
        assert facts["pairs"] == 5


def test_joined_lengths_decide_the_shapes():
    """Documents of 10 + 10 tokens become 10 + 10 + 10: two a row of 48, no longer."""
    rows = [
        Record(i, np.full(10, i, np.int32), (np.full(10, i, np.int32),), response=ONE)
        for i in range(8)
    ]
    settings = Settings(4, 1, "prefix_shared", 48, 1)
    order = loader.eval_steps(8, pairs=4)
    assert Loader(rows, order, settings).batch_at(0).tokens.shape == (1, 2, 48)
    joined = Loader(rows, order, settings, FIRST)
    assert joined.batch_at(0).tokens.shape == (1, 4, 48)
    chosen = Loader(rows, order, Settings(4, 1, "padded", 0, 1), FIRST)
    assert chosen.row_tokens == 24 and chosen.batch_at(1).tokens.shape == (1, 8, 24)


def test_two_processes_share_out_joined_rows():
    whole = of_kind("singles", "packed", 2, pairs=5, join=FIRST).batch_at(1)
    for number in range(2):
        here = every(number, 2)
        part = of_kind("singles", "packed", 2, pairs=5, join=FIRST, rows_here=here)
        leaves = jax.tree.leaves(part.batch_at(1))
        for mine, leaf in zip(leaves, jax.tree.leaves(whole), strict=True):
            np.testing.assert_array_equal(mine, leaf[:, number::2])


def test_new_shapes_are_those_that_no_step_had_since_the_first():
    """Rows 10 (steps 1, 2, 4, …) and 20 (step 3): resumed behind 3, only 10."""
    one = Record(0, np.ones(2, np.int32), (np.ones(6, np.int32),))
    rows = [one._replace(index=i) for i in range(40)]
    steps = [list(range(20)) if n == 2 else list(range(10)) for n in range(40)]
    loads = Loader(rows, steps, Settings(20, 1, "padded", 8, 1))
    assert loads.buckets == (10, 20)
    assert loads.new_shapes(0) == {1, 3}
    assert loads.new_shapes(2) == {3, 4}
    assert loads.new_shapes(3) == {4}
