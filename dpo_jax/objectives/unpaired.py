"""Responses judged one by one as desirable or not: KTO, BCO.

The losses are functions handed in. A response labelled 0 belongs to another prompt; it
is there for KTO's estimate of the KL and enters no mean.
"""

import dataclasses

import jax
import jax.numpy as jnp

from dpo_jax.objectives import terms
from dpo_jax.objectives.preference import Term, updated, weighted_sum
from dpo_jax.types import (
    Array,
    Batch,
    Columns,
    Counts,
    Hyper,
    Params,
    SingleLogps,
    Stats,
    Sums,
)


@dataclasses.dataclass(frozen=True)
class Unpaired:
    """Losses of single responses, averaged over those of the global batch.

    Attributes:
      scorer: of the responses.
      parts: the losses.
      couples: see `types.Objective`.
    """

    scorer: terms.Scorer
    parts: tuple[Term, ...]
    couples: bool = True

    def counts(self, batch: Batch) -> Counts:
        """Counts judged responses."""
        return terms.counts(batch)

    def score(self, params: Params, batch: Batch, key: Array, hyper: Hyper) -> Columns:
        """Scores a microbatch's responses, the mismatched ones too."""
        return self.scorer(params, batch, key, hyper)

    def update(self, columns: Columns, stats: Stats, hyper: Hyper) -> Stats:
        """Takes the responses of a step into the running statistics."""
        return updated(self.parts, singles(columns), stats, hyper)

    def loss(
        self, columns: Columns, stats: Stats, hyper: Hyper, counts: Counts
    ) -> tuple[Array, Sums]:
        """Returns the loss and the metrics; chosen = desirable."""
        record = singles(columns)
        judged = record.mask & (record.labels != 0)
        value = weighted_sum(self.parts, record, judged, stats, hyper, counts)
        lengths = columns.lengths.reshape(-1)
        own = columns._replace(
            lengths=jnp.where(judged, lengths, 0.0),
            entropy=jnp.where(judged, _flat(columns.entropy), 0.0),
            correct=jnp.where(judged, _flat(columns.correct), 0.0),
        )
        sums = terms.token_metrics(own)
        for name, label in (("chosen", 1), ("rejected", -1)):
            mask = record.mask & (record.labels == label)
            ratio = record.logps - record.ref_logps
            means = {
                f"logps/{name}": record.logps,
                f"logps/ref_{name}": record.ref_logps,
                f"rewards/{name}": hyper["beta"] * ratio,
                f"lengths/{name}": lengths,
            }
            sums |= terms.masked_means(means, mask)
        ratio = record.logps - record.ref_logps
        borrowed = record.mask & (record.labels == 0)
        return value, sums | {"mismatched_kl": terms.masked_mean(ratio, borrowed)}


def _flat(values: Array | None) -> Array:
    assert values is not None
    return values.reshape(-1)


def singles(columns: Columns) -> SingleLogps:
    """Takes the responses of a batch one by one; N = B·R."""
    mask = columns.lengths.reshape(-1) > 0
    at = lambda values: jnp.where(mask, _flat(values), 0)  # noqa: E731
    return SingleLogps(
        logps=at(columns.logps),
        ref_logps=jax.lax.stop_gradient(at(columns.ref_logps)),
        labels=at(columns.labels),
        mask=mask,
    )
