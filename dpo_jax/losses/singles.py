"""Losses of responses that are judged one by one; they must see the global batch.

r = log π − log ref of a response, summed over tokens. Responses that the mask leaves
out influence nothing and get 0. Those of label 0 get 0 too and serve `kto`'s estimate
of the KL: the loss is the mean over the labelled responses that count.
"""

import jax
import jax.numpy as jnp

from dpo_jax.losses.shared import mean, single_ratios
from dpo_jax.types import Array, SingleLogps


def _by_label(singles: SingleLogps, desirable: Array, undesirable: Array) -> Array:
    """Takes each response's loss by its label, 0 for those that do not count."""
    losses = jnp.where(singles.labels > 0, desirable, undesirable)
    return jnp.where(singles.mask & (singles.labels != 0), losses, 0.0)


def kto(
    singles: SingleLogps,
    *,
    beta: Array,
    desirable_weight: Array,
    undesirable_weight: Array,
) -> Array:
    """Computes λ_D(1 − σ(β(r − z0))) or λ_U(1 − σ(β(z0 − r))), f32[N].

    z0 = max(0, mean r of the batch's label-0 responses), no gradient; 0 without any.

    Couples the batch: by z0.
    Source: arXiv:2402.01306 (KTO).
    """
    ratio = single_ratios(singles)
    mismatched = singles.mask & (singles.labels == 0)
    anchor = jax.lax.stop_gradient(jax.nn.relu(mean(ratio, mismatched)))
    gain = beta * (ratio - anchor)
    return _by_label(
        singles,
        desirable_weight * jax.nn.sigmoid(-gain),
        undesirable_weight * jax.nn.sigmoid(gain),
    )


def apo_zero_unpaired(singles: SingleLogps, *, beta: Array) -> Array:
    """Computes 1 − σ(βr) if desirable, σ(βr) if not, f32[N]; it needs no KL.

    Source: arXiv:2408.06266 (APO) eq. 7, unpaired as its author's in TRL.
    """
    gain = beta * single_ratios(singles)
    return _by_label(singles, jax.nn.sigmoid(-gain), jax.nn.sigmoid(gain))


def bco(
    singles: SingleLogps, *, beta: Array, reward_mean: Array, reward_count: Array
) -> Array:
    """Computes −log σ(βr − m) if desirable, −log σ(−(βr − m)) if not, f32[N].

    Args:
      singles: N responses.
      beta: strength of the KL penalty.
      reward_mean: m, of all β-rewards seen so far, no gradient.
      reward_count: how many were seen; the mean is 0 before the first.

    Source: arXiv:2404.04656 (BCO); m as in TRL's `BCOTrainer`.
    """
    del reward_count
    logit = beta * single_ratios(singles) - jax.lax.stop_gradient(reward_mean)
    return _by_label(singles, -jax.nn.log_sigmoid(logit), -jax.nn.log_sigmoid(-logit))
