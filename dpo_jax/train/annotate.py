"""Adds columns to a batch before the step: what the reference says of it.

Reference parameters are arguments of the jitted function, never closed over and never
aliased with the donated policy.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dpo_jax import logps
from dpo_jax.types import ApplyFn, Array, Batch, Params

Fields = dict[str, Array]  # fields of `Batch` -> their values
Ask = Callable[[Params, Batch], Fields]
Annotate = Callable[[Params | None, Batch], Batch]


def token_logps(params: Params, batch: Batch, *, apply: ApplyFn, chunk: int) -> Fields:
    """Scores each microbatch under the reference.

    Args:
      params: the reference's.
      batch: with a leading axis of microbatches.
      apply: the reference model.
      chunk: scored tokens per row whose logits are held at a time.

    Returns:
      `ref_token_logps` f32[microbatches, B, C] nats.
    """

    def one(rows: Batch) -> Array:
        return logps.list_stats(*apply(params, rows), rows, chunk=chunk).logps

    return {"ref_token_logps": jax.lax.map(one, batch)}


def token_logps_and_states(
    params: Params, batch: Batch, *, apply: ApplyFn, chunk: int
) -> Fields:
    """Does as `token_logps`, and keeps the hidden states that its head would read.

    For losses that need the reference's whole distribution.

    Returns:
      `ref_token_logps`, and `ref_states` [microbatches, B, C, D].
    """

    def one(rows: Batch) -> tuple[Array, Array]:
        hidden, head = apply(params, rows)
        states = jnp.take_along_axis(hidden, rows.parents[..., None], axis=1)
        return logps.list_stats(hidden, head, rows, chunk=chunk).logps, states

    scored, states = jax.lax.map(one, batch)
    return {"ref_token_logps": scored, "ref_states": states}


def nothing(ref: Params | None, batch: Batch) -> Batch:
    """Leaves the batch as it is, where there is no reference."""
    del ref
    return batch


def reference(ask: Ask, frozen: Params) -> Annotate:
    """Makes an annotator that asks the frozen parameters, or those of the train state.

    Args:
      ask: jitted `token_logps` or `token_logps_and_states`.
      frozen: parameters of a reference that does not move.
    """

    def annotate(ref: Params | None, batch: Batch) -> Batch:
        return batch._replace(**ask(frozen if ref is None else ref, batch))

    return annotate
