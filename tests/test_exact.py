"""Closed forms by hand and by independent formulas.

What a loss converges to is tested in `tests/experiments`.
"""

import itertools

import jax
import numpy as np
import pytest

from dpo_jax import exact

pytestmark = pytest.mark.usefixtures("in_float64")

# One compiled program a call in place of one an operation.
best_of_n = jax.jit(exact.best_of_n)
expected_reward = jax.jit(exact.expected_reward)
frontier = jax.jit(exact.frontier)
frontier_beta = jax.jit(exact.frontier_beta)
frontier_gaps = jax.jit(jax.vmap(exact.frontier_gap, (0, None, None)))
frontier_reward = jax.jit(exact.frontier_reward)
ipo_optimum = jax.jit(exact.ipo_optimum)
kl = jax.jit(exact.kl)
objective = jax.jit(exact.objective)
optimal_policy = jax.jit(exact.optimal_policy)
soft_value = jax.jit(exact.soft_value)


def world(seed, responses=6):
    rng = np.random.default_rng(seed)
    ref = np.log(rng.dirichlet(np.full(responses, 2.0)))
    return ref, rng.normal(size=responses)


def log_softmax(scores):
    return scores - np.log(np.exp(scores).sum())


def test_optimal_policy_by_hand():
    """ref (.5, .25, .25), r = (0, ln 2, ln 4), β = 1: (.5, .5, 1) / 2."""
    ref, rewards = np.log(np.array([0.5, 0.25, 0.25])), np.log(np.array([1, 2, 4]))
    got = optimal_policy(ref, rewards, beta=1.0)
    np.testing.assert_allclose(np.exp(got), [0.25, 0.25, 0.5], rtol=1e-6)


def test_kl_and_expected_reward_by_hand():
    """(1, 0) against (½, ½) is ln 2, and 0·log 0 is 0; ¼·2 + ¾·6 = 5."""
    sure, even = np.array([0.0, -np.inf]), np.log(np.array([0.5, 0.5]))
    np.testing.assert_allclose(kl(sure, even), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(kl(even, even), 0.0)
    logps = np.log(np.array([0.25, 0.75]))
    mean = expected_reward(logps, np.array([2.0, 6.0]))
    np.testing.assert_allclose(mean, 5.0, rtol=1e-6)


def test_objective_is_the_soft_value_less_the_distance_to_the_optimum():
    """A.1: J(π) = β log Z − β KL(π‖π*) for any π, so only π* attains β log Z."""
    (ref, rewards), beta = world(0), 0.7
    value = soft_value(ref, rewards, beta=beta)
    best = optimal_policy(ref, rewards, beta=beta)
    for seed in range(20):
        policy = world(100 + seed)[0]
        got = objective(policy, ref, rewards, beta=beta)
        np.testing.assert_allclose(got + beta * kl(policy, best), value, 1e-12)
        assert got < value


def test_soft_value_and_projection_by_hand():
    """ref (½, ½), r = (0, ln 3), β = 1: Z = 2, so r − log Z = (−ln 2, ln 3/2)."""
    ref, rewards = np.log(np.array([0.5, 0.5])), np.log(np.array([1.0, 3.0]))
    np.testing.assert_allclose(soft_value(ref, rewards, beta=1.0), np.log(2))
    got = jax.jit(exact.project)(ref, rewards, beta=1.0)
    np.testing.assert_allclose(got, [-np.log(2), np.log(1.5)], rtol=1e-12)


def test_bradley_terry_by_hand():
    """σ(ln 3) = ¾."""
    np.testing.assert_allclose(
        jax.jit(exact.bradley_terry)(np.log(3.0)), 0.75, rtol=1e-6
    )


def test_plackett_luce_is_a_distribution_over_rankings():
    """e^r = (1, 2, 3): P(3 ≻ 2 ≻ 1) = 3/6 · 2/3 = ⅓; all six sum to 1."""
    rewards = np.log([1.0, 2.0, 3.0])
    rankings = np.array(list(itertools.permutations(range(3))))
    logps = jax.jit(exact.plackett_luce)(rewards[rankings])
    np.testing.assert_allclose(np.exp(logps).sum(), 1.0, rtol=1e-12)
    best_first = rankings.tolist().index([2, 1, 0])
    np.testing.assert_allclose(np.exp(logps[best_first]), 1 / 3, rtol=1e-12)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_ipo_optimum_of_total_orders(beta):
    """All pairs of K ranked responses once: h of rank k is (K + 1 − 2k)/(2Kβ)."""
    for responses in (2, 3, 7):
        ref = world(1, responses)[0]
        wins = np.triu(np.ones((responses, responses)), 1)
        got = ipo_optimum(ref, wins, beta=beta)
        ranks = np.arange(1, responses + 1)
        h = (responses + 1 - 2 * ranks) / (2 * responses * beta)
        want = log_softmax(ref + h)
        np.testing.assert_allclose(got, want, atol=1e-10)


def test_ipo_optimum_leaves_what_was_not_compared():
    """Of two responses that tie and a third without a comparison, none moves."""
    ref = world(2, 3)[0]
    wins = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 0]])
    got = ipo_optimum(ref, wins, beta=0.1)
    np.testing.assert_allclose(got, ref, atol=1e-12)


def test_frontier_inverts_at_a_given_kl():
    """β -> KL -> β, and the reward at that KL is the optimum's."""
    ref, rewards = world(3)
    for beta in (0.05, 0.3, 1.0, 20.0):
        place = frontier(ref, rewards, beta=beta)
        found = frontier_beta(ref, rewards, place.kl)
        np.testing.assert_allclose(found, beta, rtol=1e-7)
        reward = frontier_reward(ref, rewards, place.kl)
        np.testing.assert_allclose(reward, place.reward, rtol=1e-10)


def test_frontier_ends_by_hand():
    """KL 0 buys E_ref[r]; any KL past −log ref(best) buys max r and no more."""
    ref, rewards = world(4)
    start = frontier_reward(ref, rewards, 0.0)
    np.testing.assert_allclose(start, expected_reward(ref, rewards), atol=1e-3)
    end = frontier_reward(ref, rewards, -ref.min() + 5.0)
    np.testing.assert_allclose(end, rewards.max(), atol=1e-3)


def test_no_policy_lies_above_the_frontier():
    ref, rewards = world(5)
    best = optimal_policy(ref, rewards, beta=0.4)
    policies = np.stack([*(world(200 + seed)[0] for seed in range(30)), best])
    gaps = frontier_gaps(policies, ref, rewards)
    assert gaps[:-1].min() > 0
    np.testing.assert_allclose(gaps[-1], 0, atol=1e-9)


def test_sampled_frontier_estimates_the_frontier():
    """Within 4 standard errors at KL ≈ .6, and it distrusts KL > ln M − 2."""
    ref, rewards = world(6)
    prompts, samples = 200, 1024
    rng = np.random.default_rng(0)
    drawn = rng.choice(len(ref), (prompts, samples), p=np.exp(ref) / np.exp(ref).sum())
    got, trusted = jax.jit(exact.sampled_frontier)(rewards[drawn], beta=0.5)
    want = frontier(ref, rewards, beta=0.5)
    assert trusted and want.kl > 0.3
    np.testing.assert_allclose(got.reward, want.reward, atol=4 * 0.05 / prompts**0.5)
    np.testing.assert_allclose(got.kl, want.kl, atol=4 * 0.05 / prompts**0.5)
    few, trusted = jax.jit(exact.sampled_frontier)(rewards[drawn[:, :16]], beta=0.01)
    assert not trusted and few.kl < np.log(16)


def test_sampled_frontier_follows_the_weights():
    """E = Σwr/Σw and KL = E/β − log mean w with w = e^(r/β)."""
    rewards, beta = np.array([0.0, 1.0, 1.0, 3.0]), 0.8
    weights = np.exp(rewards / beta)
    reward = (weights * rewards).sum() / weights.sum()
    got, _ = jax.jit(exact.sampled_frontier)(rewards, beta=beta)
    np.testing.assert_allclose(got.reward, reward, rtol=1e-12)
    np.testing.assert_allclose(got.kl, reward / beta - np.log(weights.mean()), 1e-12)


def test_best_of_n_with_ties_by_enumeration():
    """All 5^3 draws of 3, ties shared in proportion to the reference."""
    ref = np.array([0.1, 0.3, 0.2, 0.25, 0.15])
    rewards = np.array([1.0, 0.0, 1.0, 2.0, 0.0])
    want = np.zeros(5)
    for draw in itertools.product(range(5), repeat=3):
        best = rewards[list(draw)].max()
        tied = np.flatnonzero(rewards == best)
        share = ref[tied] / ref[tied].sum()
        want[tied] += np.prod(ref[list(draw)]) * share
    got = best_of_n(np.log(ref), rewards, n=3)
    np.testing.assert_allclose(np.exp(got), want, rtol=1e-12)


def test_best_of_one_is_the_reference_and_impossible_stays_impossible():
    ref, rewards = world(7)
    np.testing.assert_allclose(best_of_n(ref, rewards, n=1), ref, atol=1e-12)
    ref = np.array([np.log(0.5), -np.inf, np.log(0.5)])
    got = best_of_n(ref, np.array([0.0, 1.0, 2.0]), n=2)
    np.testing.assert_allclose(np.exp(got), [0.25, 0.0, 0.75], rtol=1e-12)


def test_best_of_n_kl_bound_by_hand():
    """N = 4: ln 4 − ¾ = .6363; attained in the limit of many equal, untied arms."""
    np.testing.assert_allclose(exact.best_of_n_kl_bound(4), 0.63629436, rtol=1e-7)
    arms = 4000
    ref = np.full(arms, -np.log(arms))
    spent = kl(best_of_n(ref, np.arange(arms) * 1.0, n=4), ref)
    assert 0 < exact.best_of_n_kl_bound(4) - spent < 1e-4


def test_chain_enumerates_and_its_kl_is_the_sequence_kl():
    """A bigram of 3 words, length 3, against sums over itertools' sequences."""
    rng = np.random.default_rng(8)

    def tables():
        shapes = ((3,), (3, 3), (1, 3, 3))
        raw = [rng.normal(size=shape) for shape in shapes]
        return [x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in raw]

    policy, ref = tables(), tables()
    logps = jax.jit(exact.chain)(policy)
    first, second, third = policy
    want = [
        first[a] + second[a, b] + third[0, b, c]
        for a, b, c in itertools.product(range(3), repeat=3)
    ]
    np.testing.assert_allclose(logps, want, rtol=1e-12)
    spent = kl(logps, jax.jit(exact.chain)(ref))
    got = jax.jit(exact.chain_kl)(policy, ref)
    np.testing.assert_allclose(got, spent, rtol=1e-12)
