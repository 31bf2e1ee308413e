"""The estimator of best-of-N against all subsets, and against an exact expectation."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import exact
from dpo_jax.evals import best_of


def by_subsets(scores, values, m):
    """The mean over all subsets of m of the mean value of their best."""
    kept = []
    for subset in itertools.combinations(range(len(scores)), m):
        best = max(scores[i] for i in subset)
        kept.append(np.mean([values[i] for i in subset if scores[i] == best]))
    return np.mean(kept)


@pytest.mark.parametrize("m", range(1, 7))
@pytest.mark.parametrize("levels", [100, 3], ids=["without ties", "with ties"])
def test_it_is_the_mean_over_all_subsets(m, levels):
    rng = np.random.default_rng(levels + m)
    scores = rng.integers(0, levels, (4, 6)).astype(float)
    values = rng.normal(size=(4, 6))
    for truth in (scores, values):
        want = [by_subsets(*pair, m) for pair in zip(scores, truth, strict=True)]
        np.testing.assert_allclose(best_of.expected_best(scores, truth, m), want)


def test_by_hand():
    """Of 1, 2, 5 the best of two is 2, 5, 5: 4; of one their mean, of three 5."""
    scores = np.array([[1.0, 5.0, 2.0]])
    got = [best_of.expected_best(scores, scores, m)[0] for m in (1, 2, 3)]
    np.testing.assert_allclose(got, [8 / 3, 4.0, 5.0])


def test_more_samples_are_never_worse_and_equal_ones_no_better():
    """By the score itself; of n samples the best of n is the maximum."""
    rng = np.random.default_rng(5)
    scores = rng.normal(size=(3, 7))
    curve = np.array([best_of.expected_best(scores, scores, m) for m in range(1, 8)])
    assert (np.diff(curve, axis=0) >= 0).all()
    np.testing.assert_allclose(curve[0], scores.mean(1))
    np.testing.assert_allclose(curve[-1], scores.max(1))
    flat = np.full((1, 7), 2.5)
    found = [best_of.expected_best(flat, flat, m)[0] for m in range(1, 8)]
    np.testing.assert_allclose(found, 2.5)
    assert np.isnan(best_of.expected_best(flat, flat, 8)).all()  # more than there are


def test_it_has_no_bias():
    """Over all 3⁴ draws of four from a set of three: the exact best of 2 and 3."""
    ref, rewards = np.array([0.2, 0.5, 0.3]), np.array([1.0, 0.0, 3.0])
    draws = np.array(list(itertools.product(range(3), repeat=4)))
    chances = ref[draws].prod(1)
    for m in (2, 3):
        mean = chances @ best_of.expected_best(rewards[draws], rewards[draws], m)
        best = exact.best_of_n(jnp.log(ref), jnp.asarray(rewards), n=m)
        np.testing.assert_allclose(mean, np.exp(best) @ rewards, rtol=1e-5)


def test_what_is_absent_takes_no_part():
    scores = np.array([[1.0, np.nan, 2.0], [np.nan, np.nan, 4.0]])
    got = best_of.expected_best(scores, scores, 2)
    assert got[0] == 2.0 and np.isnan(got[1])


def test_many_samples_do_not_overflow():
    scores = np.arange(4096.0)[None]
    assert best_of.expected_best(scores, scores, 4096)[0] == 4095.0
    np.testing.assert_allclose(best_of.weights(scores[0], 1000).sum(), 1.0)


def test_the_sizes_of_a_curve():
    assert [best_of.sizes(n) for n in (1, 2, 4, 6)] == [[], [2], [2, 4], [2, 4, 6]]
