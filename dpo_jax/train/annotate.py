"""Adds columns to a batch before the step: what the reference says of it.

`(state, frozen, batch, key, hyper) -> batch`, for every algorithm. Parameters are
arguments of what is jitted, never closed over and never donated.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from dpo_jax import logps, roles
from dpo_jax.types import ApplyFn, Array, Batch, Frozen, Hyper, Params, TrainState

TokenColumns = dict[str, Array]  # name -> [microbatches, B, C, …]
Annotate = Callable[[TrainState, Frozen, Batch, Array, Hyper], Batch]


def ref_logps(
    params: Params,
    batch: Batch,
    *,
    apply: ApplyFn,
    chunk: int,
    temperature: float = 1.0,
) -> TokenColumns:
    """Scores each microbatch under the reference.

    Args:
      params: the reference's.
      batch: with a leading axis of microbatches.
      apply: the reference model.
      chunk: scored tokens per row whose logits are held at a time.
      temperature: of the distribution that is scored.

    Returns:
      `ref_logps` f32[microbatches, B, C] nats.
    """

    def one(rows: Batch) -> TokenColumns:
        hidden, head, _ = apply(params, rows)
        said = logps.list_stats(
            hidden, head, rows, chunk=chunk, temperature=temperature
        )
        return {"ref_logps": said.logps}

    return jax.lax.map(one, batch)


def ref_logps_and_states(
    params: Params, batch: Batch, *, apply: ApplyFn, chunk: int
) -> TokenColumns:
    """Does as `ref_logps`, and keeps the hidden states that its head would read.

    For losses that need the reference's whole distribution.

    Returns:
      `ref_logps`, and `ref_states` [microbatches, B, C, D].
    """

    def one(rows: Batch) -> TokenColumns:
        hidden, head, _ = apply(params, rows)
        return {
            "ref_logps": logps.list_stats(hidden, head, rows, chunk=chunk).logps,
            "ref_states": jnp.take_along_axis(hidden, rows.parents[..., None], axis=1),
        }

    return jax.lax.map(one, batch)


def with_tokens(batch: Batch, columns: Mapping[str, Array]) -> Batch:
    """Adds columns of tokens."""
    return batch._replace(token={**batch.token, **columns})


def nothing(
    state: TrainState, frozen: Frozen, batch: Batch, key: Array, hyper: Hyper
) -> Batch:
    """Leaves the batch as it is: no reference, or its column came with the records."""
    del state, frozen, key, hyper
    return batch


def reference(score: Callable[[Params, Batch], TokenColumns]) -> Annotate:
    """Makes an annotator that scores a batch under the reference.

    Args:
      score: jitted `ref_logps` or `ref_logps_and_states`.

    Returns:
      The annotator, of the parameters that `roles.reference` finds.
    """

    def annotate(
        state: TrainState, frozen: Frozen, batch: Batch, key: Array, hyper: Hyper
    ) -> Batch:
        del key, hyper
        return with_tokens(batch, score(roles.reference(state, frozen), batch))

    return annotate
