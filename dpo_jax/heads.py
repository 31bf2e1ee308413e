"""What a head says: logits of hidden states, and what logits say of targets.

Log-probs, normalizers and sums are float32 whatever the model's dtype. This room knows
neither rows nor chunks. Dimension key in `types.py`.
"""

import jax
import jax.numpy as jnp

from dpo_jax.types import Array, Head, TokenStats

# A logit whose probability is 0, and so is its product with it; that of −∞ is NaN.
NEVER = -1e30


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
    return _known(_cut(out, head), head, -1)


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
    return _known(_cut(out, head), head, 0)


def _cut(values: Array, head: Head) -> Array:
    """Cuts logits to ±softcap."""
    if not head.softcap:
        return values
    return head.softcap * jnp.tanh(values / head.softcap)


def _known(values: Array, head: Head, axis: int) -> Array:
    """Makes logits of ids that there are not `NEVER`; V lies along an axis."""
    if not head.vocab:
        return values
    ids = jax.lax.broadcasted_iota(jnp.int32, values.shape, axis % values.ndim)
    return jnp.where(ids < head.vocab, values, NEVER)


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
