"""Moments of scores, against NumPy and by hand."""

import numpy as np
import pytest

from dpo_jax.errors import ModelError
from dpo_jax.rewards.standard import Moments, moments


def test_moments_by_hand():
    """1, 2, 6: mean 3, squares 4 + 1 + 9 over 2."""
    found = moments(np.float32([1, 2, 6]))
    assert found == pytest.approx(Moments(3.0, 7**0.5))
    moved = found.standardized(np.float32([3.0, 3.0 + 7**0.5, np.nan]))
    np.testing.assert_allclose(moved, [0.0, 1.0, np.nan], atol=1e-6)
    assert moved.dtype == np.float32


def test_moments_of_scores_far_from_zero():
    """In float32 the squares of such scores would have no digit left for the spread."""
    scores = np.random.default_rng(0).normal(3e4, 0.5, 999).astype(np.float32)
    found, exact = moments(scores), scores.astype(np.float64)
    assert found.mean == pytest.approx(exact.mean(), rel=1e-12)
    assert found.deviation == pytest.approx(exact.std(ddof=1), rel=1e-9)
    moved = found.standardized(scores).astype(np.float64)
    assert abs(moved.mean()) < 0.01 and moved.std(ddof=1) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("scores", [[2.0, 2.0], [1.0, np.nan]])
def test_scores_without_a_deviation_are_refused(scores):
    with pytest.raises(ModelError, match="reward.standardize=2: .*which none can be"):
        moments(np.float32(scores))
