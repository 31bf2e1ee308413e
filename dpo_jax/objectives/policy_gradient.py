"""The arithmetic of policy gradients: advantages, clipped losses, the KL controller.

Pure functions of arrays. A mask says which entries are there; what stands elsewhere,
NaN included, reaches neither a value nor a gradient. N prompts · n samples of each ·
G tokens of a sample, as in `types.py`.
"""

import jax
import jax.numpy as jnp

from dpo_jax.types import Array

LARGEST_LOG_RATIO = 20.0  # nats; beyond, a ratio says only that it is huge
KL_ESTIMATORS = ("k1", "k3")


def centered(values: Array, mask: Array, axis: int | None = None) -> Array:
    """Takes the mean of the masked entries off them; equal ones give exactly 0.

    Args:
      values: f32[…].
      mask: bool[…].
      axis: that the mean is taken along; None = all.

    Returns:
      f32[…], 0 where the mask is False.
    """
    largest = jnp.max(values, axis, keepdims=True, where=mask, initial=-jnp.inf)
    moved = jnp.where(mask, values - jnp.where(mask, largest, 0.0), 0.0)
    count = jnp.maximum(mask.sum(axis, keepdims=True), 1)
    return jnp.where(mask, moved - moved.sum(axis, keepdims=True) / count, 0.0)


def deviation(values: Array, mask: Array, axis: int | None = None) -> Array:
    """Returns the standard deviation of the masked entries, one degree of freedom less.

    Args:
      values: f32[…].
      mask: bool[…].
      axis: that it is taken along, and kept; None = all.
    """
    squares = jnp.square(centered(values, mask, axis)).sum(axis, keepdims=True)
    return jnp.sqrt(squares / jnp.maximum(mask.sum(axis, keepdims=True) - 1, 1))


def whiten(values: Array, mask: Array, *, shift: bool = True) -> Array:
    """Brings the masked entries to deviation 1, and to mean 0.

    Args:
      values: f32[…], of the whole rollout: moments are taken over all of it.
      mask: bool[…].
      shift: False keeps the mean, as rewards are whitened.

    Returns:
      f32[…], 0 where the mask is False; all 0 where the masked entries are equal.

    Source: TRL's `masked_whiten`, which adds 1e-8 to the variance likewise.
    """
    moved = centered(values, mask)
    mean = jnp.where(mask, values, 0.0).sum() / jnp.maximum(mask.sum(), 1)
    scale = jax.lax.rsqrt(jnp.square(deviation(values, mask)) + 1e-8)
    return jnp.where(mask, moved * scale + (0.0 if shift else mean), 0.0)


def gae(
    rewards: Array, values: Array, mask: Array, *, gamma: Array, lam: Array
) -> Array:
    """Estimates advantages: Σ_k (γλ)^k δ_{t+k}, δ_t = r_t + γ V_{t+1} − V_t.

    The value behind the last token of a sample is 0: a cut sample ends there, too.

    Args:
      rewards: f32[…, G] of each token.
      values: f32[…, G] of the state before each token.
      mask: bool[…, G] the tokens of a sample, from the first on without a gap.
      gamma: f32[] discount.
      lam: f32[] λ.

    Returns:
      f32[…, G], 0 where the mask is False.

    Source: arXiv:1506.02438 equation 16.
    """
    rewards, values = (jnp.where(mask, x, 0.0) for x in (rewards, values))
    after = jnp.concatenate([values[..., 1:], jnp.zeros_like(values[..., :1])], -1)
    errors = rewards + gamma * after - values

    def back(advantage: Array, error: Array) -> tuple[Array, Array]:
        advantage = error + gamma * lam * advantage
        return advantage, advantage

    start = jnp.zeros(errors.shape[:-1], errors.dtype)
    errors = jnp.where(mask, errors, 0.0)
    _, found = jax.lax.scan(back, start, jnp.moveaxis(errors, -1, 0), reverse=True)
    return jnp.where(mask, jnp.moveaxis(found, 0, -1), 0.0)


def leave_one_out(rewards: Array, mask: Array) -> Array:
    """Compares each sample with the mean of the others of its prompt.

    Args:
      rewards: f32[N, n].
      mask: bool[N, n] which have one; a missing one is no sibling of the others.

    Returns:
      f32[N, n]; 0 where the mask is False, and of a sample without a sibling.

    Source: RLOO, arXiv:2402.14740 section 3.2.
    """
    count = mask.sum(-1, keepdims=True)
    return centered(rewards, mask, -1) * count / jnp.maximum(count - 1, 1)


def group_standardized(rewards: Array, mask: Array) -> Array:
    """Measures each sample against its prompt's mean in their standard deviations.

    Args:
      rewards: f32[N, n].
      mask: bool[N, n] which have one.

    Returns:
      f32[N, n], at most (n − 1)/√n in size; 0 in a group of equal rewards.

    Source: GRPO, arXiv:2402.03300 section 4.1.2, with TRL's 1e-4 beside the deviation.
    """
    spread = deviation(rewards, mask, -1)
    return centered(rewards, mask, -1) / (spread + 1e-4)


def bounded_exp(log_ratio: Array) -> Array:
    """Returns exp of a log-ratio, which is cut to ±`LARGEST_LOG_RATIO`."""
    return jnp.exp(jnp.clip(log_ratio, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO))


def kl_penalty(logps: Array, ref_logps: Array, *, estimator: str) -> Array:
    """Estimates KL(policy‖ref) at a sampled token, as a penalty in its reward.

    Detached in the reward, both have the right value in expectation, and `k1` alone
    the right gradient: that of `k3` as a reward is not the gradient of the KL.

    Args:
      logps: f32[…] nats, of the policy that drew the token.
      ref_logps: f32[…] nats.
      estimator: `k1`, log π/ref; or `k3`, ref/π − 1 − log ref/π, which is never
        negative.

    Source: Schulman, "Approximating KL divergence", 2020.
    """
    log_ratio = logps - ref_logps
    if estimator == "k1":
        return log_ratio
    return (
        bounded_exp(-log_ratio)
        - 1.0
        + jnp.clip(log_ratio, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    )


def clipped_policy_loss(
    log_ratio: Array, advantages: Array, *, clip: Array
) -> tuple[Array, Array]:
    """Returns −min(ρA, clip(ρ, 1 ± ε)A), and 1 where the clip acts.

    Args:
      log_ratio: f32[…] log π/π_old, nats.
      advantages: f32[…].
      clip: f32[] ε; ∞ = never.

    Source: PPO, arXiv:1707.06347 equation 7.
    """
    ratio = bounded_exp(log_ratio)
    free = -advantages * ratio
    cut = -advantages * jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    return jnp.maximum(free, cut), (cut > free).astype(jnp.float32)


def clipped_value_loss(
    values: Array, old_values: Array, returns: Array, *, clip: Array
) -> Array:
    """Returns ½·max of the squared errors with and without the step being cut.

    Args:
      values: f32[…] of the critic now.
      old_values: f32[…] at the rollout.
      returns: f32[…] what they should be.
      clip: f32[] how far a value may move from the old one; ∞ = any.

    Source: OpenAI baselines' PPO2, as TRL has it.
    """
    cut = old_values + jnp.clip(values - old_values, -clip, clip)
    errors = jnp.square(values - returns), jnp.square(cut - returns)
    return 0.5 * jnp.maximum(*errors)


def adapted_kl_coef(
    coef: Array, kl: Array, *, target: Array, horizon: Array, samples: Array
) -> Array:
    """Moves the coefficient of the KL towards the one that keeps the KL at its target.

    Args:
      coef: f32[].
      kl: f32[] mean KL of the samples, nats a sequence.
      target: f32[] > 0 nats.
      horizon: f32[] > 0 samples over which a KL beyond 1.2 targets doubles it, about.
      samples: f32[] of the rollout.

    Source: arXiv:1909.08593 section 2.2.
    """
    error = jnp.clip(kl / target - 1.0, -0.2, 0.2)
    return coef * (1.0 + error * samples / horizon)


def advantage_weights(advantages: Array, *, beta: Array, largest: Array) -> Array:
    """Returns min(exp(A/β), largest), the weights of a regression on samples.

    Args:
      advantages: f32[…].
      beta: f32[] > 0 temperature.
      largest: f32[] weight.

    Source: AWR, arXiv:1910.00177 equations 7 and section 3.3 (clipped at 20).
    """
    return jnp.minimum(jnp.exp(jnp.minimum(advantages / beta, 80.0)), largest)
