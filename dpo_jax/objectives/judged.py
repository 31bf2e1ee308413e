"""What all objectives of judged responses share: a weighted sum of losses of a record.

What is judged, pairs or single responses or rankings, is said by a `Kind`: how a record
is taken from the columns, and which metrics it gives. The losses are functions handed
in; this file knows no names of either.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dpo_jax.objectives import terms
from dpo_jax.types import (
    Array,
    Batch,
    Columns,
    Counts,
    Frozen,
    Hyper,
    Params,
    Reports,
    Stats,
    Sums,
)


class Term(NamedTuple):
    """A loss and its weight in the sum.

    Attributes:
      fn: `(record, stats, hyper) -> f32[N]`.
      update: `(record, stats, hyper) -> stats`; None where nothing is kept.
      per: a name of `terms.counts`, what the sum is divided by.
      weight: of the mean in the sum of several.
    """

    fn: Callable[[Any, Stats, Hyper], Array]
    per: str
    weight: float = 1.0
    update: Callable[[Any, Stats, Hyper], Stats] | None = None


def weighted_sum(
    parts: tuple[Term, ...],
    record: Any,
    mask: Array,
    stats: Stats,
    hyper: Hyper,
    counts: Counts,
    weights: Array | None = None,
) -> Array:
    """Adds up the parts' shares of their means over the whole step.

    Args:
      parts: losses.
      record: N of what they take.
      mask: bool[N] that count.
      stats: running statistics.
      hyper: float hyper-parameters.
      counts: of the whole step.
      weights: f32[N] factor on each element; None = 1.
    """
    whole = jnp.zeros((), jnp.float32)
    for part in parts:
        losses = part.fn(record, stats, hyper)
        if weights is not None:
            losses = losses * weights
        value = jnp.where(mask, losses, 0.0).sum()
        whole = whole + part.weight * value / jnp.maximum(counts[part.per], 1.0)
    return whole


def updated(parts: tuple[Term, ...], record: Any, stats: Stats, hyper: Hyper) -> Stats:
    """Takes a step's records into the statistics of every part; no gradient."""
    for part in parts:
        if part.update is not None:
            stats = stats | part.update(record, stats, hyper)
    return jax.lax.stop_gradient(stats)


class Kind(NamedTuple):
    """What is judged.

    Attributes:
      take: columns -> the record that the losses see, and bool[N] which of it count.
      metrics: (columns, the record, hyper) -> {name: (sum, count)}.
    """

    take: Callable[[Columns], tuple[Any, Array]]
    metrics: Callable[[Columns, Any, Hyper], Sums]


@dataclasses.dataclass(frozen=True)
class Judged:
    """Losses of judged responses, averaged over the global batch.

    Attributes:
      kind: what is judged.
      scorer: `Objective.score`.
      parts: the losses.
      couples: see `types.Objective`.
      weigh: columns -> f32[N] factor on each element's loss; None = 1.
    """

    kind: Kind
    scorer: Callable[..., tuple[Columns, Reports]]
    parts: tuple[Term, ...]
    couples: bool = False
    weigh: Callable[[Columns], Array] | None = None

    def counts(self, batch: Batch) -> Counts:
        """Counts what the losses may be divided by."""
        return terms.counts(batch)

    def score(
        self, params: Params, frozen: Frozen, batch: Batch, key: Array, hyper: Hyper
    ) -> tuple[Columns, Reports]:
        """Scores a microbatch's responses."""
        return self.scorer(params, frozen, batch, key, hyper)

    def update(self, columns: Columns, stats: Stats, hyper: Hyper) -> Stats:
        """Takes the records of a step into the running statistics."""
        return updated(self.parts, self.kind.take(columns)[0], stats, hyper)

    def loss(
        self,
        columns: Columns,
        reports: Reports,
        stats: Stats,
        hyper: Hyper,
        counts: Counts,
    ) -> tuple[Array, Sums]:
        """Returns the loss and the metrics."""
        del reports  # no trunk of today's families reports anything
        record, mask = self.kind.take(columns)
        weights = None if self.weigh is None else self.weigh(columns)
        value = weighted_sum(self.parts, record, mask, stats, hyper, counts, weights)
        return value, self.kind.metrics(columns, record, hyper)
