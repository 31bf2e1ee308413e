"""A loss of chosen and rejected responses against a reference.

The loss is a function handed in; this room knows the shape of pairs and the metrics
that users of the field know, and nothing of models.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dpo_jax.objectives import terms
from dpo_jax.types import (
    ApplyFn,
    Array,
    Batch,
    Columns,
    PairLogps,
    Params,
    Sums,
)

PairLoss = Callable[[PairLogps, dict[str, Array]], Array]


@dataclasses.dataclass(frozen=True)
class Preference:
    """A pairwise loss, averaged over the global batch's pairs (or chosen tokens).

    Attributes:
      apply: the policy.
      pair_loss: `(PairLogps, hyper) -> f32[N]`.
      per: `pairs` or `chosen_tokens`, what the sum is divided by.
      chunk: scored tokens per row whose logits are held at a time.
    """

    apply: ApplyFn
    pair_loss: PairLoss
    per: str
    chunk: int

    def score(self, params: Params, batch: Batch, key: Array) -> Columns:
        """Scores a microbatch's responses."""
        del key
        return terms.score(self.apply, params, batch, self.chunk)

    def loss(
        self, columns: Columns, stats: dict[str, Array], hyper: dict[str, Array]
    ) -> tuple[Sums, dict[str, Array]]:
        """Returns the loss and the field's metrics; no running statistics."""
        pairs, mask = gather_pairs(columns)
        losses = self.pair_loss(pairs, hyper)
        total, count = terms.masked_mean(losses, mask)
        if self.per == "chosen_tokens":
            count = pairs.chosen_lengths.sum()
        sums: Sums = {"loss": (total, count), **terms.entropy(columns)}
        sums |= pair_metrics(pairs, mask, hyper.get("beta"))
        if columns.ref_logps is not None:
            sums |= reference_metrics(pairs, mask)
        return sums, stats


def gather_pairs(columns: Columns) -> tuple[PairLogps, Array]:
    """Takes the compared responses side by side.

    Returns:
      `PairLogps` of f32[B·M] with zeros where there is no pair, and bool[B·M]. Without
      a reference its log-probs are zeros.
    """
    index = columns.pairs.reshape(-1, 2)
    mask = index[:, 0] >= 0

    def side(values: Array | None, which: int) -> Array:
        if values is None:
            return jnp.zeros(mask.shape, columns.logps.dtype)
        return jnp.where(mask, values.reshape(-1)[index[:, which]], 0.0)

    reference = columns.ref_logps
    if reference is not None:
        reference = jax.lax.stop_gradient(reference)
    pairs = PairLogps(
        chosen=side(columns.logps, 0),
        rejected=side(columns.logps, 1),
        ref_chosen=side(reference, 0),
        ref_rejected=side(reference, 1),
        chosen_lengths=side(columns.lengths, 0),
        rejected_lengths=side(columns.lengths, 1),
    )
    return pairs, mask


def pair_metrics(pairs: PairLogps, mask: Array, beta: Array | None) -> Sums:
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
    return {name: terms.masked_mean(value, mask) for name, value in means.items()}


def reference_metrics(pairs: PairLogps, mask: Array) -> Sums:
    """Averages the reference's log-probs and how far the chosen response moved."""
    ratio = pairs.chosen - pairs.ref_chosen
    means = {
        "logps/ref_chosen": pairs.ref_chosen,
        "logps/ref_rejected": pairs.ref_rejected,
        "displacement/chosen": ratio,
        "displacement/chosen_falling": (ratio < 0).astype(jnp.float32),
    }
    return {name: terms.masked_mean(value, mask) for name, value in means.items()}
