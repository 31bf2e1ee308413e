"""Responses ranked from best to worst: Plackett-Luce.

The losses are functions handed in. A ranking is also a set of pairs, every better
response with every worse one; the metrics are those of the pairs.
"""

import dataclasses

import jax
import jax.numpy as jnp

from dpo_jax.objectives import terms
from dpo_jax.objectives.preference import (
    Term,
    gather_pairs,
    pair_metrics,
    reference_metrics,
    updated,
    weighted_sum,
)
from dpo_jax.types import (
    Array,
    Batch,
    Columns,
    Counts,
    Hyper,
    ListLogps,
    Params,
    Stats,
    Sums,
)


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Losses of rankings, averaged over those of the global batch.

    Attributes:
      scorer: of the responses.
      parts: the losses.
      couples: see `types.Objective`.
    """

    scorer: terms.Scorer
    parts: tuple[Term, ...]
    couples: bool = False

    def counts(self, batch: Batch) -> Counts:
        """Counts rankings."""
        return terms.counts(batch)

    def score(self, params: Params, batch: Batch, key: Array, hyper: Hyper) -> Columns:
        """Scores a microbatch's responses."""
        return self.scorer(params, batch, key, hyper)

    def update(self, columns: Columns, stats: Stats, hyper: Hyper) -> Stats:
        """Takes the rankings of a step into the running statistics."""
        return updated(self.parts, lists(columns), stats, hyper)

    def loss(
        self, columns: Columns, stats: Stats, hyper: Hyper, counts: Counts
    ) -> tuple[Array, Sums]:
        """Returns the loss, and the field's metrics over all pairs of the rankings."""
        record, pairs = lists(columns), gather_pairs(columns)
        value = weighted_sum(
            self.parts, record, record.mask[:, 0], stats, hyper, counts
        )
        sums = terms.token_metrics(columns) | pair_metrics(pairs, hyper["beta"])
        return value, sums | reference_metrics(pairs)


def lists(columns: Columns) -> ListLogps:
    """Takes the responses of each ranking side by side; N = B·M."""
    assert columns.groups is not None and columns.logps is not None
    index = columns.groups.reshape(-1, columns.groups.shape[-1])  # [N, K]
    mask = index >= 0
    ratios = columns.logps - jax.lax.stop_gradient(columns.ref_logps)
    return ListLogps(jnp.where(mask, ratios.reshape(-1)[index], 0.0), mask)
