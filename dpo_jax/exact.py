"""Closed forms on enumerable response sets: what a loss should converge to.

Distributions are log-probs over K responses in nats; rewards are f[K]. Used by tests,
experiments and evaluations as ground truth; knows nothing of models.
"""

import jax
import jax.numpy as jnp

from dpo_jax.types import Array


def optimal_policy(ref_logps: Array, rewards: Array, *, beta: float) -> Array:
    """Returns log π*, π* ∝ ref · e^(r/β), the optimum of E[r] − β KL(π‖ref).

    Args:
      ref_logps: [K] nats.
      rewards: [K].
      beta: strength of the KL penalty, > 0.

    Source: arXiv:2305.18290 eq. 4.
    """
    return jax.nn.log_softmax(ref_logps + rewards / beta)


def kl(logps: Array, ref_logps: Array) -> Array:
    """Returns KL(π‖ref) in nats over the last axis; 0·log 0 counts as 0."""
    terms = jnp.where(logps == -jnp.inf, 0.0, jnp.exp(logps) * (logps - ref_logps))
    return terms.sum(-1)


def expected_reward(logps: Array, rewards: Array) -> Array:
    """Returns E_π[r] over the last axis."""
    return (jnp.exp(logps) * rewards).sum(-1)


def soft_value(ref_logps: Array, rewards: Array, *, beta: float) -> Array:
    """Returns V = β log Σ ref · e^(r/β), the soft-Bellman value of the set.

    Source: arXiv:2404.12358 ("From r to Q*") eq. 7.
    """
    return beta * jax.nn.logsumexp(ref_logps + rewards / beta, axis=-1)


def bradley_terry(reward_margins: Array) -> Array:
    """Returns the probability that the first of two is preferred, σ(r₁ − r₂)."""
    return jax.nn.sigmoid(reward_margins)
