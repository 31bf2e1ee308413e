"""Masked gathers: log-probs of scored tokens, and their sums over responses.

A row names the tokens that it scores in a compact list (`parents`, `targets`, `slots`),
so the head runs on those only, and never on a prompt or on padding. It runs on one
chunk of the list at a time, forward and backward: of the size tokens × V nothing is
ever held. This room knows nothing of models or losses. Dimension key in `types.py`.
"""

import functools
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from dpo_jax.heads import logit_gradient, logits, measured, wide
from dpo_jax.sharding.arrays import on_each_shard
from dpo_jax.types import Array, Batch, Head, TokenStats


class Linear(NamedTuple):
    """The weights of a head: kernel [D, V] and bias [V] or None; or their gradients."""

    kernel: Array
    bias: Array | None


class Listed(NamedTuple):
    """The list of what may be scored.

    Attributes:
      parents: i32[B, C].
      targets: i32[B, C].
      mask: bool[B, C] what is scored.
      ref_states: [B, C, D] the reference's hidden states, or None.
    """

    parents: Array
    targets: Array
    mask: Array
    ref_states: Array | None


class Chunks(NamedTuple):
    """The list without its gaps, joined over rows and cut into chunks.

    Places behind the last scored entry read nothing and write nothing: their indices
    are out of bounds.

    Attributes:
      count: i32[] chunks that hold a scored entry.
      entries: i32[chunks, size] index into the B·C entries.
      parents: i32[chunks, size] index into the B·T tokens.
      targets: i32[chunks, size].
    """

    count: Array
    entries: Array
    parents: Array
    targets: Array


def chunks(listed: Listed, tokens: int, chunk: int) -> Chunks:
    """Lines up what is scored.

    Args:
      listed: the list.
      tokens: T.
      chunk: entries per row that make a chunk, at most.
    """
    rows, entries = listed.mask.shape
    number = max(1, -(-entries // chunk))
    size = rows * -(-entries // number)
    mask, all_entries = listed.mask.reshape(-1), rows * entries
    order = jnp.argsort(~mask, stable=True).astype(jnp.int32)
    scored_mask = mask[order]
    parents = listed.parents + tokens * jnp.arange(rows, dtype=jnp.int32)[:, None]

    def lined_up(values: Array, otherwise: int) -> Array:
        values = jnp.where(scored_mask, values, otherwise)
        missing = number * size - all_entries
        padded = jnp.pad(values, (0, missing), constant_values=otherwise)
        return padded.reshape(number, size)

    return Chunks(
        count=-(-mask.sum() // size),
        entries=lined_up(order, all_entries),
        parents=lined_up(parents.reshape(-1)[order], rows * tokens),
        targets=lined_up(listed.targets.reshape(-1)[order], 0),
    )


def flat(values: Array) -> Array:
    """Joins rows and entries: [B, C, …] -> [B·C, …]."""
    return values.reshape(-1, *values.shape[2:])


def picked_rows(values: Array, at: Array) -> Array:
    """Picks along the first axis; 0 where the index is out of bounds."""
    return values.at[at].get(mode="fill", fill_value=0)


def ref_logits(
    listed: Listed, at: Array, options: "Options", linear: Linear | None
) -> Array | None:
    """Returns the reference's tempered logits of a chunk, [size, V]; None without."""
    if linear is None:
        return None
    head = Head(*linear, options.ref_softcap, options.ref_vocab)
    values = logits(picked_rows(flat(listed.ref_states), at), head)
    return tempered(values, options.temperature)


def tempered(values: Array, temperature: float) -> Array:
    """Divides logits, or what comes back to them, by the temperature."""
    return values if temperature == 1.0 else values / temperature


class Options(NamedTuple):
    """Static facts of a scoring.

    Attributes:
      chunk: entries per row whose logits are held at a time, at most.
      softcap: of the head.
      ref_softcap: of the reference's.
      temperature: that logits are divided by, behind the softcap.
      vocab: of the head.
      ref_vocab: of the reference's.
    """

    chunk: int
    softcap: float
    ref_softcap: float
    temperature: float = 1.0
    vocab: int = 0
    ref_vocab: int = 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def scored(
    options: Options,
    hidden: Array,
    linear: Linear,
    listed: Listed,
    ref: Linear | None,
) -> TokenStats:
    """Scores chunk by chunk: -> f32[B, C] each."""
    return scored_forward(options, hidden, linear, listed, ref)[0]


def scored_forward(
    options: Options,
    hidden: Array,
    linear: Linear,
    listed: Listed,
    ref: Linear | None,
) -> tuple[TokenStats, tuple]:
    """Returns the statistics and what the backward pass needs, no logits among it."""

    def run(hidden: Array, linear: Linear, listed: Listed, ref: Linear | None) -> tuple:
        every = chunks(listed, hidden.shape[1], options.chunk)
        rows = flat(hidden)

        def measure(i: Array) -> tuple[TokenStats, Array]:
            states = picked_rows(rows, every.parents[i])
            head = Head(*linear, options.softcap, options.vocab)
            values = logits(states, head)  # [size, V]
            values = tempered(values, options.temperature)
            others = ref_logits(listed, every.entries[i], options, ref)
            return measured(values, every.targets[i], others)

        def one(i: Array, found: tuple) -> tuple:
            at = every.entries[i]
            return jax.tree.map(
                lambda all_of_them, new: all_of_them.at[at].set(new, mode="drop"),
                found,
                measure(i),
            )

        shape = listed.mask.shape
        start = jax.tree.map(
            lambda leaf: jnp.zeros(math.prod(shape), leaf.dtype),
            jax.eval_shape(measure, 0),
        )
        found = jax.lax.fori_loop(0, every.count, one, start)
        return jax.tree.map(lambda leaf: leaf.reshape(shape), found)

    run = on_each_shard(run, len(hidden), ins=(0, None, 0, None), outs=(0, 0))
    stats, normalizer = run(hidden, linear, listed, ref)
    return stats, (hidden, linear, listed, ref, normalizer)


def scored_backward(options: Options, saved: tuple, slopes: TokenStats) -> tuple:
    """Runs the head again, chunk by chunk, and pulls the slopes back through it.

    The gradients of kernel and bias are summed over chunks in float32, and those of
    the hidden states over the entries that share a parent.
    """
    hidden, linear, listed, ref, normalizer = saved
    dtype = wide(hidden.dtype)
    contract = functools.partial(jnp.einsum, preferred_element_type=dtype)

    def run(
        hidden: Array,
        linear: Linear,
        listed: Listed,
        ref: Linear | None,
        normalizer: Array,
        slopes: TokenStats,
    ) -> tuple[Array, Linear]:
        every = chunks(listed, hidden.shape[1], options.chunk)
        rows, given = flat(hidden), jax.tree.map(flat, (normalizer, slopes))

        def one(i: Array, sums: tuple[Linear, Array]) -> tuple[Linear, Array]:
            total, d_rows = sums
            at, parents = every.entries[i], every.parents[i]
            states = picked_rows(rows, parents)  # [size, D]
            head = Head(*linear, options.softcap, options.vocab)
            values = logits(states, head)  # [size, V]
            others = ref_logits(listed, at, options, ref)
            normalizer, slopes = jax.tree.map(lambda x: picked_rows(x, at), given)
            d_values = logit_gradient(
                tempered(values, options.temperature),
                normalizer,
                every.targets[i],
                slopes,
                others,
            )
            d_values = tempered(d_values, options.temperature)
            if options.softcap:
                within = jnp.maximum(values, -options.softcap)  # unless it is `NEVER`
                d_values = d_values * (1 - jnp.square(within / options.softcap))
            bias = None if total.bias is None else total.bias + d_values.sum(0)
            d_values = d_values.astype(linear.kernel.dtype)
            # An array of its own: a CPU multiplies by a transposed view at half speed.
            across = jax.lax.optimization_barrier(states.T)
            kernel = total.kernel + contract("DN,NV->DV", across, d_values)
            d_states = contract("NV,DV->ND", d_values, linear.kernel)
            d_rows = d_rows.at[parents].add(d_states, mode="drop")
            return Linear(kernel, bias), d_rows

        start = jax.tree.map(lambda x: jnp.zeros(x.shape, dtype), (linear, rows))
        total, d_rows = jax.lax.fori_loop(0, every.count, one, start)
        d_linear = jax.tree.map(lambda part: part[None], total)
        return d_rows.reshape(hidden.shape), d_linear

    run = on_each_shard(run, len(hidden), ins=(0, None, 0, None, 0, 0), outs=(0, 0))
    d_hidden, parts = run(hidden, linear, listed, ref, normalizer, slopes)
    d_linear = jax.tree.map(
        lambda part, weight: part.sum(0).astype(weight.dtype), parts, linear
    )
    return d_hidden.astype(hidden.dtype), d_linear, None, None


scored.defvjp(scored_forward, scored_backward)


def token_logps(
    hidden: Array,
    head: Head,
    parents: Array,
    targets: Array,
    *,
    chunk: int,
    scored_mask: Array | None = None,
    ref: tuple[Array, Head] | None = None,
    temperature: float = 1.0,
) -> TokenStats:
    """Scores listed tokens, never holding more than one chunk of logits.

    The head is run again in the backward pass, so that holds forward and backward. It
    runs on as many chunks as there is something to score: the list's padding is free.

    Args:
      hidden: [B, T, D] final hidden states.
      head: the map from hidden states to logits.
      parents: i32[B, C] index of the token whose hidden state predicts.
      targets: i32[B, C] the id that is predicted.
      chunk: list entries per row whose logits are held at a time at most; at least 1.
      scored_mask: bool[B, C] which entries count; None = all.
      ref: ([B, C, D] the reference's hidden states at `parents`, its head); what comes
        from it carries no gradient back.
      temperature: > 0, that the logits of both are divided by.

    Returns:
      f32[B, C] each, 0 where the mask is False. `logps` and `kl` carry gradients to
      `hidden` and `head`.
    """
    chex.assert_rank([hidden, parents, targets], [3, 2, 2])
    chex.assert_equal_shape([parents, targets])
    mask = jnp.ones(parents.shape, bool) if scored_mask is None else scored_mask
    chex.assert_shape(mask, parents.shape)
    hidden = jnp.asarray(hidden)  # NumPy has no `.at`
    listed = Listed(*map(jnp.asarray, (parents, targets, mask)), ref_states=None)
    linear, ref_linear = Linear(head.kernel, head.bias), None
    options = Options(chunk, head.softcap, 0.0, temperature, head.vocab)
    if ref is not None:
        ref_states, ref_head = ref
        chex.assert_shape(ref_states, (*parents.shape, None))
        listed = listed._replace(ref_states=ref_states)
        ref_linear = Linear(ref_head.kernel, ref_head.bias)
        options = options._replace(
            ref_softcap=ref_head.softcap, ref_vocab=ref_head.vocab
        )
    return scored(options, hidden, linear, listed, ref_linear)


def list_stats(
    hidden: Array,
    head: Head,
    batch: Batch,
    *,
    chunk: int,
    ref: tuple[Array, Head] | None = None,
    temperature: float = 1.0,
) -> TokenStats:
    """Scores the list of a microbatch; as `token_logps` else."""
    return token_logps(
        hidden,
        head,
        batch.parents,
        batch.targets,
        chunk=chunk,
        scored_mask=scored_places(batch.slots, batch.ends.shape[-1]),
        ref=ref,
        temperature=temperature,
    )


def scored_places(slots: Array, num_slots: int) -> Array:
    """Says which entries of the list are scored and not padding: bool like `slots`."""
    return slots < num_slots


def response_logps(
    token_logps: Array, weights: Array, slots: Array, num_slots: int
) -> Array:
    """Sums weighted log-probs over each response.

    Args:
      token_logps: f32[B, C] nats.
      weights: f32[B, C]; ones, or a weighting that policy and reference share.
      slots: i32[B, C] slot of each entry; `num_slots` marks padding.
      num_slots: R.

    Returns:
      f32[B, R] nats; 0 for empty slots, whatever stands at padding.
    """
    chex.assert_equal_shape([token_logps, weights, slots])
    values = token_logps * weights
    values = jnp.where(scored_places(slots, num_slots), values, 0.0).astype(
        wide(values.dtype)
    )

    def one_row(values: Array, slots: Array) -> Array:
        return jax.ops.segment_sum(values, slots, num_segments=num_slots)

    return jax.vmap(one_row)(values, slots)


def response_lengths(slots: Array, num_slots: int) -> Array:
    """Counts scored tokens: i32[B, C] -> f32[B, R]."""
    ones = jnp.ones(slots.shape, jnp.float32)
    return response_logps(ones, ones, slots, num_slots)
