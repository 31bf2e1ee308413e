"""A loss of chosen and rejected responses, or a weighted sum of several.

The losses are functions handed in; this room knows the shape of pairs and the metrics
that users of the field know, and nothing of models.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dpo_jax.objectives import terms
from dpo_jax.types import (
    Array,
    Batch,
    Columns,
    Counts,
    Hyper,
    PairLogps,
    Params,
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

    fn: Callable[[NamedTuple, Stats, Hyper], Array]
    per: str
    weight: float = 1.0
    update: Callable[[NamedTuple, Stats, Hyper], Stats] | None = None


def weighted_sum(
    parts: tuple[Term, ...],
    record: NamedTuple,
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


def updated(
    parts: tuple[Term, ...], record: NamedTuple, stats: Stats, hyper: Hyper
) -> Stats:
    """Takes a step's records into the statistics of every part; no gradient."""
    for part in parts:
        if part.update is not None:
            stats = stats | part.update(record, stats, hyper)
    return jax.lax.stop_gradient(stats)


@dataclasses.dataclass(frozen=True)
class Preference:
    """Pairwise losses, averaged over the global batch's pairs (or chosen tokens).

    Attributes:
      scorer: of the responses.
      parts: the losses.
      couples: see `types.Objective`.
      weigh_pair: f32[N] m of the chosen and of the rejected response -> factor on the
        pair's loss; None = 1.
    """

    scorer: terms.Scorer
    parts: tuple[Term, ...]
    couples: bool = False
    weigh_pair: Callable[[Array, Array], Array] | None = None

    def counts(self, batch: Batch) -> Counts:
        """Counts pairs and chosen tokens."""
        return terms.counts(batch)

    def score(self, params: Params, batch: Batch, key: Array, hyper: Hyper) -> Columns:
        """Scores a microbatch's responses."""
        return self.scorer(params, batch, key, hyper)

    def update(self, columns: Columns, stats: Stats, hyper: Hyper) -> Stats:
        """Takes the pairs of a step into the running statistics."""
        return updated(self.parts, gather_pairs(columns), stats, hyper)

    def loss(
        self, columns: Columns, stats: Stats, hyper: Hyper, counts: Counts
    ) -> tuple[Array, Sums]:
        """Returns the loss and the field's metrics."""
        pairs = gather_pairs(columns)
        assert pairs.mask is not None
        factor = None
        if self.weigh_pair is not None:
            factor = self.weigh_pair(*sides(columns, columns.certainty))
        value = weighted_sum(
            self.parts, pairs, pairs.mask, stats, hyper, counts, factor
        )
        sums = terms.token_metrics(columns) | chosen_accuracy(columns)
        sums |= pair_metrics(pairs, hyper.get("beta"))
        if columns.ref_logps is not None:
            sums |= reference_metrics(pairs)
        return value, sums


def sides(columns: Columns, values: Array | None) -> tuple[Array, Array]:
    """Takes f32[B, R] of the compared responses side by side.

    Returns:
      f32[B·M] of the chosen and of the rejected; zeros where there is no pair, or where
      `values` is None.
    """
    index = columns.pairs.reshape(-1, 2)
    mask = index[:, 0] >= 0
    if values is None:
        nothing = jnp.zeros(mask.shape, columns.lengths.dtype)
        return nothing, nothing
    first, second = (
        jnp.where(mask, values.reshape(-1)[index[:, which]], 0.0) for which in (0, 1)
    )
    return first, second


def gather_pairs(columns: Columns) -> PairLogps:
    """Takes the compared responses side by side; N = B·M, `mask` says which are.

    Without a reference its log-probs are zeros.
    """
    chosen, rejected = sides(columns, columns.logps)
    ref_chosen, ref_rejected = sides(columns, columns.ref_logps)
    chosen_lengths, rejected_lengths = sides(columns, columns.lengths)
    pairs = PairLogps(
        chosen=chosen,
        rejected=rejected,
        ref_chosen=jax.lax.stop_gradient(ref_chosen),
        ref_rejected=jax.lax.stop_gradient(ref_rejected),
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
        mask=columns.pairs.reshape(-1, 2)[:, 0] >= 0,
    )
    if columns.ratings is not None:
        better, worse = sides(columns, columns.ratings)
        pairs = pairs._replace(chosen_ratings=better, rejected_ratings=worse)
    if columns.kls is not None:
        better, worse = sides(columns, columns.kls)
        pairs = pairs._replace(chosen_kls=better, rejected_kls=worse)
    return pairs


def chosen_accuracy(columns: Columns) -> Sums:
    """Says how many chosen tokens are the likeliest; of them alone, as TRL counts."""
    correct, _ = sides(columns, columns.correct)
    tokens, _ = sides(columns, columns.lengths)
    return {"mean_token_accuracy": (correct.sum(), tokens.sum())}


def pair_metrics(pairs: PairLogps, beta: Array | None) -> Sums:
    """Averages what needs no reference, and the implicit rewards where β is known.

    `rewards/*` are β × summed log-ratio whatever the loss; without a reference they are
    β × log-prob.
    """
    means = {
        "logps/chosen": pairs.chosen,
        "logps/rejected": pairs.rejected,
        "lengths/chosen": pairs.chosen_lengths,
        "lengths/rejected": pairs.rejected_lengths,
    }
    if beta is not None:
        chosen = beta * (pairs.chosen - pairs.ref_chosen)
        rejected = beta * (pairs.rejected - pairs.ref_rejected)
        means |= {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": (chosen > rejected).astype(jnp.float32),
        }
    return terms.masked_means(means, pairs.mask)


def reference_metrics(pairs: PairLogps) -> Sums:
    """Averages the reference's log-probs and how far the chosen response moved."""
    ratio = pairs.chosen - pairs.ref_chosen
    means = {
        "logps/ref_chosen": pairs.ref_chosen,
        "logps/ref_rejected": pairs.ref_rejected,
        "displacement/chosen": ratio,
        "displacement/chosen_falling": (ratio < 0).astype(jnp.float32),
    }
    return terms.masked_means(means, pairs.mask)
