"""Columns of several microbatches laid end to end, so that a loss sees them as one.

Slots are numbered as `row·R + slot` within a microbatch; behind each other, the numbers
of later parts move on. This room knows nothing of losses.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from dpo_jax.types import Array, Columns


def flat(parts: Columns, start: int = 0) -> Columns:
    """Lays parts of one shape out as one part with one slot a row.

    Args:
      parts: leaves with a leading axis of A parts.
      start: number of the first slot.

    Returns:
      [A·B·R, 1] for every [A, B, R], [A·B, C] for every [A, B, C]; `pairs` and `groups`
      as one comparison a row, renumbered.
    """
    several, slots = parts.lengths.shape[0], parts.lengths[0].size
    first = start + slots * jnp.arange(several)[:, None, None, None]

    def renumber(values: Array) -> Array:  # [A, B, M, …] -> [A·B·M, 1, …]
        moved = jnp.where(values >= 0, values + first, -1)
        return moved.reshape(-1, 1, values.shape[-1])

    def one_slot_a_row(values: Array) -> Array:
        return values.reshape(-1, 1)

    return Columns(
        lengths=one_slot_a_row(parts.lengths),
        pairs=renumber(parts.pairs),
        groups=None if parts.groups is None else renumber(parts.groups),
        token=jax.tree.map(lambda v: v.reshape(-1, *v.shape[2:]), parts.token),
        response=jax.tree.map(one_slot_a_row, parts.response),
    )


def concatenate(parts: Sequence[Columns]) -> Columns:
    """Joins flat parts whose slots are numbered through."""
    return jax.tree.map(lambda *values: jnp.concatenate(values), *parts)
