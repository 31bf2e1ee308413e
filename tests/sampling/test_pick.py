"""Truncations against sorting in NumPy, and frequencies against the softmax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.errors import ConfigError
from dpo_jax.sampling import pick

LOGITS = np.log(np.array([0.4, 0.05, 0.3, 0.15, 0.1], np.float32))
DRAWS = 20_000


def kept(warp, value, logits=LOGITS):
    return np.flatnonzero(np.isfinite(warp(jnp.asarray(logits), value))).tolist()


def test_truncations_by_hand():
    assert kept(pick.keep_top_k, 2) == [0, 2]
    assert kept(pick.keep_top_k, 9) == [0, 1, 2, 3, 4]
    assert kept(pick.keep_top_p, 0.39) == [0]
    assert kept(pick.keep_top_p, 0.41) == [0, 2]
    assert kept(pick.keep_top_p, 0.84) == [0, 2, 3]
    assert kept(pick.keep_top_p, 0.96) == [0, 1, 2, 3, 4]
    assert kept(pick.keep_min_p, 0.3) == [0, 2, 3]
    assert kept(pick.keep_min_p, 1.0) == [0]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_sum_that_is_just_enough_needs_no_more(count):
    """Chances of ½, ¼, ⅛, ⅛ add up without rounding; p is one of their sums."""
    logits = np.log(np.array([0.125, 0.5, 0.125, 0.25], np.float32))
    p = [0.5, 0.75, 1.0][count - 1]
    due = {1: [1], 2: [1, 3], 3: [0, 1, 2, 3]}[count]
    assert kept(pick.keep_top_p, p, logits) == due


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.99])
def test_the_nucleus_is_that_of_a_sort(p):
    logits = 3 * np.random.default_rng(0).normal(size=2000).astype(np.float32)
    probs = np.exp(logits.astype(np.float64))
    probs /= probs.sum()
    order = np.argsort(-probs)
    count = np.searchsorted(np.cumsum(probs[order]), p) + 1
    assert kept(pick.keep_top_p, p, logits) == sorted(order[:count].tolist())


CASES = {
    "plain": ({"temperature": 1.0}, [0, 1, 2, 3, 4]),
    "hot": ({"temperature": 2.0}, [0, 1, 2, 3, 4]),
    "cold": ({"temperature": 0.5}, [0, 1, 2, 3, 4]),
    "top_k": ({"temperature": 1.0, "top_k": 3}, [0, 2, 3]),
    "top_p": ({"temperature": 1.0, "top_p": 0.8}, [0, 2, 3]),
    "min_p": ({"temperature": 1.0, "min_p": 0.2}, [0, 2, 3, 4]),
    # .15 after √: p^½ normalised is .29 .10 .25 .18 .15; of four .33 .29 .20 .17
    "all": (
        {"temperature": 2.0, "top_k": 4, "top_p": 0.8, "min_p": 0.1},
        [0, 2, 3],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_frequencies_follow_the_truncated_softmax(name):
    """Chi-square of 20,000 draws below its 99.9 % quantile (18.5 at 4 degrees)."""
    options, tokens = CASES[name]
    keys = jax.random.split(jax.random.key(7), DRAWS)
    draw = jax.jit(
        jax.vmap(functools.partial(pick.sampler(**options), jnp.array(LOGITS)))
    )
    drawn, logps = draw(keys)
    counts = np.bincount(np.asarray(drawn), minlength=5)
    weights = np.zeros(5)
    weights[tokens] = np.exp(LOGITS[tokens] / options["temperature"])
    weights /= weights.sum()
    np.testing.assert_allclose(np.exp(logps), weights[drawn], rtol=1e-5)
    expected = DRAWS * weights
    assert not counts[expected == 0].any()
    some = expected > 0
    chi_square = ((counts - expected)[some] ** 2 / expected[some]).sum()
    assert chi_square < {2: 13.8, 3: 16.3, 4: 18.5}[some.sum() - 1]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_scored_distribution_is_the_drawn_one(temperature):
    """Σ p(a)·∇log p(a) = 0 where both are the same, by a sum over all six tokens.

    ∇ of log-softmax(logits/T) at token a is (1[a] − p)/T; a temperature that only the
    draw knows leaves the mean off zero.
    """
    logits = 0.5 * np.random.default_rng(3).normal(size=6).astype(np.float32)
    draw = pick.sampler(temperature=temperature)
    keys = jax.random.split(jax.random.key(0), 4000)
    tokens, logps = jax.vmap(draw, in_axes=(None, 0))(jnp.asarray(logits), keys)
    drawn = np.array([np.asarray(logps)[np.asarray(tokens) == a][0] for a in range(6)])
    probs = np.exp(drawn.astype(np.float64))
    np.testing.assert_allclose(probs.sum(), 1, rtol=1e-6)

    def mean_score(scored_at):
        scored = jax.grad(lambda x, a: jax.nn.log_softmax(x / scored_at)[a])
        each = np.array([scored(jnp.asarray(logits), a) for a in range(6)])
        return np.abs(probs @ each).max()

    assert mean_score(temperature) < 1e-6
    assert mean_score(1.4) > 0.01


def test_a_draw_is_that_of_jax():
    """32 rows of 1,000 logits, side by side: token for token `categorical`."""
    logits = 3 * np.random.default_rng(1).normal(size=(1000, 32)).astype(np.float32)
    keys = jax.random.split(jax.random.key(3), 32)
    draw = lambda how: jax.jit(jax.vmap(how, in_axes=(1, 0)))(logits, keys)  # noqa: E731
    found, _ = draw(pick.sampler(temperature=0.7))
    wanted = draw(lambda row, key: jax.random.categorical(key, row / 0.7))
    np.testing.assert_array_equal(found, wanted)
    assert len(set(found.tolist())) > 10


def test_the_first_of_equals_is_the_largest():
    for row in ([1.0, 3.0, 3.0], [3.0, 3.0, 3.0], [0.0, 1.0, 2.0], [-np.inf, -2, -2]):
        assert pick._largest(jnp.array(row)) == np.argmax(row)


def test_values_that_make_no_sense_are_refused_together():
    with pytest.raises(ConfigError) as caught:
        pick.sampler(temperature=-1.0, top_k=-2, top_p=0.0, min_p=1.5)
    for name in ("temperature=-1.0", "top_k=-2", "top_p=0.0", "min_p=1.5"):
        assert name in str(caught.value)
    with pytest.raises(ConfigError, match="not used by temperature=0"):
        pick.sampler(temperature=0.0, top_k=5)
    assert pick.sampler(temperature=0.0) is pick.greedy
