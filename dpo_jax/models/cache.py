"""What layers keep of the tokens before: keys and values, laid out by the spec.

One pair of arrays a layer, [B, K, S, E], so that grouped heads are stored once and a
layer with a window of w keeps w slots and no more. The token at position p lies in slot
p mod S; which position a slot holds follows from the row's newest position, so nothing
else need be stored, and rows of different lengths share one array. What is kept may be
narrower than what is computed.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from dpo_jax.models.spec import DecoderSpec
from dpo_jax.types import Array


class Kept(NamedTuple):
    """Keys and values of one layer: [B, T, K, E] as computed, [B, K, S, E] as kept."""

    keys: Array
    values: Array


Cache = tuple[Kept, ...]  # L of them


def slots_of(spec: DecoderSpec, tokens: int) -> list[int]:
    """Returns the slots of each layer for texts of at most so many tokens."""
    windows = spec.windows or (0,) * spec.layers
    return [min(window or tokens, tokens) for window in windows]


def held(newest: Array, slots: int) -> Array:
    """Says which position each slot holds.

    Args:
      newest: i32[B] position of the last token that was put.
      slots: S.

    Returns:
      i32[B, S] in (newest − S, newest]; negative where a slot is still empty.
    """
    chex.assert_rank(newest, 1)
    return newest[:, None] - (newest[:, None] - jnp.arange(slots)) % slots


def fill(
    fresh: Kept, lengths: Array, slots: int, dtype: jnp.dtype | None = None
) -> Kept:
    """Lays the last tokens of left-aligned rows into slots.

    Args:
      fresh: [B, T, K, E] of whole rows.
      lengths: i32[B] tokens that count, ≥ 1.
      slots: S.
      dtype: that is kept; None = as computed.

    Returns:
      [B, K, S, E]; what empty slots hold is never seen.
    """
    at = jnp.maximum(held(lengths - 1, slots), 0)[:, None, :, None]

    def lay(rows: Array) -> Array:
        kept = rows.swapaxes(1, 2).astype(dtype or rows.dtype)
        return jnp.take_along_axis(kept, at, axis=2)

    return Kept(*map(lay, fresh))


def put(kept: Kept, fresh: Kept, positions: Array) -> Kept:
    """Writes one new token a row into its slot, in place where XLA may.

    Args:
      kept: [B, K, S, E].
      fresh: [B, 1, K, E].
      positions: i32[B] of the new tokens.
    """
    slot = positions % kept.keys.shape[2]

    def write(row: Array, new: Array, slot: Array) -> Array:  # [K, S, E], [K, 1, E]
        return jax.lax.dynamic_update_slice(row, new.astype(row.dtype), (0, slot, 0))

    return Kept(
        *(
            jax.vmap(write)(old, new.swapaxes(1, 2), slot)
            for old, new in zip(kept, fresh, strict=True)
        )
    )
