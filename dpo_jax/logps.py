"""Masked gathers: log-probs of scored tokens, and their sums over responses.

A row names the tokens that it scores in a compact list (`parents`, `targets`, `slots`),
so the head runs on those only, and never on a prompt or on padding. It runs on one
chunk of the list at a time, forward and backward: of the size tokens × V nothing is
ever held. This room knows nothing of models or losses. Dimension key in `types.py`.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from dpo_jax.sharding.arrays import ROW_AXES
from dpo_jax.types import Array, Head, TokenStats


def wide(dtype: jnp.dtype) -> jnp.dtype:
    """Returns float32, or the wider dtype that came in (float64 in exact tests)."""
    return jnp.promote_types(dtype, jnp.float32)


def logits(hidden: Array, head: Head) -> Array:
    """Applies the head: [..., D] -> f32[..., V]."""
    out = jnp.einsum(
        "...D,DV->...V",
        hidden,
        head.kernel,
        preferred_element_type=wide(hidden.dtype),
    )
    if head.bias is not None:
        out = out + head.bias.astype(out.dtype)
    return _cut(out, head)


def logit_columns(hidden: Array, head: Head) -> Array:
    """Applies the head to one token of each row: [B, D] -> f32[V, B].

    The same values as those of `logits`, transposed: where there are few rows, XLA on
    CPU is faster if the kernel leads the product.
    """
    out = jnp.einsum(
        "DV,BD->VB",
        head.kernel,
        hidden,
        preferred_element_type=wide(hidden.dtype),
    )
    if head.bias is not None:
        out = out + head.bias.astype(out.dtype)[:, None]
    return _cut(out, head)


def _cut(values: Array, head: Head) -> Array:
    """Cuts logits to ±softcap."""
    if not head.softcap:
        return values
    return head.softcap * jnp.tanh(values / head.softcap)


def log_softmax(values: Array) -> tuple[Array, Array]:
    """Returns log-probs f32[..., V] and their normalizer log Σ exp, f32[...]."""
    top = jax.lax.stop_gradient(values.max(-1))
    normalizer = top + jnp.log(jnp.exp(values - top[..., None]).sum(-1))
    return values - normalizer[..., None], normalizer


def measured(
    values: Array, targets: Array, ref_values: Array | None
) -> tuple[TokenStats, Array]:
    """Returns what logits say of targets, and their normalizer.

    Args:
      values: f32[..., V] logits.
      targets: i32[...] ids.
      ref_values: f32[..., V] the reference's logits, no gradient.
    """
    ids = jax.lax.broadcasted_iota(targets.dtype, values.shape, values.ndim - 1)
    target, (log_probs, normalizer) = targets[..., None], log_softmax(values)
    picked = jnp.take_along_axis(values, target, axis=-1)[..., 0]
    frozen, best = jax.lax.stop_gradient((values, picked[..., None]))
    beaten = (frozen < best) | ((frozen == best) & (ids >= target))
    sure = jax.lax.stop_gradient(log_probs)
    kl = None
    if ref_values is not None:
        ref_log_probs = jax.lax.stop_gradient(log_softmax(ref_values)[0])
        kl = (jnp.exp(ref_log_probs) * (ref_log_probs - log_probs)).sum(-1)
    stats = TokenStats(
        logps=picked - normalizer,
        entropy=-(jnp.exp(sure) * sure).sum(-1),
        correct=beaten.all(-1).astype(values.dtype),
        collision=jnp.log(jnp.exp(2 * sure).sum(-1)),
        kl=kl,
    )
    return stats, normalizer


def target_stats(values: Array, targets: Array) -> TokenStats:
    """Returns what logits f32[..., V] say of targets i32[...]: f32[...] each."""
    return measured(values, targets, None)[0]


def logit_gradient(
    values: Array,
    normalizer: Array,
    targets: Array,
    slopes: TokenStats,
    ref_values: Array | None,
) -> Array:
    """Returns ∂/∂logits of what `measured` says, f32[..., V].

    d logps = onehot − p and d KL(ref‖policy) = p − p_ref.

    Args:
      values: f32[..., V] logits.
      normalizer: f32[...] of the logits.
      targets: i32[...] ids.
      slopes: f32[...] each; `logps` and `kl` count.
      ref_values: f32[..., V] the reference's logits.
    """
    ids = jax.lax.broadcasted_iota(targets.dtype, values.shape, values.ndim - 1)
    probs = jnp.exp(values - normalizer[..., None])
    slope = slopes.logps[..., None]
    out = jnp.where(ids == targets[..., None], slope, 0.0) - slope * probs
    if ref_values is not None and slopes.kl is not None:
        ref_probs = jnp.exp(log_softmax(ref_values)[0])
        out = out + slopes.kl[..., None] * (probs - ref_probs)
    return out


class Linear(NamedTuple):
    """The weights of a head: kernel [D, V] and bias [V] or None; or their gradients."""

    kernel: Array
    bias: Array | None


class Listed(NamedTuple):
    """The list of what is scored, cut into chunks along its leading axis.

    Attributes:
      parents: i32[chunks, B, chunk].
      targets: i32[chunks, B, chunk].
      ref_states: [chunks, B, chunk, D] the reference's hidden states, or None.
    """

    parents: Array
    targets: Array
    ref_states: Array | None


def flat(values: Array) -> Array:
    """Joins rows and entries: [B, C, …] -> [B·C, …]."""
    return values.reshape(-1, *values.shape[2:])


def gathered(hidden: Array, parents: Array) -> Array:
    """Picks hidden states: [B, T, D], i32[B, C] -> [B·C, D]."""
    return flat(jnp.take_along_axis(hidden, parents[..., None], axis=1))


def ref_logits(listed: Listed, softcap: float, linear: Linear | None) -> Array | None:
    """Returns the reference's logits of a chunk, [B·C, V]; None without one."""
    if linear is None:
        return None
    return logits(flat(listed.ref_states), Head(*linear, softcap))


def on_each_shard(run: Callable, rows: int, *, ins: tuple, outs: tuple) -> Callable:
    """Lets every shard of rows run through its chunks alone.

    Left to the compiler, the kernel's gradient would be summed over the mesh once a
    chunk. The axis `tensor`, and with it the vocabulary, does stay with the compiler.

    Args:
      run: a function of arrays.
      rows: B, over the whole mesh.
      ins: the axis along which each argument is split over rows; None = not split.
      outs: the same for what `run` returns.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in ROW_AXES if axis in mesh.axis_names)
    shards = math.prod(mesh.shape[axis] for axis in axes)
    if shards == 1 or rows % shards:
        return run
    ins, outs = (
        tuple(P() if i is None else P(*(None,) * i, axes) for i in places)
        for places in (ins, outs)
    )
    return jax.shard_map(
        run, in_specs=ins, out_specs=outs, axis_names=set(axes), check_vma=False
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def scored(
    softcap: float,
    ref_softcap: float,
    hidden: Array,
    linear: Linear,
    listed: Listed,
    ref: Linear | None,
) -> TokenStats:
    """Scores chunk by chunk: -> f32[chunks, B, chunk] each."""
    return scored_forward(softcap, ref_softcap, hidden, linear, listed, ref)[0]


def scored_forward(
    softcap: float,
    ref_softcap: float,
    hidden: Array,
    linear: Linear,
    listed: Listed,
    ref: Linear | None,
) -> tuple[TokenStats, tuple]:
    """Returns the statistics and what the backward pass needs, no logits among it."""

    def run(hidden: Array, linear: Linear, listed: Listed, ref: Linear | None) -> tuple:
        def one(_: None, entries: Listed) -> tuple[None, tuple[TokenStats, Array]]:
            states = gathered(hidden, entries.parents)
            values = logits(states, Head(*linear, softcap))  # [B·C, V]
            ref_values = ref_logits(entries, ref_softcap, ref)
            found = measured(values, flat(entries.targets), ref_values)
            shape = entries.parents.shape
            return None, jax.tree.map(lambda leaf: leaf.reshape(shape), found)

        return jax.lax.scan(one, None, listed)[1]

    run = on_each_shard(run, len(hidden), ins=(0, None, 1, None), outs=(1, 1))
    stats, normalizer = run(hidden, linear, listed, ref)
    return stats, (hidden, linear, listed, ref, normalizer)


def scored_backward(
    softcap: float, ref_softcap: float, saved: tuple, slopes: TokenStats
) -> tuple:
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
        def one(sums: Linear, xs: tuple) -> tuple[Linear, Array]:
            entries, normalizer, slopes = xs
            states = gathered(hidden, entries.parents)  # [B·C, D]
            values = logits(states, Head(*linear, softcap))  # [B·C, V]
            ref_values = ref_logits(entries, ref_softcap, ref)
            normalizer, slopes = jax.tree.map(flat, (normalizer, slopes))
            d_values = logit_gradient(
                values, normalizer, flat(entries.targets), slopes, ref_values
            )
            if softcap:
                d_values = d_values * (1 - jnp.square(values / softcap))
            bias = None if sums.bias is None else sums.bias + d_values.sum(0)
            d_values = d_values.astype(linear.kernel.dtype)
            # An array of its own: a CPU multiplies by a transposed view at half speed.
            across = jax.lax.optimization_barrier(states.T)
            kernel = sums.kernel + contract("DN,NV->DV", across, d_values)
            d_states = contract("NV,DV->ND", d_values, linear.kernel)
            d_states = d_states.reshape(*entries.parents.shape, -1)
            return Linear(kernel, bias), d_states

        start = jax.tree.map(lambda weight: jnp.zeros(weight.shape, dtype), linear)
        sums, d_states = jax.lax.scan(one, start, (listed, normalizer, slopes))
        zeros = jnp.zeros((*hidden.shape[1:],), dtype)
        d_hidden = jax.vmap(lambda parents, rows: zeros.at[parents].add(rows))(
            joined(listed.parents), joined(d_states)
        )
        return d_hidden, jax.tree.map(lambda total: total[None], sums)

    run = on_each_shard(run, len(hidden), ins=(0, None, 1, None, 1, 1), outs=(0, 0))
    d_hidden, parts = run(hidden, linear, listed, ref, normalizer, slopes)
    d_linear = jax.tree.map(
        lambda part, weight: part.sum(0).astype(weight.dtype), parts, linear
    )
    return d_hidden.astype(hidden.dtype), d_linear, None, None


scored.defvjp(scored_forward, scored_backward)


def split(values: Array, count: int) -> Array:
    """Cuts a list into chunks, padded with 0: [B, C, …] -> [chunks, B, chunk, …]."""
    rows, size = values.shape[:2]
    chunk = -(-size // count)
    padding = ((0, 0), (0, count * chunk - size)) + ((0, 0),) * (values.ndim - 2)
    padded = jnp.pad(values, padding)
    return padded.reshape(rows, count, chunk, *values.shape[2:]).swapaxes(0, 1)


def joined(values: Array) -> Array:
    """Puts chunks one behind the other: [chunks, B, chunk, …] -> [B, C, …]."""
    chunks, rows, chunk = values.shape[:3]
    return values.swapaxes(0, 1).reshape(rows, chunks * chunk, *values.shape[3:])


def token_logps(
    hidden: Array,
    head: Head,
    parents: Array,
    targets: Array,
    *,
    chunk: int,
    ref: tuple[Array, Head] | None = None,
) -> TokenStats:
    """Scores listed tokens, never holding more than one chunk of logits.

    The head is run again in the backward pass, so that holds forward and backward.

    Args:
      hidden: [B, T, D] final hidden states.
      head: the map from hidden states to logits.
      parents: i32[B, C] index of the token whose hidden state predicts.
      targets: i32[B, C] the id that is predicted.
      chunk: list entries per row whose logits are held at a time at most; at least 1.
      ref: ([B, C, D] the reference's hidden states at `parents`, its head); what comes
        from it carries no gradient back.

    Returns:
      f32[B, C] each, meaningless at padding. `logps` and `kl` carry gradients to
      `hidden` and `head`.
    """
    chex.assert_rank([hidden, parents, targets], [3, 2, 2])
    chex.assert_equal_shape([parents, targets])
    size = parents.shape[1]
    count = max(1, -(-size // chunk))
    listed = Listed(split(parents, count), split(targets, count), None)
    linear, ref_linear, ref_softcap = Linear(head.kernel, head.bias), None, 0.0
    if ref is not None:
        ref_states, ref_head = ref
        chex.assert_shape(ref_states, (*parents.shape, None))
        listed = listed._replace(ref_states=split(ref_states, count))
        ref_linear = Linear(ref_head.kernel, ref_head.bias)
        ref_softcap = ref_head.softcap
    stats = scored(head.softcap, ref_softcap, hidden, linear, listed, ref_linear)
    return jax.tree.map(lambda values: joined(values)[:, :size], stats)


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
    scored = slots < num_slots
    values = token_logps * weights
    values = jnp.where(scored, values, 0.0).astype(wide(values.dtype))

    def one_row(values: Array, slots: Array) -> Array:
        return jax.ops.segment_sum(values, slots, num_segments=num_slots)

    return jax.vmap(one_row)(values, slots)


def response_lengths(slots: Array, num_slots: int) -> Array:
    """Counts scored tokens: i32[B, C] -> f32[B, R]."""
    ones = jnp.ones(slots.shape, jnp.float32)
    return response_logps(ones, ones, slots, num_slots)
