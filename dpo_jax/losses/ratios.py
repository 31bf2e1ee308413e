"""Losses of a pair's log-ratios that are not functions of δ alone.

Throughout, a = log π(chosen) − log ref(chosen), b = the same of the rejected response
and Δ = a − b, sums over tokens in nats. Each function returns f32[N] and nothing
couples the batch, but for the running mean that `bco_pair` is given.
"""

import jax
import jax.numpy as jnp

from dpo_jax.losses.shared import exp, log_ratios, square
from dpo_jax.types import Array, PairLogps

MIN_RATING_GAP = 1e-6  # log of a difference of ratings that is not positive


def nca_pair(logps: PairLogps, *, beta: Array) -> Array:
    """Computes −log σ(βa) − ½ log σ(−βa) − ½ log σ(−βb).

    It raises the chosen response only while σ(βa) < 2/3.

    Source: arXiv:2402.05369 (NCA for pairs).
    """
    chosen, rejected = (beta * ratio for ratio in log_ratios(logps))
    noise = jax.nn.log_sigmoid(-chosen) + jax.nn.log_sigmoid(-rejected)
    return -jax.nn.log_sigmoid(chosen) - 0.5 * noise


def bco_pair(
    logps: PairLogps,
    *,
    beta: Array,
    baseline: str,
    reward_mean: Array,
    reward_count: Array,
) -> Array:
    """Computes −log σ(βa − m) − log σ(−(βb − m)).

    Args:
      logps: of N pairs.
      beta: strength of the KL penalty.
      baseline: `none` for m = 0, or `running` for m = `reward_mean`.
      reward_mean: of all β-rewards seen so far, no gradient.
      reward_count: how many were seen; the mean is 0 before the first.

    Source: arXiv:2404.04656; TRL's `bco_pair` is `baseline='none'`.
    """
    del reward_count
    shift = {"none": 0.0, "running": jax.lax.stop_gradient(reward_mean)}[baseline]
    chosen, rejected = (beta * ratio - shift for ratio in log_ratios(logps))
    return -jax.nn.log_sigmoid(chosen) - jax.nn.log_sigmoid(-rejected)


def anchors(logps: PairLogps, beta: Array) -> Array:
    """Computes (a − 1/(2β))² + (b + 1/(2β))², roots bounded, f32[N]."""
    chosen, rejected = log_ratios(logps)
    target = 1.0 / (2.0 * beta)
    return square(chosen - target) + square(rejected + target)


def sppo_hard(logps: PairLogps, *, beta: Array) -> Array:
    """Computes (a − 1/(2β))² + (b + 1/(2β))²; the paper's 1/η is `beta`.

    Source: arXiv:2405.00675 (SPPO) with preferences 1 and 0.
    """
    return anchors(logps, beta)


def cal_dpo(logps: PairLogps, *, beta: Array) -> Array:
    """Computes −log σ(Δ) + ½[(a − 1/(2β))² + (b + 1/(2β))²].

    The calibration counts half, as in LOSSES; β scales the targets only.

    Source: arXiv:2412.14516 (Cal-DPO).
    """
    chosen, rejected = log_ratios(logps)
    return -jax.nn.log_sigmoid(chosen - rejected) + 0.5 * anchors(logps, beta)


def apo_zero(logps: PairLogps, *, beta: Array) -> Array:
    """Computes (1 − σ(βa)) + σ(βb): chosen up, rejected down.

    Source: arXiv:2408.06266 (APO) eq. 7.
    """
    chosen, rejected = log_ratios(logps)
    return jax.nn.sigmoid(-beta * chosen) + jax.nn.sigmoid(beta * rejected)


def apo_down(logps: PairLogps, *, beta: Array) -> Array:
    """Computes σ(βa) + 1 − σ(β(a − b)): both down, the rejected further.

    Source: arXiv:2408.06266 (APO) eq. 8.
    """
    chosen, rejected = log_ratios(logps)
    margin = beta * (chosen - rejected)
    return jax.nn.sigmoid(beta * chosen) + jax.nn.sigmoid(-margin)


def dpop(logps: PairLogps, *, beta: Array, dpop_lambda: Array) -> Array:
    """Computes −log σ(β[Δ − λ max(0, rw − pw)]).

    Source: arXiv:2402.13228 (Smaug, DPO-Positive).
    """
    chosen, rejected = log_ratios(logps)
    penalty = dpop_lambda * jax.nn.relu(-chosen)
    return -jax.nn.log_sigmoid(beta * (chosen - rejected - penalty))


def r_dpo(logps: PairLogps, *, beta: Array, length_alpha: Array) -> Array:
    """Computes −log σ(βΔ + α(nw − nl)); α is `length_alpha`.

    A chosen response that is the longer one needs less of a margin.

    Source: arXiv:2403.19159 eq. 9.
    """
    chosen, rejected = log_ratios(logps)
    longer = length_alpha * (logps.chosen_lengths - logps.rejected_lengths)
    return -jax.nn.log_sigmoid(beta * (chosen - rejected) + longer)


def tdpo1(logps: PairLogps, *, beta: Array) -> Array:
    """Computes −log σ(β[Δ − (D_l − D_w)]), D = Σ_t KL(ref‖π) along a response.

    Source: arXiv:2404.11999 (TDPO).
    """
    chosen, rejected = log_ratios(logps)
    drift = logps.rejected_kls - logps.chosen_kls
    return -jax.nn.log_sigmoid(beta * (chosen - rejected - drift))


def tdpo2(logps: PairLogps, *, beta: Array, tdpo_alpha: Array) -> Array:
    """Computes −log σ(β[Δ − α(D_l − sg D_w)]); no gradient through D_w.

    Source: arXiv:2404.11999 (TDPO).
    """
    chosen, rejected = log_ratios(logps)
    drift = logps.rejected_kls - jax.lax.stop_gradient(logps.chosen_kls)
    return -jax.nn.log_sigmoid(beta * (chosen - rejected - tdpo_alpha * drift))


def odpo(logps: PairLogps, *, beta: Array, odpo_alpha: Array) -> Array:
    """Computes −log σ(βΔ − α log(s_w − s_l)), s the data's ratings.

    A difference of ratings below 1e-6 (equal, or the wrong way round) counts as 1e-6.

    Source: arXiv:2402.10571 (ODPO).
    """
    chosen, rejected = log_ratios(logps)
    difference = logps.chosen_ratings - logps.rejected_ratings
    offset = odpo_alpha * jnp.log(jnp.maximum(difference, MIN_RATING_GAP))
    return -jax.nn.log_sigmoid(beta * (chosen - rejected) - offset)


def mmpo(logps: PairLogps, *, beta: Array, mmpo_gamma: Array) -> Array:
    """Computes −p log σ(βΔ) − (1−p) log σ(−βΔ) with p = σ(γ(s_w − s_l)).

    Source: arXiv:2410.03145 (MMPO).
    """
    chosen, rejected = log_ratios(logps)
    logit = beta * (chosen - rejected)
    belief = mmpo_gamma * (logps.chosen_ratings - logps.rejected_ratings)
    kept = jax.nn.sigmoid(belief) * jax.nn.log_sigmoid(logit)
    return -kept - jax.nn.sigmoid(-belief) * jax.nn.log_sigmoid(-logit)


def chi_po(logps: PairLogps, *, beta: Array, chi_clip: Array) -> Array:
    """Computes −log σ(clip[β(e^a + a) − β(e^b + b), ±2R]); R is `chi_clip`.

    Exponents are bounded. No gradient where the clip holds.

    Source: arXiv:2407.13399 (χPO).
    """
    chosen, rejected = (exp(ratio) + ratio for ratio in log_ratios(logps))
    logit = jnp.clip(beta * chosen - beta * rejected, -2 * chi_clip, 2 * chi_clip)
    return -jax.nn.log_sigmoid(logit)


def dpo_shift(logps: PairLogps, *, beta: Array, shift_lambda: Array) -> Array:
    """Computes −log σ(β(a − λb)); λ = 1 is DPO.

    Source: arXiv:2502.07599 (DPO-Shift).
    """
    chosen, rejected = log_ratios(logps)
    return -jax.nn.log_sigmoid(beta * (chosen - shift_lambda * rejected))
