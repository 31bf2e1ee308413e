"""Losses of rankings."""

import chex
import jax
import jax.numpy as jnp

from dpo_jax.types import Array, ListLogps


def plackett_luce(rankings: ListLogps, *, beta: Array) -> Array:
    """Computes −Σ_k log[e^(βr_k) / Σ_{j≥k} e^(βr_j)], f32[N].

    A ranking of one response, or of none, gives 0; of two, DPO.

    Args:
      rankings: N rankings of up to K responses, best first.
      beta: strength of the KL penalty.

    Source: arXiv:2305.18290 eq. 20 (appendix A.3).
    """
    chex.assert_rank(rankings.ratios, 2)
    mask = rankings.mask
    scores = beta * jnp.where(mask, rankings.ratios, 0.0)
    width = mask.shape[-1]
    places = jnp.arange(width)
    behind = mask[:, None, :] & (places >= places[:, None])  # [N, K, K] j ≥ k
    behind |= jnp.eye(width, dtype=bool)  # no row is empty
    rest = jnp.broadcast_to(scores[:, None, :], behind.shape)
    total = jax.nn.logsumexp(rest, axis=-1, where=behind)
    return jnp.where(mask, total - scores, 0.0).sum(-1)
