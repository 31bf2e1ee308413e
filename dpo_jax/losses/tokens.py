"""Weights on the tokens of a response, shared by policy and reference.

Each function takes `TokenPlaces` and returns f32[B, C] by which token log-probs are
multiplied before they are summed. A response that is compared with none keeps its plain
sum: weight 1. What stands at padding is finite and the caller's to mask.
"""

from collections.abc import Callable

import jax.numpy as jnp

from dpo_jax.types import Array, TokenPlaces


def d2po(places: TokenPlaces, *, decay: Array) -> Array:
    """Returns γ^t, t from 0; γ is `decay`.

    Source: arXiv:2502.14340 (D²PO).
    """
    weights = jnp.power(decay, places.index.astype(places.length.dtype))
    return _if_compared(places, weights)


def sampo(places: TokenPlaces) -> Array:
    """Returns 1 for min(nw, nl) random tokens of a response, 0 for the others.

    Source: arXiv:2406.10957 (SamPO).
    """
    kept = places.rank < jnp.minimum(places.length, places.partner)
    return _if_compared(places, kept.astype(places.length.dtype))


def ld(places: TokenPlaces, *, ld_alpha: Array) -> Array:
    """Returns 1 for the first min(nw, nl) tokens and `ld_alpha` behind them.

    Source: arXiv:2409.06411 (LD-DPO).
    """
    common = places.index < jnp.minimum(places.length, places.partner)
    return _if_compared(places, jnp.where(common, 1.0, ld_alpha))


def _if_compared(places: TokenPlaces, weights: Array) -> Array:
    return jnp.where(places.partner > 0, weights, 1.0)


WEIGHTS: dict[str, Callable[..., Array]] = {"d2po": d2po, "sampo": sampo, "ld": ld}
