"""Attention with prefixes shared everywhere else: here each response gets its own.

A row whose documents hold several responses is spread into a longer one, in which a
copy of the prompt stands before each of them. That row is causal within documents and
nothing else, so any kernel that knows segments runs it; what it gives for the copies is
dropped. The rest of a layer never sees the longer row. This file knows nothing of
parameters, nor which kernel it is.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dpo_jax.models import forest
from dpo_jax.models.forest import Cells

Array = Any

RESPONSES = 2  # of a document at most: with so many, a row of 2·T holds any row of T


class Spread(NamedTuple):
    """A row and its longer one; U = `RESPONSES`·T tokens.

    Attributes:
      sources: i32[B, U] token of the row that stands at each place of the longer one.
      places: i32[B, T] place of each token in the longer row; a prompt's own, not those
        of its copies.
      kept: bool[B, T] False for padding.
      fits: bool[B] whether the longer row holds all copies.
      cells: i32[B, U] each, of the longer row; a document there has one response.
    """

    sources: Array
    places: Array
    kept: Array
    fits: Array
    cells: Cells


def spread(cells: Cells) -> Spread:
    """Finds where everything goes.

    Each response but the first of its document pushes what follows back by the length
    of the prompt, and the copy fills the gap.

    Args:
      cells: i32[B, T] each; documents, and the responses in them, lie side by side,
        and padding at the end.
    """
    docs, branches, positions, at = cells
    before = lambda x: jnp.pad(x, ((0, 0), (1, 0)))[:, :-1]  # noqa: E731
    opens = docs != before(docs)
    again = (branches != before(branches)) & (before(branches) > 0) & ~opens
    starts = jax.lax.cummax(jnp.where(opens, at, 0), axis=1)
    kept = docs > 0
    # a response's first position is the length of its prompt
    places = at + jnp.cumsum(jnp.where(again & kept, positions, 0), axis=1)
    size = RESPONSES * docs.shape[1]
    rows = jnp.arange(len(docs))[:, None]
    last = jnp.zeros((len(docs), size), jnp.int32)
    last = last.at[rows, places].max(at, mode="drop")
    last = jax.lax.cummax(last, axis=1)  # the last token at or before each place

    take = lambda x, index: jnp.take_along_axis(x, index, axis=1)  # noqa: E731
    wide = jax.lax.broadcasted_iota(jnp.int32, last.shape, 1)
    behind = wide - take(places, last)
    following = jnp.minimum(last + 1, docs.shape[1] - 1)
    copied = behind > 0
    sources = jnp.where(copied, take(starts, following) + behind - 1, last)
    sources = jnp.minimum(sources, docs.shape[1] - 1)
    owners = jnp.where(copied, following, last)
    real = take(kept, owners) & (~copied | (last < docs.shape[1] - 1))
    numbers = jnp.cumsum(opens | again, axis=1)
    longer = forest.cells_of(
        jnp.where(real, take(numbers, owners), 0),
        jnp.zeros_like(sources),
        take(positions, sources),
    )
    fits = jnp.where(kept, places, 0).max(1) < size
    return Spread(sources, places, kept, fits, longer)


def lengthened(values: Array, sources: Array) -> Array:
    """Copies tokens to where they stand in the longer row: [B, T, …] -> [B, U, …].

    The gradients of copies add up.
    """
    index = sources.reshape(*sources.shape, *(1,) * (values.ndim - 2))
    return jnp.take_along_axis(values, index, axis=1)


def shortened(values: Array, found: Spread) -> Array:
    """Takes each token back from its place: [B, U, …] -> [B, T, …].

    Padding is 0. A row that the longer one does not hold is NaN, so that a step which
    could have lost tokens never counts.
    """
    axes = (1,) * (values.ndim - 2)
    places = jnp.minimum(found.places, values.shape[1] - 1)
    values = jnp.take_along_axis(values, places.reshape(*places.shape, *axes), axis=1)
    values = jnp.where(found.kept.reshape(*places.shape, *axes), values, 0)
    return jnp.where(found.fits.reshape(-1, 1, *axes), values, jnp.nan)
