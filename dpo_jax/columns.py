"""Columns of several microbatches laid end to end, so that a loss sees them as one.

Slots are numbered as `row·R + slot` within a microbatch; behind each other, the numbers
of later parts move on. This room knows nothing of losses.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from dpo_jax.types import Array, Columns

SLOTS = ("pairs", "groups")  # fields that hold numbers of slots


def flat(parts: Columns, start: int = 0) -> Columns:
    """Lays parts of one shape out as one part with one slot a row.

    Args:
      parts: leaves with a leading axis of A parts.
      start: number of the first slot.

    Returns:
      [A·B·R, 1] for every [A, B, R]; `pairs` and `groups` as one comparison a row,
      renumbered.
    """
    several, slots = parts.lengths.shape[0], parts.lengths[0].size
    first = start + slots * jnp.arange(several)[:, None, None, None]

    def renumber(values: Array) -> Array:  # [A, B, M, …] -> [A·B·M, 1, …]
        moved = jnp.where(values >= 0, values + first, -1)
        return moved.reshape(-1, 1, values.shape[-1])

    found = {}
    for name, values in parts._asdict().items():
        if values is None:
            found[name] = None
        elif name in SLOTS:
            found[name] = renumber(values)
        else:
            found[name] = values.reshape(-1, 1)
    return Columns(**found)


def concatenate(parts: Sequence[Columns]) -> Columns:
    """Joins flat parts whose slots are numbered through."""
    joined = (
        None if values[0] is None else jnp.concatenate(values)
        for values in zip(*parts, strict=True)
    )
    return Columns(*joined)
