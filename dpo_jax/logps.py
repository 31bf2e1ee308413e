"""Masked gathers: log-probs of scored tokens, and their sums over responses.

A row names the tokens that it scores in a compact list (`parents`, `targets`, `slots`),
so the head runs on those only, and never on a prompt or on padding. This room knows
nothing of models or losses. Dimension key in `types.py`.
"""

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


def target_stats(values: Array, targets: Array) -> TokenStats:
    """Returns log-prob and entropy of targets under logits.

    Args:
      values: f32[..., V] logits.
      targets: i32[...] ids.
    """
    normalizer = jax.nn.logsumexp(values, axis=-1)
    picked = jnp.take_along_axis(values, targets[..., None], axis=-1)[..., 0]
    frozen = jax.lax.stop_gradient(values)
    mean = (jax.nn.softmax(frozen, axis=-1) * frozen).sum(-1)
    entropy = jax.lax.stop_gradient(normalizer) - mean
    return TokenStats(picked - normalizer, entropy)


def token_logps(
    hidden: Array, head: Head, parents: Array, targets: Array, *, chunk: int
) -> TokenStats:
    """Scores listed tokens, never holding more than one chunk of logits.

    The head is run again in the backward pass, so that holds forward and backward.

    Args:
      hidden: [B, T, D] final hidden states.
      head: the map from hidden states to logits.
      parents: i32[B, C] index of the token whose hidden state predicts.
      targets: i32[B, C] the id that is predicted.
      chunk: list entries per row whose logits are held at a time; at least 1.

    Returns:
      f32[B, C] each: log-probs in nats (meaningless at padding) and entropies.
    """
    chex.assert_rank([hidden, parents, targets], [3, 2, 2])
    size = parents.shape[1]
    chunk = min(chunk, size)
    pad = -size % chunk
    parents = jnp.pad(parents, ((0, 0), (0, pad)))
    targets = jnp.pad(targets, ((0, 0), (0, pad)))

    @jax.checkpoint
    def score(
        hidden: Array, kernel: Array, bias: Array | None, parents: Array, targets: Array
    ) -> TokenStats:
        states = jnp.take_along_axis(hidden, parents[..., None], axis=1)
        values = logits(states, Head(kernel, bias, head.softcap))
        return target_stats(values, targets)

    if size + pad == chunk:
        stats = score(hidden, head.kernel, head.bias, parents, targets)
        return jax.tree.map(lambda values: values[:, :size], stats)

    def split(values: Array) -> Array:  # [B, C] -> [C / chunk, B, chunk]
        return values.reshape(values.shape[0], -1, chunk).swapaxes(0, 1)

    def join(values: Array) -> Array:
        return values.swapaxes(0, 1).reshape(values.shape[1], -1)[:, :size]

    _, stats = jax.lax.scan(
        lambda carry, xs: (carry, score(hidden, head.kernel, head.bias, *xs)),
        None,
        (split(parents), split(targets)),
    )
    return jax.tree.map(join, stats)


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
