"""Statistics of differences, against loops, hand-computed values and simulation."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from dpo_jax.report import stats
from dpo_jax.report.stats import Mean, bootstrap, effects, holm, mean_of


def with_few_draws(values):
    found = effects(values)
    return Mean(found.mean, float(bootstrap(found, 400).std()), found.df)


VALUES = np.array([[1.0, 2.0, 6.0], [3.0, 2.0, 10.0]])


def test_effects_by_hand():
    """Means of rows 3 and 5, of columns 2, 2, 8, of all 4.

    M_s = 3 (1 + 1) / 1 = 6. M_p = 2 (4 + 4 + 16) / 2 = 24. The rest: rows (0, 1, −1),
    (0, −1, 1), so M_e = 4 / 2 = 2. Excess 22, shrinkage √(22/24).
    df = 28² / (6²/1 + 24²/2 + 2²/2).
    """
    found = effects(VALUES)
    assert found.mean == 4.0
    np.testing.assert_allclose(found.seeds, [-1, 1])
    np.testing.assert_allclose(found.prompts, np.sqrt(22 / 24) * np.array([-2, -2, 4]))
    assert found.df == pytest.approx(28**2 / (36 + 288 + 2))


def test_the_bootstrap_has_the_variance_of_the_model():
    """Var of the mean by hand: (6 + 22) / (2·3)."""
    draws = bootstrap(effects(VALUES), 200_000)
    assert draws.mean() == pytest.approx(4.0, abs=0.02)
    assert draws.var() == pytest.approx(28 / 6, rel=0.01)
    rng = np.random.default_rng(3)  # and by taking every draw as a loop takes it
    found, looped = effects(VALUES), []
    for _ in range(20_000):
        seed = found.seeds[rng.integers(2)]
        prompts = [found.prompts[rng.integers(3)] for _ in range(2)]
        looped.append(found.mean + seed + sum(prompts) / 2)
    assert np.var(looped) == pytest.approx(28 / 6, rel=0.04)


def test_draws_are_always_the_same():
    assert (bootstrap(effects(VALUES)) == bootstrap(effects(VALUES))).all()


@pytest.mark.parametrize("shape", [(1, 40), (12, 1)])
def test_one_seed_or_one_prompt_is_a_t_test_over_the_other(shape):
    values = np.random.default_rng(0).normal(0.3, 1.0, shape)
    mean, known = mean_of(values), scipy_stats.ttest_1samp(values.ravel(), 0.0)
    assert mean.df == known.df
    assert mean.se == pytest.approx(
        values.std(ddof=1) / math.sqrt(values.size), rel=0.03
    )
    assert mean.p == pytest.approx(known.pvalue, rel=0.15)
    low, high = known.confidence_interval(0.95)
    assert mean.interval == pytest.approx((low, high), abs=0.03)


def test_prompts_that_say_nothing_leave_a_t_test_over_seeds():
    """Row effects alone and residuals that make M_p < M_e: no excess."""
    rest = np.array([[1.0, -1.0], [-1.0, 1.0], [0.0, 0.0]])
    values = np.array([[0.0], [1.0], [5.0]]) + rest
    known = scipy_stats.ttest_1samp(values.mean(1), 0.0)
    mean = mean_of(values)
    assert mean.df == pytest.approx(2.0)
    assert mean.p == pytest.approx(known.pvalue, rel=0.05)


def test_ties_are_no_effect_and_no_nan():
    same = mean_of(np.zeros((3, 4)))
    assert (same.mean, same.se, same.p) == (0.0, 0.0, 1.0)
    assert same.interval == (0.0, 0.0)
    always = mean_of(np.full((3, 4), 0.1))
    assert always.p == 0.0 and always.se == 0.0
    alone = mean_of(np.array([[2.0]]))
    assert alone.mean == 2.0 and math.isnan(alone.se) and math.isnan(alone.p)


def test_holm_by_hand():
    """.005·4, .01·3, .03·2, then .04·1 raised to the one before."""
    corrected = holm([0.01, 0.04, 0.03, 0.005])
    assert corrected == pytest.approx([0.03, 0.06, 0.06, 0.02])
    with_gap = holm([math.nan, 0.6, 0.04])
    assert math.isnan(with_gap[0]) and with_gap[1:] == pytest.approx([0.6, 0.08])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_smallest_effect_is_seen_with_its_power():
    """Of many prompts t is normal: (1.960 + 0.842) SE; in 80 of 100 simulations."""
    found = stats.smallest_effect(Mean(0.0, 0.1, 1e9), 1)
    assert found == pytest.approx((1.959964 + 0.841621) * 0.1, rel=1e-5)
    more = stats.smallest_effect(Mean(0.0, 0.1, 1e9), 5)  # z of .995
    assert more == pytest.approx((2.575829 + 0.841621) * 0.1, rel=1e-5)
    random, seen = np.random.default_rng(0), 0
    for _ in range(400):
        seen += with_few_draws(random.normal(found, 1.0, (1, 100))).p < 0.05
    assert 0.75 < seen / 400 < 0.85


@pytest.mark.parametrize(
    "seeds, spread",
    [(3, (0.3, 0.0)), (3, (0.0, 0.5)), (3, (0.3, 0.5)), (5, (1.0, 0.0)), (2, (1, 0))],
)
def test_false_positives_come_at_the_nominal_rate(seeds, spread):
    """No effect; noise of a sample is 1, that of seeds and prompts besides: 5 %."""
    random, hits = np.random.default_rng(1), 0
    of_seeds, of_prompts = spread
    for _ in range(600):
        values = random.normal(0.0, 1.0, (seeds, 50))
        values += random.normal(0.0, of_seeds, (seeds, 1))
        values += random.normal(0.0, of_prompts, (1, 50))
        hits += with_few_draws(values).p < 0.05
    assert 0.015 < hits / 600 < 0.08
