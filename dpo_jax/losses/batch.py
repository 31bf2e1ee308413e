"""Losses that couple the pairs of a batch; they must see the global batch.

Pairs that the mask leaves out influence nothing and get 0. The mean over the pairs that
count is the loss: where that is one number for the batch, every pair that counts gets
it. Notation as in `ratios`.
"""

import jax
import jax.numpy as jnp

from dpo_jax.losses.running import spreads
from dpo_jax.losses.shared import (
    counted,
    log_ratios,
    mean,
    mean_logps,
    smoothed,
    square,
)
from dpo_jax.types import Array, PairLogps

MIN_BETA = 1e-3  # of `beta_dpo`
MIN_STD = 1e-6  # of `alpha_dpo` and `beta_dpo`


def aot(logps: PairLogps, *, beta: Array, label_smoothing: Array) -> Array:
    """Compares sorted policy margins with sorted reference margins.

    u = sort(pw − pl) − sort(rw − rl); the mean of −(1−ε) log σ(βu) − ε log σ(−βu) over
    ranks, given to every pair that counts.

    Couples the batch: by the order.
    Source: arXiv:2406.05882 (AOT), paired; TRL `aot`.
    """
    pairs, mask = counted(logps)
    policy = _sorted(pairs.chosen - pairs.rejected, mask)
    reference = _sorted(pairs.ref_chosen - pairs.ref_rejected, mask)
    return _over_ranks(policy, reference, mask, beta, label_smoothing)


def aot_unpaired(logps: PairLogps, *, beta: Array, label_smoothing: Array) -> Array:
    """Compares sorted log-ratios of chosen with those of rejected responses.

    As `aot` with u = sort(a) − sort(b).

    Couples the batch: by the order.
    Source: arXiv:2406.05882 (AOT), unpaired; TRL `aot_unpaired`.
    """
    pairs, mask = counted(logps)
    chosen, rejected = (_sorted(ratio, mask) for ratio in log_ratios(pairs))
    return _over_ranks(chosen, rejected, mask, beta, label_smoothing)


def _sorted(values: Array, mask: Array) -> Array:
    """Sorts the values that count, upwards; the others stand behind them."""
    return jnp.sort(jnp.where(mask, values, jnp.finfo(values.dtype).max))


def _over_ranks(
    high: Array, low: Array, mask: Array, beta: Array, label_smoothing: Array
) -> Array:
    ranks = jnp.arange(mask.size) < mask.sum()
    gap = jnp.where(ranks, high - low, 0.0)
    return _given(mean(smoothed(beta * gap, label_smoothing), ranks), mask)


def _given(value: Array, mask: Array) -> Array:
    """Gives one number to every pair that counts, f32[N]."""
    return jnp.where(mask, value, 0.0)


def dr_dpo(logps: PairLogps, *, beta: Array, dr_beta: Array) -> Array:
    """Computes −β' log mean_batch exp(log σ(βΔ)/β') for every pair that counts.

    β' is `dr_beta`; towards infinity it is DPO's mean. Written with expm1 around the
    largest term, so that a large β' loses no digits.

    Couples the batch: by the mean.
    Source: arXiv:2407.07880 (Dr. DPO).
    """
    pairs, mask = counted(logps)
    chosen, rejected = log_ratios(pairs)
    scaled = jax.nn.log_sigmoid(beta * (chosen - rejected)) / dr_beta
    least = jnp.finfo(scaled.dtype).min
    top = jax.lax.stop_gradient(jnp.where(mask, scaled, least).max())
    below = mean(jnp.expm1(jnp.where(mask, scaled - top, 0.0)), mask)
    top = jnp.where(mask.any(), top, 0.0)
    return _given(-dr_beta * (top + jnp.log1p(below)), mask)


def beta_dpo(
    logps: PairLogps,
    *,
    beta: Array,
    beta_scale: Array,
    keep_fraction: Array,
    filter: str,
    gap_mean: Array,
    gap_std: Array,
    gap_seen: Array,
) -> Array:
    """Computes DPO with a β of the batch on pairs near the running mean.

    β = max(1e-3, β0(1 + c(mean_kept Δ − M))), no gradient. k = ⌊fraction·n⌋ ≥ 1 pairs
    are kept. Dropped pairs get 0 and kept ones n/k times their loss, so that the mean
    over the pairs that count is the mean over the kept ones.

    Args:
      logps: of N pairs.
      beta: β0.
      beta_scale: c, 0 for a β that stays β0.
      keep_fraction: of the pairs, 0 < fraction ≤ 1.
      filter: `draw` = without replacement, by the weights exp(−½((Δ − M)/s)²), as paper
        and official code have it, by the k largest of log weight + Gumbel noise, which
        is the pairs'; `nearest` = the k largest weights, also where there is no noise.
      gap_mean: M, running mean of Δ, no gradient.
      gap_std: s, running standard deviation of Δ, at least 1e-6, no gradient.
      gap_seen: 0 before the first batch, when the batch's own mean stands for M.

    Couples the batch: by the filter and by β.
    Source: arXiv:2407.08639 (β-DPO).
    """
    pairs, mask = counted(logps)
    chosen, rejected = log_ratios(pairs)
    gap = chosen - rejected
    fixed = jax.lax.stop_gradient(gap)
    middle = jax.lax.stop_gradient(jnp.where(gap_seen > 0, gap_mean, mean(fixed, mask)))
    count = mask.sum().astype(gap.dtype)
    number = jnp.maximum(jnp.floor(keep_fraction * count + 1e-4), 1.0)
    distance = jnp.abs(fixed - middle)
    if filter == "draw" and pairs.noise is not None:
        gumbel = -jnp.log(-jnp.log(jnp.where(mask, pairs.noise, 0.5)))
        deviation = jax.lax.stop_gradient(jnp.maximum(gap_std, MIN_STD))
        distance = 0.5 * square(distance / deviation) - gumbel
    distance = jnp.where(mask, distance, jnp.inf)
    kept = mask & (jnp.argsort(jnp.argsort(distance)) < number)
    scale = 1.0 + beta_scale * (mean(fixed, kept) - middle)
    batch_beta = jnp.maximum(beta * scale, MIN_BETA)
    return jnp.where(kept, -jax.nn.log_sigmoid(batch_beta * gap) * count / number, 0.0)


def alpha_dpo(
    logps: PairLogps,
    *,
    beta: Array,
    alpha: Array,
    gamma: Array,
    spread_mean: Array,
    spread_std: Array,
    spread_seen: Array,
) -> Array:
    """Computes −log σ(β{(p̄w − p̄l) − sg[γ/β + α(g − μ)/s]}).

    g is the difference of the log-ratios per token; the reference stands inside the
    stop-gradient only. s counts as at least 1e-6.

    Args:
      logps: of N pairs.
      beta: scale of the mean log-probs.
      alpha: weight of the normalised g.
      gamma: margin, as in `simpo`.
      spread_mean: μ, running mean of g, no gradient.
      spread_std: s, running standard deviation of g, no gradient.
      spread_seen: 0 before the first batch, when (g − μ)/s counts as 0.

    Couples the batch: through μ and s only.
    Source: arXiv:2410.10148 (α-DPO).
    """
    pairs, mask = counted(logps)
    chosen, rejected = mean_logps(pairs)
    normal = (spreads(pairs) - spread_mean) / jnp.maximum(spread_std, MIN_STD)
    normal = jnp.where(spread_seen > 0, normal, 0.0)
    target = jax.lax.stop_gradient(gamma / beta + alpha * normal)
    losses = -jax.nn.log_sigmoid(beta * (chosen - rejected - target))
    return jnp.where(mask, losses, 0.0)
