"""Masked gathers: log-probs of scored tokens, and their sums over responses.

A row names the tokens that it scores in a compact list (`parents`, `targets`, `slots`),
so the head runs on those only, and never on a prompt or on padding. It runs on one
chunk of the list at a time, forward and backward: of the size tokens × V nothing is
ever held. This room knows nothing of models or losses. Dimension key in `types.py`.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

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
    return head.softcap * jnp.tanh(out / head.softcap) if head.softcap else out


def normalizers(values: Array) -> Array:
    """Returns log Σ exp over the vocabulary: f32[..., V] -> f32[...]."""
    top = jax.lax.stop_gradient(values.max(-1))
    return top + jnp.log(jnp.exp(values - top[..., None]).sum(-1))


def target_stats(
    values: Array, targets: Array, ref_values: Array | None = None
) -> TokenStats:
    """Returns what logits say of targets.

    Args:
      values: f32[..., V] logits.
      targets: i32[...] ids.
      ref_values: f32[..., V] the reference's logits, no gradient.
    """
    ids = jax.lax.broadcasted_iota(targets.dtype, values.shape, values.ndim - 1)
    target, normalizer = targets[..., None], normalizers(values)
    # Ids are compared, not looked up: a vocabulary that is sharded stays where it lies.
    picked = jnp.where(ids == target, values, 0.0).sum(-1)
    frozen, best = jax.lax.stop_gradient((values, picked[..., None]))
    above = frozen - frozen.max(-1, keepdims=True)
    weights = jnp.exp(above)
    mass = weights.sum(-1)
    beaten = (frozen < best) | ((frozen == best) & (ids >= target))
    kl = None
    if ref_values is not None:
        ref_logps = jax.lax.stop_gradient(
            ref_values - normalizers(ref_values)[..., None]
        )
        gap = ref_logps - (values - normalizer[..., None])
        kl = (jnp.exp(ref_logps) * gap).sum(-1)
    return TokenStats(
        logps=picked - normalizer,
        entropy=jnp.log(mass) - (weights * above).sum(-1) / mass,
        correct=beaten.all(-1).astype(values.dtype),
        collision=jnp.log((weights * weights).sum(-1)) - 2 * jnp.log(mass),
        kl=kl,
    )


def logit_gradient(
    values: Array,
    normalizer: Array,
    targets: Array,
    slopes: TokenStats,
    ref_values: Array | None,
) -> Array:
    """Returns ∂/∂logits of what `target_stats` says, f32[..., V].

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
    if ref_values is not None:
        ref_probs = jnp.exp(ref_values - normalizers(ref_values)[..., None])
        out = out + slopes.kl[..., None] * (probs - ref_probs)
    return out


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


def gathered(hidden: Array, parents: Array) -> Array:
    """Picks hidden states: [B, T, D], i32[B, C] -> [B, C, D]."""
    return jnp.take_along_axis(hidden, parents[..., None], axis=1)


def ref_logits(listed: Listed, softcap: float, linear: tuple | None) -> Array | None:
    """Returns the reference's logits of one chunk, if there is a reference."""
    return None if linear is None else logits(listed.ref_states, Head(*linear, softcap))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def scored(
    softcap: float,
    ref_softcap: float,
    hidden: Array,
    kernel: Array,
    bias: Array | None,
    listed: Listed,
    ref: tuple | None,
) -> TokenStats:
    """Scores chunk by chunk: -> f32[chunks, B, chunk] each."""
    return scored_forward(softcap, ref_softcap, hidden, kernel, bias, listed, ref)[0]


def scored_forward(
    softcap: float,
    ref_softcap: float,
    hidden: Array,
    kernel: Array,
    bias: Array | None,
    listed: Listed,
    ref: tuple | None,
) -> tuple[TokenStats, tuple]:
    """Returns the statistics and what the backward pass needs, no logits among it."""

    def one(_: None, entries: Listed) -> tuple[None, tuple[TokenStats, Array]]:
        states = gathered(hidden, entries.parents)
        values = logits(states, Head(kernel, bias, softcap))
        ref_values = ref_logits(entries, ref_softcap, ref)
        stats = target_stats(values, entries.targets, ref_values)
        return None, (stats, normalizers(values))

    _, (stats, normalizer) = jax.lax.scan(one, None, listed)
    return stats, (hidden, kernel, bias, listed, ref, normalizer)


def scored_backward(
    softcap: float, ref_softcap: float, saved: tuple, slopes: TokenStats
) -> tuple:
    """Runs the head again, chunk by chunk, and pulls the slopes back through it.

    The gradients of kernel and bias are summed over chunks in float32, and those of
    the hidden states over the entries that share a parent.
    """
    hidden, kernel, bias, listed, ref, normalizer = saved
    dtype = wide(hidden.dtype)
    contract = functools.partial(jnp.einsum, preferred_element_type=dtype)

    def one(sums: tuple, xs: tuple) -> tuple[tuple, Array]:
        entries, slopes, normalizer = xs
        d_kernel, d_bias = sums
        states = gathered(hidden, entries.parents)  # [B, C, D]
        values = logits(states, Head(kernel, bias, softcap))  # [B, C, V]
        ref_values = ref_logits(entries, ref_softcap, ref)
        d_values = logit_gradient(
            values, normalizer, entries.targets, slopes, ref_values
        )
        if softcap:
            d_values = d_values * (1 - jnp.square(values / softcap))
        if d_bias is not None:
            d_bias = d_bias + d_values.sum((0, 1))
        d_values = d_values.astype(kernel.dtype)
        flat = d_values.reshape(-1, d_values.shape[-1])  # [B·C, V]
        # As an array of its own: a CPU multiplies by a transposed view at half speed.
        across = jax.lax.optimization_barrier(states.reshape(flat.shape[0], -1).T)
        d_kernel = d_kernel + contract("DC,CV->DV", across, flat)
        return (d_kernel, d_bias), contract("BCV,DV->BCD", d_values, kernel)

    start = (
        jnp.zeros(kernel.shape, dtype),
        None if bias is None else jnp.zeros(bias.shape, dtype),
    )
    (d_kernel, d_bias), d_states = jax.lax.scan(
        one, start, (listed, slopes, normalizer)
    )

    def scatter(parents: Array, rows: Array) -> Array:  # i32[C], [C, D] -> [T, D]
        return jnp.zeros((hidden.shape[1], rows.shape[-1]), dtype).at[parents].add(rows)

    d_hidden = jax.vmap(scatter)(joined(listed.parents), joined(d_states))
    return (
        d_hidden.astype(hidden.dtype),
        d_kernel.astype(kernel.dtype),
        None if bias is None else d_bias.astype(bias.dtype),
        None,
        None,
    )


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
    linear, ref_softcap = None, 0.0
    if ref is not None:
        chex.assert_shape(ref[0], (*parents.shape, None))
        listed = listed._replace(ref_states=split(ref[0], count))
        linear, ref_softcap = ref[1][:2], ref[1].softcap
    stats = scored(
        head.softcap, ref_softcap, hidden, head.kernel, head.bias, listed, linear
    )
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
