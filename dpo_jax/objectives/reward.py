"""A reward model: a scalar head that scores whole responses, and learns from pairs."""

import dataclasses

import jax
import jax.numpy as jnp

from dpo_jax import logps
from dpo_jax.models import scalar
from dpo_jax.objectives import terms
from dpo_jax.objectives.preference import Term, sides, weighted_sum
from dpo_jax.types import (
    ApplyFn,
    Array,
    Batch,
    Columns,
    Counts,
    Hyper,
    PairScores,
    Params,
    Stats,
    Sums,
)

BINS = 10  # of predicted probability, for the calibration error


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """Losses of the scores of pairs, averaged over those of the global batch.

    Attributes:
      apply: the model, with a scalar head.
      parts: the losses.
      use_margins: whether the difference of the data's ratings is the least margin.
    """

    apply: ApplyFn
    parts: tuple[Term, ...]
    use_margins: bool
    couples: bool = False

    def counts(self, batch: Batch) -> Counts:
        """Counts pairs."""
        return terms.counts(batch)

    def score(self, params: Params, batch: Batch, key: Array, hyper: Hyper) -> Columns:
        """Scores a microbatch's responses at their last tokens."""
        del key, hyper
        hidden, head = self.apply(params, batch)
        return Columns(
            lengths=logps.response_lengths(batch.slots, batch.ends.shape[-1]),
            pairs=batch.pairs,
            scores=scalar.scores(hidden, head, batch.ends),
            ratings=batch.ratings,
        )

    def update(self, columns: Columns, stats: Stats, hyper: Hyper) -> Stats:
        """Keeps nothing."""
        del columns, hyper
        return stats

    def loss(
        self, columns: Columns, stats: Stats, hyper: Hyper, counts: Counts
    ) -> tuple[Array, Sums]:
        """Returns the loss, and accuracy, margin and calibration of the scores."""
        chosen, rejected = sides(columns, columns.scores)
        margins = jnp.zeros_like(chosen)
        if self.use_margins:
            better, worse = sides(columns, columns.ratings)
            margins = better - worse
        record = PairScores(chosen, rejected, margins)
        mask = columns.pairs.reshape(-1, 2)[:, 0] >= 0
        value = weighted_sum(self.parts, record, mask, stats, hyper, counts)
        chosen_lengths, rejected_lengths = sides(columns, columns.lengths)
        means = {
            "scores/chosen": chosen,
            "scores/rejected": rejected,
            "scores/margins": chosen - rejected,
            "scores/accuracies": (chosen > rejected).astype(jnp.float32),
            "scores/brier": jnp.square(jax.nn.sigmoid(rejected - chosen)),
            "lengths/chosen": chosen_lengths,
            "lengths/rejected": rejected_lengths,
        }
        return value, terms.masked_means(means, mask)


def calibration_error(columns: Columns) -> Array:
    """Says how far predicted and observed probabilities of preference lie apart.

    A pair's prediction is σ(|score difference|), that its likelier response was chosen;
    within each of `BINS` equal bins of [½, 1] the mean prediction is compared with the
    share that came true, and the gaps are averaged over pairs.

    Args:
      columns: of a whole set; meaningless on a small batch.

    Returns:
      f32[] in [0, ½].

    Source: expected calibration error, arXiv:1706.04599 section 2.
    """
    chosen, rejected = sides(columns, columns.scores)
    mask = columns.pairs.reshape(-1, 2)[:, 0] >= 0
    margins = chosen - rejected
    predicted = jax.nn.sigmoid(jnp.abs(margins))
    bins = jnp.clip(((predicted - 0.5) * 2 * BINS).astype(jnp.int32), 0, BINS - 1)
    gaps = jnp.where(mask, predicted - (margins > 0), 0.0)
    gap = jax.ops.segment_sum(gaps, bins, num_segments=BINS)
    return jnp.abs(gap).sum() / jnp.maximum(mask.sum(), 1)
