"""What the objectives share: a microbatch scored, and metrics that its columns give."""

import jax.numpy as jnp

from dpo_jax import logps
from dpo_jax.types import ApplyFn, Array, Batch, Columns, Params, Sums, TokenStats


def token_stats(apply: ApplyFn, params: Params, batch: Batch, chunk: int) -> TokenStats:
    """Runs a model on rows and scores their listed tokens, f32[B, C] each."""
    hidden, head = apply(params, batch)
    return logps.token_logps(hidden, head, batch.parents, batch.targets, chunk=chunk)


def columns(stats: TokenStats, batch: Batch) -> Columns:
    """Sums token statistics over the responses of a microbatch."""
    num_slots = batch.ends.shape[-1]
    ones = jnp.ones_like(stats.logps)

    def total(values: Array) -> Array:
        return logps.response_logps(values, ones, batch.slots, num_slots)

    reference = batch.ref_token_logps
    return Columns(
        logps=total(stats.logps),
        ref_logps=None if reference is None else total(reference),
        lengths=logps.response_lengths(batch.slots, num_slots),
        entropy=total(stats.entropy),
        pairs=batch.pairs,
    )


def score(apply: ApplyFn, params: Params, batch: Batch, chunk: int) -> Columns:
    """Runs a model on rows and sums what it says over their responses."""
    return columns(token_stats(apply, params, batch, chunk), batch)


def masked_mean(values: Array, mask: Array) -> tuple[Array, Array]:
    """Returns (sum, count) of the values that count; f32[N], bool[N]."""
    return jnp.where(mask, values, 0.0).sum(), mask.sum().astype(jnp.float32)


def entropy(columns: Columns) -> Sums:
    """Averages the entropy over all response tokens."""
    return {"entropy": (columns.entropy.sum(), columns.lengths.sum())}
