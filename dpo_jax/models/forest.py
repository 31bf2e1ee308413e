"""Who sees whom in a row: the rule of the forest, stated once for every backend.

A row holds documents, a document a prompt and the responses that grow from it. This
file knows nothing of queries, keys or kernels.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from dpo_jax.types import Array


class Cells(NamedTuple):
    """What the rule reads of tokens; all fields of one shape, or of shapes that fit.

    Attributes:
      docs: i32 document of each token, from 1; 0 = padding.
      branches: i32 0 = prompt, 1… = response.
      positions: i32 position within prompt + response.
      places: i32 index in the row.
    """

    docs: Array
    branches: Array
    positions: Array
    places: Array


def cells_of(docs: Array, branches: Array, positions: Array) -> Cells:
    """Gathers i32[B, T] fields of whole rows."""
    chex.assert_rank([docs, branches, positions], 2)
    places = jax.lax.broadcasted_iota(jnp.int32, docs.shape, 1)
    return Cells(docs, branches, positions, places)


def visible(query: Cells, key: Cells, window: int | Array) -> Array:
    """Says which key each query sees.

    Key k is visible to query q iff it does not come later in the row, lies in the same
    document, and is of the prompt or of q's own branch. Padding sees nothing and is
    seen by nobody.

    Args:
      query: of the queries.
      key: of the keys, in shapes that fit.
      window: see `near`.

    Returns:
      bool in the common shape.
    """
    seen = (key.places <= query.places) & (query.docs > 0)
    seen &= key.docs == query.docs
    seen &= (key.branches == 0) | (key.branches == query.branches)
    return near(seen, query.positions - key.positions, window)


def near(seen: Array, distance: Array, window: int | Array) -> Array:
    """Narrows what is seen to a window.

    A window is one of positions, never of row indices, so that a response sees the same
    prompt tokens wherever it lies in its row.

    Args:
      seen: bool.
      distance: i32 position of the query less that of the key.
      window: tokens that a query sees, itself included; 0 = all. May be traced, so that
        layers with and without a window are one compiled layer.
    """
    if isinstance(window, int) and not window:
        return seen
    return seen & ((window == 0) | (distance < window))


def times_read(docs: Array, branches: Array) -> Array:
    """Counts in how many responses' texts each token stands: f32[B, T].

    What is summed over tokens by these counts is the same in every layout: a prompt
    that two responses share counts twice, as it would lie twice in rows of its own.
    Padding counts 0.
    """
    most = jax.vmap(
        lambda doc, branch: jax.ops.segment_max(branch, doc, docs.shape[1] + 1)[doc]
    )(docs, branches)
    times = jnp.where(branches == 0, jnp.maximum(most, 1), 1)
    return jnp.where(docs > 0, times, 0).astype(jnp.float32)


def first_seen(cells: Cells, window: int | Array) -> Array:
    """Bounds from below where the keys of each query begin in its row.

    The token at position p of a document stands at least p places behind its start, in
    the prompt and in every branch.

    Args:
      cells: i32[B, T] each; a document's tokens lie side by side.
      window: see `near`.

    Returns:
      i32[B, T]; T for padding.
    """
    before = jnp.pad(cells.docs, ((0, 0), (1, 0)))[:, :-1]
    starts = jnp.where(cells.docs != before, cells.places, 0)
    starts = jax.lax.cummax(starts, axis=1)
    hidden = jnp.where(window == 0, 0, jnp.maximum(0, cells.positions - window + 1))
    return jnp.where(cells.docs > 0, starts + hidden, cells.docs.shape[1])
