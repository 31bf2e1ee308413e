"""Permutations drawn at once are those that grain draws one by one."""

import grain
import numpy as np
import pytest

from dpo_jax.data import permutations


@pytest.mark.parametrize("seed", [0, 3, 2**32 - 1])
@pytest.mark.parametrize("size", [1, 2, 3, 10, 257, 2304, 65_536, 65_538, 300_000])
def test_grain_draws_the_same(size, seed):
    """Sizes on both sides of 2^16, where grain's block grows; the second epoch too."""
    drawn = permutations.epochs(size, 2, seed)
    order = grain.MapDataset.range(size).seed(seed).shuffle().repeat(None)
    some = np.random.default_rng(0).integers(0, 2 * size, 60)
    for at in {0, size - 1, size, 2 * size - 1, *some.tolist()}:
        assert drawn[at] == order[at]


@pytest.mark.parametrize("size", [1, 2, 1000, 65_537])
def test_every_record_is_drawn_once(size):
    """Of 2^16 + 1 records grain draws one twice."""
    np.testing.assert_array_equal(
        np.sort(permutations.permutation(size, 7)), np.arange(size)
    )


def test_epochs_differ():
    first, second = permutations.epochs(100, 2, 0).reshape(2, 100)
    assert (first != second).any() and (first != np.arange(100)).any()
