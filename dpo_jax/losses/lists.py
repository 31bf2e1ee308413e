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


def _shares(rankings: ListLogps, temperature: Array) -> Array:
    """Returns softmax(s/α) over the responses of each ranking, f32[N, K]."""
    assert rankings.ratings is not None
    ratings = jnp.where(rankings.mask, rankings.ratings, 0.0) / temperature
    shares = jax.nn.softmax(ratings, axis=-1, where=rankings.mask | _none(rankings))
    return jnp.where(rankings.mask, shares, 0.0)


def _none(rankings: ListLogps) -> Array:
    """Marks the places of rankings without a response, bool[N, 1]."""
    return ~rankings.mask.any(-1, keepdims=True)


def infonca(rankings: ListLogps, *, beta: Array, temperature: Array) -> Array:
    """Computes −Σ softmax(s/α) · log softmax(βr), f32[N].

    Args:
      rankings: N lists of up to K rated responses.
      beta: strength of the KL penalty.
      temperature: α, in units of the ratings s.

    Source: arXiv:2402.05369 (InfoNCA).
    """
    mask = rankings.mask
    scores = beta * jnp.where(mask, rankings.ratios, 0.0)
    total = jax.nn.logsumexp(
        scores, axis=-1, keepdims=True, where=mask | _none(rankings)
    )
    shares = _shares(rankings, temperature)
    return -(shares * jnp.where(mask, scores - total, 0.0)).sum(-1)


def nca(rankings: ListLogps, *, beta: Array, temperature: Array) -> Array:
    """Computes −Σ softmax(s/α) · log σ(βr) − mean log σ(−βr), f32[N].

    The arguments are those of `infonca`.

    Source: arXiv:2402.05369 (NCA).
    """
    mask = rankings.mask
    scores = beta * jnp.where(mask, rankings.ratios, 0.0)
    data = (_shares(rankings, temperature) * jax.nn.log_sigmoid(scores)).sum(-1)
    noise = jnp.where(mask, jax.nn.log_sigmoid(-scores), 0.0).sum(-1)
    return -data - noise / jnp.maximum(mask.sum(-1), 1)
