"""Attention over token forests: who sees whom, and the backends that compute it.

This file knows nothing of parameters, families or data.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from dpo_jax import errors

Array = Any

WIDE = jnp.float32  # of logits and their softmax


def forest_mask(docs: Array, branches: Array, positions: Array, window: int) -> Array:
    """Says which key each query sees.

    Key k is visible to query q iff it does not come later in the row, lies in the same
    document, and is of the prompt or of q's own branch. A window is one of positions,
    never of row indices, so that a response sees the same prompt tokens wherever it
    lies in its row. Padding sees nothing and is seen by nobody.

    Args:
      docs: i32[B, T] document of each token, from 1; 0 = padding.
      branches: i32[B, T] 0 = prompt, 1… = response.
      positions: i32[B, T] position within prompt + response.
      window: tokens that a query sees, itself included; 0 = all.

    Returns:
      bool[B, 1, T, T], queries before keys.
    """
    chex.assert_rank([docs, branches, positions], 2)
    query = lambda x: x[:, :, None]  # noqa: E731 (reads as the axis it adds)
    key = lambda x: x[:, None, :]  # noqa: E731
    row = jnp.arange(docs.shape[1])
    seen = row[None, :] <= row[:, None]  # [T, T]
    seen = seen & (query(docs) == key(docs)) & (query(docs) > 0)  # [B, T, T]
    seen &= (key(branches) == 0) | (key(branches) == query(branches))
    return within(seen[:, None], positions, window)


def within(mask: Array, positions: Array, window: int | Array) -> Array:
    """Narrows a mask to a window of positions.

    Args:
      mask: bool[B, 1, T, T].
      positions: i32[B, T].
      window: tokens that a query sees, itself included; 0 = all. May be traced, so that
        layers with and without a window are one compiled layer.
    """
    if isinstance(window, int) and not window:
        return mask
    distance = positions[:, None, :, None] - positions[:, None, None, :]
    return mask & ((window == 0) | (distance < window))


def _xla(
    q: Array, k: Array, v: Array, mask: Array, scale: float, softcap: float
) -> Array:
    """Runs the portable backend; a query that sees nothing gets a finite average."""
    if softcap:
        return _xla_capped(q, k, v, mask, scale, softcap)
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, scale=scale, implementation="xla"
    )


def _xla_capped(
    q: Array, k: Array, v: Array, mask: Array, scale: float, softcap: float
) -> Array:
    """Cuts the logits to ±softcap before the mask, as Gemma 2 does.

    Source: arXiv:2408.00118 section 2.
    """
    grouped = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[3])  # [B, T, K, H / K, E]
    logits = jnp.einsum("BTKGE,BSKE->BKGTS", grouped, k, preferred_element_type=WIDE)
    logits = softcap * jnp.tanh(scale * logits / softcap)
    logits = jnp.where(mask[:, :, None], logits, jnp.finfo(WIDE).min / 2)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("BKGTS,BSKE->BTKGE", weights, v).reshape(q.shape)


def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array,
    *,
    scale: float,
    softcap: float = 0.0,
    backend: str,
) -> Array:
    """Averages values with softmax(scale·q·k) over the visible keys.

    Args:
      q: [B, T, H, E] queries.
      k: [B, T, K, E] keys; query head h reads kv head h // (H / K).
      v: [B, T, K, E] values.
      mask: bool[B, 1, T, T], True = visible.
      scale: multiplies the logits, which with their softmax are float32.
      softcap: logits are cut to softcap·tanh(logits / softcap); 0 = off.
      backend: a key of `BACKENDS`.

    Returns:
      [B, T, H, E] in the dtype of `q`; finite, as are its gradients, where a query sees
      nothing.

    Raises:
      ConfigError: if the backend is not known.
    """
    chex.assert_rank([q, k, v, mask], 4)
    if backend not in BACKENDS:
        raise errors.ConfigError(errors.unknown("model.attention", backend, BACKENDS))
    return BACKENDS[backend](q, k, v, mask, scale, softcap)


BACKENDS: dict[str, Callable[[Array, Array, Array, Array, float, float], Array]] = {
    "xla": _xla,
}
