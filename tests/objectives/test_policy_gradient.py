"""Advantages, clipped losses and the KL controller against definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.objectives import policy_gradient as pg

POISON = (1e9, np.nan, np.inf, -np.inf)


def lengths_mask(lengths, width):
    return np.arange(width) < np.array(lengths)[:, None]


@pytest.fixture
def draws():
    rng = np.random.default_rng(0)
    mask = lengths_mask([5, 1, 7, 3], 7)
    rewards, values = (rng.normal(size=mask.shape).astype(np.float32) for _ in "rv")
    return rewards, values, mask


def test_gae_is_its_sum_over_all_later_errors(draws):
    rewards, values, mask = draws
    gamma, lam = 0.9, 0.8
    found = pg.gae(rewards, values, mask, gamma=gamma, lam=lam)
    for row in range(len(mask)):
        size = int(mask[row].sum())
        after = np.append(values[row, 1:size], 0.0)
        errors = rewards[row, :size] + gamma * after - values[row, :size]
        for t in range(size):
            due = sum((gamma * lam) ** k * errors[t + k] for k in range(size - t))
            np.testing.assert_allclose(found[row, t], due, rtol=1e-5, atol=1e-6)
    assert np.all(np.asarray(found)[~mask] == 0)


def test_without_discount_the_return_is_the_score_at_every_token(draws):
    _, values, mask = draws
    rewards = np.zeros(mask.shape, np.float32)
    rewards[np.arange(4), mask.sum(1) - 1] = [1.0, 2.0, 3.0, 4.0]
    advantages = pg.gae(rewards, values, mask, gamma=1.0, lam=1.0)
    returns = np.asarray(advantages) + np.where(mask, values, 0)
    due = np.where(mask, np.array([1.0, 2.0, 3.0, 4.0])[:, None], 0.0)
    np.testing.assert_allclose(returns, due, atol=1e-5)


@pytest.mark.parametrize("poison", POISON)
def test_what_lies_behind_the_mask_reaches_no_value_and_no_gradient(draws, poison):
    rewards, values, mask = draws

    def everything(rewards, values):
        advantages = pg.gae(rewards, values, mask, gamma=0.9, lam=0.8)
        whitened = pg.whiten(advantages + values, mask)
        alone = pg.leave_one_out(rewards, mask)
        grouped = pg.group_standardized(rewards, mask)
        return (advantages + whitened + alone + grouped).sum()

    def poisoned(x):
        return np.where(mask, x, np.float32(poison))

    clean = jax.value_and_grad(everything, (0, 1))(rewards, values)
    dirty = jax.value_and_grad(everything, (0, 1))(poisoned(rewards), poisoned(values))
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)


def test_the_width_of_the_arrays_changes_no_advantage(draws):
    rewards, values, mask = draws
    wider = [np.pad(x, ((0, 0), (0, 3))) for x in draws]
    found = pg.gae(rewards, values, mask, gamma=1.0, lam=0.95)
    again = pg.gae(*wider, gamma=1.0, lam=0.95)
    np.testing.assert_array_equal(found, again[:, :7])


@pytest.mark.parametrize("value", [0.95, 0.35, 1 / 3])
def test_equal_rewards_give_exactly_no_advantage(value):
    rewards = np.full((2, 7), value, np.float32)
    mask = np.ones((2, 7), bool)
    for function in (pg.leave_one_out, pg.group_standardized, pg.whiten):
        assert np.all(np.asarray(function(rewards, mask)) == 0)


def test_one_sample_alone_has_no_advantage_and_none_is_not_finite():
    rewards, mask = np.array([[3.0, 9.0]]), np.array([[True, False]])
    for function in (pg.leave_one_out, pg.group_standardized, pg.whiten):
        np.testing.assert_array_equal(function(rewards, mask), [[0.0, 0.0]])
        empty = function(rewards, np.zeros((1, 2), bool))
        np.testing.assert_array_equal(empty, [[0.0, 0.0]])


def test_a_sample_is_compared_with_the_others_of_its_prompt():
    rewards = np.array([[1.0, 2.0], [10.0, 20.0]])
    found = pg.leave_one_out(rewards, np.ones((2, 2), bool))
    np.testing.assert_allclose(found, [[-1, 1], [-10, 10]])


def test_an_absent_sibling_is_as_if_it_had_never_been():
    rewards = np.array([[1.0, 5.0, 77.0, 3.0]])
    mask = np.array([[True, True, False, True]])
    for function in (pg.leave_one_out, pg.group_standardized):
        found = np.asarray(function(rewards, mask))
        three = function(rewards[:, [0, 1, 3]], np.ones((1, 3), bool))
        np.testing.assert_allclose(found[:, [0, 1, 3]], three, rtol=1e-6)
        assert found[0, 2] == 0


def test_group_deviations_are_bounded():
    rewards = np.array([[0.0] * 7 + [1e-3]])
    found = pg.group_standardized(rewards, np.ones((1, 8), bool))
    assert np.abs(found).max() <= 7 / np.sqrt(8) + 1e-6


def test_moments_are_those_of_the_whole_rollout():
    rewards = np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
    found = np.asarray(pg.whiten(rewards, np.ones((2, 3), bool)))
    due = (rewards - rewards.mean()) / rewards.std(ddof=1)
    np.testing.assert_allclose(found, due, rtol=1e-5)
    kept = np.asarray(pg.whiten(rewards, np.ones((2, 3), bool), shift=False))
    np.testing.assert_allclose(kept, due + rewards.mean(), rtol=1e-5)


def test_the_estimators_of_the_kl_have_the_right_value_and_k1_no_gradient():
    """E ∇k1 = 0 and E ∇k3 = ∇KL(ref‖π), by sums over all tokens."""
    logits, ref = np.random.default_rng(1).normal(size=(2, 6))
    ref_logps = jax.nn.log_softmax(ref)
    probs = jax.nn.softmax(logits)

    def expected(estimator, logits):
        logps = jax.nn.log_softmax(logits)
        each = pg.kl_penalty(logps, ref_logps, estimator=estimator)
        return (probs * each).sum()  # drawn from the policy as it stands

    true = (probs * (jax.nn.log_softmax(logits) - ref_logps)).sum()
    for name in pg.KL_ESTIMATORS:
        np.testing.assert_allclose(expected(name, logits), true, rtol=1e-5)
    of_k1, of_k3 = (
        jax.grad(expected, argnums=1)(name, logits) for name in pg.KL_ESTIMATORS
    )
    np.testing.assert_allclose(of_k1, 0.0, atol=1e-6)

    def reversed_kl(logits):
        logps = jax.nn.log_softmax(logits)
        return (jnp.exp(ref_logps) * (ref_logps - logps)).sum()

    np.testing.assert_allclose(of_k3, jax.grad(reversed_kl)(logits), rtol=1e-4)


def test_k3_is_never_negative_and_finite_whatever_the_ratio():
    ratios = np.array([-1e4, -30.0, -1.0, 0.0, 1.0, 30.0, 1e4])
    found = np.asarray(pg.kl_penalty(ratios, 0.0, estimator="k3"))
    assert np.all(found >= 0) and np.all(np.isfinite(found)) and found[3] == 0


def test_the_clip_acts_only_against_the_advantage():
    moved = jnp.log(jnp.array([1.5, 1.5, 0.5, 0.5, 1.1]))
    advantages = jnp.array([1.0, -1.0, 1.0, -1.0, 1.0])
    loss, clipped = pg.clipped_policy_loss(moved, advantages, clip=0.2)
    np.testing.assert_allclose(loss, [-1.2, 1.5, -0.5, 0.8, -1.1], rtol=1e-6)
    np.testing.assert_array_equal(clipped, [1, 0, 0, 1, 0])
    free, never = pg.clipped_policy_loss(moved, advantages, clip=jnp.inf)
    np.testing.assert_allclose(free, -advantages * jnp.exp(moved), rtol=1e-6)
    assert never.sum() == 0


def test_values_far_from_the_old_ones_learn_nothing_more():
    slope = jax.grad(lambda v: pg.clipped_value_loss(v, 0.0, 1.0, clip=0.2))
    assert slope(0.1) < 0 and slope(0.5) == 0  # the cut one is the worse
    whole = jax.grad(lambda v: pg.clipped_value_loss(v, 0.0, 1.0, clip=jnp.inf))
    assert whole(0.5) == pytest.approx(-0.5)


@pytest.mark.parametrize(
    ("kl", "due"), [(12.0, 1 + 0.2 * 64 / 1000), (6.6, 1 + 0.1 * 64 / 1000), (6, 1)]
)
def test_the_coefficient_of_the_kl_follows_its_formula(kl, due):
    found = pg.adapted_kl_coef(0.5, kl, target=6.0, horizon=1000.0, samples=64)
    assert found == pytest.approx(0.5 * due, rel=1e-6)


@pytest.mark.parametrize("advantage", [-1e4, -1.0, 0.0, 1e4])
def test_weights_of_any_advantage_are_finite_and_bounded(advantage):
    weight = pg.advantage_weights(jnp.float32(advantage), beta=1.0, largest=20.0)
    assert 0 <= weight <= 20
    assert np.isfinite(
        pg.advantage_weights(jnp.float32(advantage), beta=1.0, largest=jnp.inf)
    )
