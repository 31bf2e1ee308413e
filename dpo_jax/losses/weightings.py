"""Weights on whole pairs: a factor on each pair's loss, no gradient.

A function takes the certainty of both responses, the mean of log p − log Σ_v p_v² over
their tokens, as f32[N] each, and returns f32[N].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dpo_jax.types import Array


def wpo(chosen: Array, rejected: Array) -> Array:
    """Returns e^(m_w + m_l).

    Source: WPO, arXiv:2406.11827 eq. 6.
    """
    return jax.lax.stop_gradient(jnp.exp(chosen + rejected))


def wpo_clamped(chosen: Array, rejected: Array) -> Array:
    """Returns e^(m_w + m_l), at most 1: the official code of WPO."""
    return jnp.minimum(wpo(chosen, rejected), 1.0)


WEIGHTINGS: dict[str, Callable[[Array, Array], Array] | None] = {
    "none": None,
    "wpo": wpo,
    "wpo_clamped": wpo_clamped,
}
