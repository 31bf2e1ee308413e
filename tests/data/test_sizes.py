"""Sizes of rows, and numbers of rows to compile for."""

from itertools import combinations

import numpy as np
import pytest

from dpo_jax.data import sizes


def test_sizes_of_rows_to_choose_from():
    """Multiples of 8 to 128, of 128 beyond; up to there where two documents fit."""
    choices = sizes.row_token_choices
    assert choices("packed", 60) == [64, 72, 80, 88, 96, 104, 112, 120, 128]
    assert choices("packed", 100)[:5] == [104, 112, 120, 128, 256]
    assert choices("prefix_shared", 1700) == [1792, 1920, 2048]
    assert choices("prefix_shared", 3000) == [3072]
    assert choices("padded", 60) == [64] and choices("padded", 700) == [768]


def test_a_bucket_must_be_worth_its_compilation():
    """Of 20 rows a quarter is 5: what 5 steps of 19 save by a bucket of their own."""
    assert sizes.row_buckets([10] * 26 + [19] * 4 + [20] * 2, 1) == (10, 20)
    assert sizes.row_buckets([10] * 24 + [19] * 6 + [20] * 2, 1) == (10, 19, 20)
    assert sizes.row_buckets([22] * 30 + [20, 21], 1) == (22,)
    assert sizes.row_buckets([3, 5, 9] * 11, 8) == (8, 16)


def padded_rows(counts, buckets):
    return sum(min(b for b in buckets if b >= count) for count in counts)


@pytest.mark.parametrize("seed", range(4))
def test_no_other_buckets_are_better(seed):
    """All subsets of the sizes that hold every step, with the price of each member."""
    counts = np.random.default_rng(seed).integers(10, 19, sizes.SHORT_RUN)
    *smaller, most = sorted(set(counts.tolist()))
    every = [
        (*some, most)
        for n in range(sizes.MOST_BUCKETS)
        for some in combinations(smaller, n)
    ]
    price = sizes.WORTH_COMPILING * most

    def cost(buckets):
        return padded_rows(counts, buckets) + price * len(buckets)

    found = sizes.row_buckets(counts, 1)
    assert found in every and cost(found) == min(map(cost, every))
    assert len(sizes.row_buckets(np.repeat(np.arange(1, 30), 99), 1)) == 6


def test_a_short_run_compiles_one_number_of_rows():
    counts = [10] * (sizes.SHORT_RUN - 1)
    counts[0] = 20
    assert sizes.row_buckets(counts, 1) == (20,)
    assert sizes.row_buckets([*counts, 10], 1) == (10, 20)
    assert sizes.row_buckets(counts, 1, 3) == (10, 20)  # asked for, and no third
    assert sizes.row_buckets([4, 9, 5, 8, 4], 1, 2) == (5, 9)
