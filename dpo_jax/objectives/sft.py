"""Maximum likelihood of every response: SFT on completions, preferred-FT on chosen."""

import dataclasses

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


@dataclasses.dataclass(frozen=True)
class Sft:
    """Token-mean cross-entropy of all responses of the batch.

    Attributes:
      scorer: of the responses.
    """

    scorer: terms.Scorer
    couples: bool = False

    def counts(self, batch: Batch) -> Counts:
        """Counts tokens."""
        return terms.counts(batch)

    def score(
        self, params: Params, frozen: Frozen, batch: Batch, key: Array, hyper: Hyper
    ) -> tuple[Columns, Reports]:
        """Scores a microbatch's responses."""
        return self.scorer(params, frozen, batch, key, hyper)

    def update(self, columns: Columns, stats: Stats, hyper: Hyper) -> Stats:
        """Keeps nothing."""
        del columns, hyper
        return stats

    def loss(
        self,
        columns: Columns,
        reports: Reports,
        stats: Stats,
        hyper: Hyper,
        counts: Counts,
    ) -> tuple[Array, Sums]:
        """Returns the loss over tokens, and means over responses."""
        del reports, stats, hyper
        logps = columns.response["logps"]
        filled = columns.lengths > 0
        value = -logps.sum() / jnp.maximum(counts["tokens"], 1.0)
        means = {"logps/chosen": logps, "lengths/chosen": columns.lengths}
        sums = terms.masked_means(means, filled) | terms.token_metrics(columns)
        return value, sums
