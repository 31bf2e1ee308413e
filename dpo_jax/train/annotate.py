"""Adds columns to a batch before the step: the reference's log-probs.

Reference parameters are arguments of the jitted function, never closed over and never
aliased with the donated policy.
"""

from collections.abc import Callable

import jax

from dpo_jax import logps
from dpo_jax.types import ApplyFn, Array, Batch, Params

Annotate = Callable[[Batch], Batch]


def ref_token_logps(
    params: Params, batch: Batch, *, apply: ApplyFn, chunk: int
) -> Array:
    """Scores each microbatch under the reference.

    Args:
      params: the reference's.
      batch: with a leading axis of microbatches.
      apply: the reference model.
      chunk: scored tokens per row whose logits are held at a time.

    Returns:
      f32[microbatches, B, C] nats.
    """

    def one(rows: Batch) -> Array:
        hidden, head = apply(params, rows)
        stats = logps.token_logps(hidden, head, rows.parents, rows.targets, chunk=chunk)
        return stats.logps

    return jax.lax.map(one, batch)


def nothing(batch: Batch) -> Batch:
    """Leaves the batch as it is, where there is no reference."""
    return batch


def reference(score: Callable[[Params, Batch], Array], params: Params) -> Annotate:
    """Makes an annotator of a jitted `ref_token_logps` and the frozen parameters."""

    def annotate(batch: Batch) -> Batch:
        return batch._replace(ref_token_logps=score(params, batch))

    return annotate
