"""The frontier against closed forms, and who is flagged above it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import exact
from dpo_jax.evals import frontier

RNG = np.random.default_rng(0)
N, K = 5, 7
LOGITS = RNG.normal(size=(N, K))
REF = LOGITS - np.log(np.exp(LOGITS).sum(1, keepdims=True))
REWARDS = RNG.normal(size=(N, K))
BETAS = np.array([0.2, 0.5, 1.0, 3.0])


def optimum(beta):
    logits = REF + REWARDS / beta
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def expected(logps):
    """Exact reward and KL of each prompt."""
    probs = np.exp(logps)
    return (probs * REWARDS).sum(1), (probs * (logps - REF)).sum(1)


def test_of_two_responses_by_hand():
    """ref (½, ½), rewards 0, 1: the odds are e^(1/β); V = β ln((1 + e^(1/β))/2)."""
    rewards, half = np.array([[0.0, 1.0]] * 2), np.full((2, 2), -np.log(2))
    for beta in (0.5, 2.0):
        p = 1 / (1 + np.exp(-1 / beta))
        kl = np.log(2) + p * np.log(p) + (1 - p) * np.log(1 - p)
        curve = frontier.frontier(rewards, [beta], half)
        np.testing.assert_allclose([curve.reward[0], curve.kl[0]], [p, kl])
        assert curve.reward_se[0] == curve.kl_se[0] == 0.0 and curve.trusted[0]
        value = beta * np.log((1 + np.exp(1 / beta)) / 2)
        np.testing.assert_allclose(frontier.soft_values(rewards, beta), [value] * 2)


def test_an_enumerated_set_has_the_exact_frontier():
    curve = frontier.frontier(REWARDS, BETAS, REF)
    for i, beta in enumerate(BETAS):
        each = jax.vmap(lambda r, x, b=beta: exact.frontier(r, x, beta=b))
        want = each(jnp.asarray(REF), jnp.asarray(REWARDS))
        np.testing.assert_allclose(curve.kl[i], want.kl.mean(), rtol=1e-5)
        np.testing.assert_allclose(curve.reward[i], want.reward.mean(), rtol=1e-5)
        error = np.asarray(want.reward).std(ddof=1) / np.sqrt(N)
        np.testing.assert_allclose(curve.reward_se[i], error, rtol=1e-4)
    slope = np.diff(curve.reward) / np.diff(curve.kl)  # dE[r]/dKL = β
    assert ((BETAS[:-1] < slope) & (slope < BETAS[1:])).all()


def test_samples_of_normal_rewards_have_the_parabola():
    """r ~ N(μ, σ²) under ref: E*[r] = μ + σ²/β at KL σ²/(2β²), so r = μ + σ√(2 KL)."""
    mean, deviation, beta = 0.3, 2.0, 2.5
    samples = np.random.default_rng(1).normal(mean, deviation, (64, 4000))
    curve = frontier.frontier(samples, [beta])
    want = mean + deviation**2 / beta, deviation**2 / (2 * beta**2)
    assert abs(curve.reward[0] - want[0]) < 3 * curve.reward_se[0] < 0.1
    assert abs(curve.kl[0] - want[1]) < 3 * curve.kl_se[0] < 0.05
    assert curve.trusted[0]
    assert not frontier.frontier(samples[:, :16], [0.3]).trusted[0]


def test_the_sampled_frontier_is_that_of_the_house():
    curve = frontier.frontier(REWARDS, BETAS)
    for i, beta in enumerate(BETAS):
        want, trusted = exact.sampled_frontier(jnp.asarray(REWARDS), beta=beta)
        np.testing.assert_allclose(curve.kl[i], want.kl, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(curve.reward[i], want.reward, rtol=1e-5)
        assert curve.trusted[i] == trusted


def test_the_optimum_lies_on_it_and_any_other_policy_beneath():
    """E[r] − β·KL(π‖ref) − V = −β·KL(π‖π*)."""
    for beta in BETAS:
        on = frontier.excess(*expected(optimum(beta)), REWARDS, BETAS, REF)
        assert on.beta == beta and abs(on.value) < 1e-12 and on.se < 1e-12
        other = RNG.normal(size=(N, K))
        other -= np.log(np.exp(other).sum(1, keepdims=True))
        below = frontier.excess(*expected(other), REWARDS, [beta], REF)
        apart = (np.exp(other) * (other - optimum(beta))).sum(1).mean()
        np.testing.assert_allclose(below.value, -beta * apart)
        assert not below.flagged


@pytest.mark.parametrize(("more", "share"), [(0.0, (0.0, 0.02)), (0.6, (0.9, 1.0))])
def test_only_what_is_above_by_more_than_noise_is_flagged(more, share):
    """400 runs of the optimum, 8 samples of each of 40 prompts, log-ratios as KL."""
    rng, flagged, beta = np.random.default_rng(2), [], 1.0
    prompts = np.repeat(np.arange(N), 8)
    probs = np.exp(optimum(beta))
    for _ in range(400):
        drawn = np.array([rng.choice(K, 8, p=probs[i]) for i in prompts])
        rewards = REWARDS[prompts[:, None], drawn]
        ratios = (optimum(beta) - REF)[prompts[:, None], drawn]
        found = frontier.excess(
            rewards + more, ratios, REWARDS[prompts], [0.6, 0.8, 1.25, 2], REF[prompts]
        )
        flagged.append(found.flagged)
    assert share[0] <= np.mean(flagged) <= share[1]


def test_best_of_lies_beneath_the_frontier_and_its_kl_beneath_the_bound():
    for m in (2, 4):
        each = jax.vmap(lambda r, x, m=m: exact.best_of_n(r, x, n=m))
        logps = np.asarray(each(jnp.asarray(REF), jnp.asarray(REWARDS)), np.float64)
        rewards, kls = expected(logps)
        assert kls.mean() <= np.log(m) - (m - 1) / m
        betas = frontier.grid(REWARDS)
        assert frontier.excess(rewards, kls, REWARDS, betas, REF).value < 0
    drawn = np.random.default_rng(3).normal(size=(30, 8))
    curve = frontier.best_of_curve(drawn, drawn)
    assert [each.m for each in curve] == [2, 4, 8]
    np.testing.assert_allclose(curve[2].reward, drawn.max(1).mean())
    np.testing.assert_allclose(curve[1].kl_bound, exact.best_of_n_kl_bound(4))


def test_samples_without_a_verdict_are_as_if_they_were_not_drawn():
    """Two prompts, 64 and 48 of their 64 samples known; one verdict is not a curve."""
    drawn = np.random.default_rng(4).normal(size=(2, 64))
    some = drawn.copy()
    some[1, ::4] = np.nan
    curve = frontier.frontier(some, [1.5])
    alone = [frontier.soft_values(row[None, ~np.isnan(row)], 1.5)[0] for row in some]
    np.testing.assert_allclose(frontier.soft_values(some, 1.5), alone)
    assert np.isfinite([curve.kl, curve.reward, curve.reward_se]).all()
    bests = frontier.best_of_curve(some, some)
    assert [each.m for each in bests] == [2, 4, 8, 16, 32]  # of 64 one prompt has 48
    weights = np.exp(some[0] / 1.5) / np.exp(some[0] / 1.5).sum()
    ess = frontier.frontier(some[[0, 0]], [1.5]).samples[0]
    np.testing.assert_allclose(ess, 1 / np.square(weights).sum())


def test_few_samples_that_carry_the_weight_are_not_trusted():
    """31 equal rewards carry all of the weight of 1,000; or 29, beneath the least."""
    for carrying, trusted in ((31, True), (29, False)):
        rewards = np.zeros((2, 1000))
        rewards[:, :carrying] = 1.0
        curve = frontier.frontier(rewards, [0.05])
        np.testing.assert_allclose(curve.samples, carrying, rtol=1e-4)
        assert curve.kl[0] < np.log(1000) - 2 and curve.trusted[0] == trusted


def test_the_optimum_of_few_samples_is_not_above_by_their_bias():
    """r ~ N(0, 1): V_1 = ½ in truth. 64 samples say less on average; corrected, not."""
    rng, raw, corrected = np.random.default_rng(5), [], []
    for _ in range(400):
        ref = rng.normal(size=(50, 64))
        raw.append(0.5 - frontier.soft_values(ref, 1.0).mean())
        found = frontier.excess(np.full(50, 1.0), np.full(50, 0.5), ref, [1.0])
        corrected.append(found.value)
    error = np.std(corrected) / np.sqrt(400)
    assert np.mean(raw) > 6 * error and abs(np.mean(corrected)) < 3 * error


def test_equal_rewards_have_a_frontier_of_one_point():
    same = np.full((3, 40), 0.25)
    curve = frontier.frontier(same, frontier.grid(same))
    np.testing.assert_allclose(curve.kl, 0.0, atol=1e-12)
    np.testing.assert_allclose(curve.reward, 0.25)
