"""A reward model: a scalar head that scores whole responses, and learns from pairs."""

import dataclasses

import jax
import jax.numpy as jnp

from dpo_jax import roles
from dpo_jax.models import scalar
from dpo_jax.objectives import terms
from dpo_jax.objectives.judged import Kind
from dpo_jax.objectives.preference import sides
from dpo_jax.types import (
    ApplyFn,
    Array,
    Batch,
    Columns,
    Frozen,
    Hyper,
    PairScores,
    Params,
    Reports,
    Sums,
)

BINS = 10  # of predicted probability, for the calibration error


@dataclasses.dataclass(frozen=True)
class ScalarScorer:
    """Scores the responses of a microbatch at their last tokens: `Objective.score`.

    Attributes:
      apply: the model, with a scalar head.
    """

    apply: ApplyFn

    def __call__(
        self, params: Params, frozen: Frozen, batch: Batch, key: Array, hyper: Hyper
    ) -> tuple[Columns, Reports]:
        """Runs the model on rows."""
        del key, hyper
        hidden, head, reports = self.apply(roles.whole(params, frozen), batch)
        scores = {"scores": scalar.scores(hidden, head, batch.ends)}
        return terms.data_columns(batch, scores), reports


def take_scores(columns: Columns) -> tuple[PairScores, Array]:
    """Takes the scores of pairs, and which of them count; no least margins."""
    chosen, rejected = sides(columns, columns.response["scores"])
    mask = columns.pairs.reshape(-1, 2)[:, 0] >= 0
    return PairScores(chosen, rejected, jnp.zeros_like(chosen)), mask


def take_scores_and_margins(columns: Columns) -> tuple[PairScores, Array]:
    """Takes the scores of pairs; the difference of ratings is the least margin."""
    record, mask = take_scores(columns)
    better, worse = sides(columns, columns.response["ratings"])
    return record._replace(margins=better - worse), mask


def metrics(columns: Columns, record: PairScores, hyper: Hyper) -> Sums:
    """Averages accuracy, margin and calibration of the scores."""
    del hyper
    chosen, rejected = record.chosen, record.rejected
    chosen_lengths, rejected_lengths = sides(columns, columns.lengths)
    means = {
        "scores/chosen": chosen,
        "scores/rejected": rejected,
        "scores/margins": chosen - rejected,
        "scores/accuracies": terms.wins(chosen, rejected),
        "scores/brier": jnp.square(jax.nn.sigmoid(rejected - chosen)),
        "lengths/chosen": chosen_lengths,
        "lengths/rejected": rejected_lengths,
    }
    return terms.masked_means(means, take_scores(columns)[1])


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
    chosen, rejected = sides(columns, columns.response["scores"])
    mask = columns.pairs.reshape(-1, 2)[:, 0] >= 0
    predicted = jax.nn.sigmoid(jnp.abs(chosen - rejected))
    bins = jnp.clip(((predicted - 0.5) * 2 * BINS).astype(jnp.int32), 0, BINS - 1)
    gaps = jnp.where(mask, predicted - terms.wins(chosen, rejected), 0.0)
    gap = jax.ops.segment_sum(gaps, bins, num_segments=BINS)
    return jnp.abs(gap).sum() / jnp.maximum(mask.sum(), 1)


def of_set(whole: Columns) -> dict[str, Array]:
    """Finds the calibration of a reward model."""
    return {"scores/calibration_error": calibration_error(whole)}


SCORES = Kind(
    "pairs",
    "scores",
    take_scores,
    metrics,
    of_set=of_set,
    scalar=True,
    reference=False,
)
