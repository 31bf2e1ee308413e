"""Batches as a function of the step."""

import numpy as np
import pytest

from dpo_jax.data import loader
from dpo_jax.data.loader import Loader, Settings
from dpo_jax.types import Batch, Record

REQUIRED = [name for name in Batch._fields if name not in Batch._field_defaults]


def records(n, seed=0):
    rng = np.random.default_rng(seed)

    def ids(low, high):
        return rng.integers(1, 50, rng.integers(low, high)).astype(np.int32)

    return [Record(i, ids(2, 9), (ids(1, 9), ids(1, 9))) for i in range(n)]


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
    assert len(shapes) == len(loads.compiled_shapes()) <= len(loader.QUANTILES)
    assert sum(loads.compiled_shapes().values()) == 40
    assert {s[1] for s in shapes} == set(loads.compiled_shapes())


def test_two_hosts_hold_the_two_halves():
    whole = make(shards=2)
    halves = [make(shards=2, mine=m) for m in ((0.0, 0.5), (0.5, 1.0))]
    batch = whole.batch_at(2)
    parts = [half.batch_at(2) for half in halves]
    for name in REQUIRED:
        a, b, c = (getattr(each, name) for each in (batch, *parts))
        np.testing.assert_array_equal(a, np.concatenate([b, c], axis=1))


def test_iterating_from_a_step_equals_asking_for_it():
    loads = make()
    for step, batch in enumerate(loads.iterate(2, threads=2, ahead=2), start=2):
        np.testing.assert_array_equal(batch.tokens, loads.batch_at(step).tokens)
    assert step == 5


def test_dealing_is_even():
    """9 | 7, then 6 to the second (13), 5 to the first (14), 5 to the second."""
    assert loader.deal([5, 9, 6, 7, 5], 2) == [[0, 1], [2, 3, 4]]


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


def test_a_bucket_must_be_worth_its_compilation():
    """Half of the steps need 10 rows, one 20; 19 would save too little."""
    assert loader.row_buckets([10] * 6 + [19] * 4 + [20], 1) == (10, 20)
    assert loader.row_buckets([20, 21, 22], 1) == (22,)
    assert loader.row_buckets([3, 5, 9], 8) == (8, 16)
