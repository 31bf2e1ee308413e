"""What all objectives of judged responses share: a weighted sum of losses of a record.

What is judged, pairs or single responses or rankings, is said by a `Kind`: how a record
is taken from the columns, and which metrics it gives. The losses are handed in; this
file knows no names of either.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dpo_jax.losses import Bound, Loss
from dpo_jax.losses.loss import per_pair
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


def nothing(whole: Columns) -> dict[str, Array]:
    """Finds no metric beside the means."""
    del whole
    return {}


class Kind(NamedTuple):
    """What is judged.

    Attributes:
      rows: of data, a name of `data.kinds.KINDS`.
      record: that a loss takes, as `losses.loss.Of` names it.
      take: columns -> the record that the losses see, and bool[N] which of it count.
      metrics: (columns, the record, hyper) -> {name: (sum, count)}.
      counts: batch -> what the losses may be divided by.
      of_set: columns of a whole set -> metrics that are no means.
      per: what a loss must be divided by; '' = anything.
      scalar: the responses get the scores of a scalar head, not log-probs.
      reference: it may read a reference, and reports `rewards/*`.
    """

    rows: str
    record: str
    take: Callable[[Columns], tuple[Any, Array]]
    metrics: Callable[[Columns, Any, Hyper], Sums]
    counts: Callable[[Batch], Counts] = terms.counts
    of_set: Callable[[Columns], dict[str, Array]] = nothing
    per: str = ""
    scalar: bool = False
    reference: bool = True

    def judges(self, loss: Loss) -> bool:
        """Tells whether a loss is one of what is judged here."""
        if self.per and (loss.of, loss.per) != (self.record, self.per):
            return False
        return loss.takes == self.record


@dataclasses.dataclass(frozen=True, eq=False)
class Judged:
    """Losses of judged responses, averaged over the global batch.

    Attributes:
      kind: what is judged.
      scorer: `Objective.score`.
      losses: of the run.
      weigh: columns -> f32[N] factor on each element's loss; None = 1.
      soften: (columns, record) -> f32[N] probability that the record is right, and the
        record of the opposite; None = it is right.
    """

    kind: Kind
    scorer: Callable[..., tuple[Columns, Reports]]
    losses: Sequence[Bound]
    weigh: Callable[[Columns], Array] | None = None
    soften: Callable[[Columns, Any], tuple[Array, Any]] | None = None

    @property
    def couples(self) -> bool:
        """Whether a loss can only be taken over the whole batch at once."""
        return any(bound.couples for bound in self.losses)

    def counts(self, batch: Batch) -> Counts:
        """Counts what the losses may be divided by."""
        return self.kind.counts(batch)

    def of_set(self, whole: Columns) -> dict[str, Array]:
        """Finds the metrics of a whole set that are no means."""
        return self.kind.of_set(whole)

    def score(
        self, params: Params, frozen: Frozen, batch: Batch, key: Array, hyper: Hyper
    ) -> tuple[Columns, Reports]:
        """Scores a microbatch's responses."""
        return self.scorer(params, frozen, batch, key, hyper)

    def update(self, columns: Columns, stats: Stats, hyper: Hyper) -> Stats:
        """Takes the record of a whole step into the running statistics; no gradient."""
        record = self.kind.take(columns)[0]
        for bound in self.losses:
            stats = bound.update(record, stats, hyper)
        return jax.lax.stop_gradient(stats)

    def loss(
        self,
        columns: Columns,
        reports: Reports,
        stats: Stats,
        hyper: Hyper,
        counts: Counts,
    ) -> tuple[Array, Sums]:
        """Returns the sum of the losses' shares of their means, and the metrics."""
        del reports  # no trunk of today's families reports anything
        record, mask = self.kind.take(columns)
        whole = jnp.zeros((), jnp.float32)
        known = stats | per_pair(counts) | {"progress": hyper.get("progress", 0.0)}
        for bound in self.losses:
            given = bound.options(hyper) | known
            losses = bound.loss(record, given)
            if self.soften is not None:
                sure, opposite = self.soften(columns, record)
                losses = sure * losses + (1.0 - sure) * bound.loss(opposite, given)
            if self.weigh is not None:
                losses = losses * self.weigh(columns)
            share = bound.weight(hyper) * jnp.where(mask, losses, 0.0).sum()
            whole = whole + share / jnp.maximum(counts[bound.loss.per], 1.0)
        return whole, self.kind.metrics(columns, record, hyper)
