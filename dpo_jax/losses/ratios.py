"""Losses of a pair's log-ratios that are not functions of δ alone.

Throughout, a = log π(chosen) − log ref(chosen), b = the same of the rejected response
and Δ = a − b, sums over tokens in nats. A loss takes a and b (`chosen`, `rejected`), or
the pairs where it reads more of them. Each returns f32[N] and nothing couples the
batch, but for the running mean that `bco_pair` is given.
"""

import jax
import jax.numpy as jnp

from dpo_jax.losses.shared import exp, log_ratios, square
from dpo_jax.types import Array, PairLogps

MIN_RATING_GAP = 1e-6  # log of a difference of ratings that is not positive


def nca_pair(chosen: Array, rejected: Array, *, beta: Array) -> Array:
    """Computes −log σ(βa) − ½ log σ(−βa) − ½ log σ(−βb).

    It raises the chosen response only while σ(βa) < 2/3.

    Source: arXiv:2402.05369 (NCA for pairs).
    """
    win, lose = beta * chosen, beta * rejected
    noise = jax.nn.log_sigmoid(-win) + jax.nn.log_sigmoid(-lose)
    return -jax.nn.log_sigmoid(win) - 0.5 * noise


def bco_pair(
    chosen: Array,
    rejected: Array,
    *,
    beta: Array,
    baseline: str,
    reward_mean: Array,
    reward_count: Array,
) -> Array:
    """Computes −log σ(βa − m) − log σ(−(βb − m)).

    Args:
      chosen: f32[N] a.
      rejected: f32[N] b.
      beta: strength of the KL penalty.
      baseline: `none` for m = 0, or `running` for m = `reward_mean`.
      reward_mean: of all β-rewards seen so far, no gradient.
      reward_count: how many were seen; the mean is 0 before the first.

    Source: arXiv:2404.04656; TRL's `bco_pair` is `baseline='none'`.
    """
    del reward_count
    shift = {"none": 0.0, "running": jax.lax.stop_gradient(reward_mean)}[baseline]
    win, lose = beta * chosen - shift, beta * rejected - shift
    return -jax.nn.log_sigmoid(win) - jax.nn.log_sigmoid(-lose)


def anchors(chosen: Array, rejected: Array, beta: Array) -> Array:
    """Computes (a − 1/(2β))² + (b + 1/(2β))², roots bounded, f32[N]."""
    target = 1.0 / (2.0 * beta)
    return square(chosen - target) + square(rejected + target)


def sppo_hard(chosen: Array, rejected: Array, *, beta: Array) -> Array:
    """Computes (a − 1/(2β))² + (b + 1/(2β))²; the paper's 1/η is `beta`.

    Source: arXiv:2405.00675 (SPPO) with preferences 1 and 0.
    """
    return anchors(chosen, rejected, beta)


def sppo(logps: PairLogps, *, beta: Array) -> Array:
    """Computes ½[(a − (s_w − ½)/β)² + (b − (s_l − ½)/β)²]; the paper's 1/η is `beta`.

    The ratings s are here the probabilities that a response wins. Of 1 and 0 it is half
    of `sppo_hard`, which has TRL's factor; the half is that of the official code.

    Source: arXiv:2405.00675 (SPPO) eq. 4.7.
    """
    chosen, rejected = log_ratios(logps)
    assert logps.chosen_ratings is not None and logps.rejected_ratings is not None
    high = (logps.chosen_ratings - 0.5) / beta
    low = (logps.rejected_ratings - 0.5) / beta
    return 0.5 * (square(chosen - high) + square(rejected - low))


def rpo(
    logps: PairLogps, *, beta: Array, rating_scale: Array, rpo_distance: str
) -> Array:
    """Compares x = βΔ with y = η(s_w − s_l), s the data's ratings.

    Args:
      logps: of N pairs.
      beta: strength of the KL penalty.
      rating_scale: η.
      rpo_distance: `backward` = KL(σ(y)‖σ(x)), `forward` = KL(σ(x)‖σ(y)), both of
        binary distributions, or `squared` = (x − y)².

    Source: reward-aware preference optimization, arXiv:2406.11704 (Nemotron-4) §3.3.
    """
    chosen, rejected = log_ratios(logps)
    policy = beta * (chosen - rejected)
    data = rating_scale * rating_gap(logps)
    if rpo_distance == "squared":
        return square(policy - data)
    pair = (data, policy) if rpo_distance == "backward" else (policy, data)
    return _divergence(*pair)


def _divergence(first: Array, second: Array) -> Array:
    """Computes KL(σ(x)‖σ(y)) of two logits."""

    def part(x: Array, y: Array) -> Array:
        return jax.nn.sigmoid(x) * (jax.nn.log_sigmoid(x) - jax.nn.log_sigmoid(y))

    return part(first, second) + part(-first, -second)


def rebel(logps: PairLogps, *, rating_scale: Array) -> Array:
    """Computes (Δ − η(s_w − s_l))²; η is `rating_scale`. It has no β.

    Source: arXiv:2404.16767 (REBEL) on stored ratings.
    """
    chosen, rejected = log_ratios(logps)
    return square(chosen - rejected - rating_scale * rating_gap(logps))


def cal_dpo(chosen: Array, rejected: Array, *, beta: Array) -> Array:
    """Computes −log σ(Δ) + ½[(a − 1/(2β))² + (b + 1/(2β))²].

    The calibration counts half, as in LOSSES; β scales the targets only.

    Source: arXiv:2412.14516 (Cal-DPO).
    """
    return -jax.nn.log_sigmoid(chosen - rejected) + 0.5 * anchors(
        chosen, rejected, beta
    )


def apo_zero(chosen: Array, rejected: Array, *, beta: Array) -> Array:
    """Computes (1 − σ(βa)) + σ(βb): chosen up, rejected down.

    Source: arXiv:2408.06266 (APO) eq. 7.
    """
    return jax.nn.sigmoid(-beta * chosen) + jax.nn.sigmoid(beta * rejected)


def apo_down(chosen: Array, rejected: Array, *, beta: Array) -> Array:
    """Computes σ(βa) + 1 − σ(β(a − b)): both down, the rejected further.

    Source: arXiv:2408.06266 (APO) eq. 8.
    """
    margin = beta * (chosen - rejected)
    return jax.nn.sigmoid(beta * chosen) + jax.nn.sigmoid(-margin)


def dpop(chosen: Array, rejected: Array, *, beta: Array, dpop_lambda: Array) -> Array:
    """Computes −log σ(β[Δ − λ max(0, rw − pw)]).

    Source: arXiv:2402.13228 (Smaug, DPO-Positive).
    """
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


def kls(logps: PairLogps) -> tuple[Array, Array]:
    """Returns (D_w, D_l), Σ_t KL(ref‖π) along each response, f32[N] nats."""
    assert logps.chosen_kls is not None and logps.rejected_kls is not None
    return logps.chosen_kls, logps.rejected_kls


def rating_gap(logps: PairLogps) -> Array:
    """Returns s_w − s_l, f32[N]."""
    assert logps.chosen_ratings is not None and logps.rejected_ratings is not None
    return logps.chosen_ratings - logps.rejected_ratings


def tdpo1(logps: PairLogps, *, beta: Array) -> Array:
    """Computes −log σ(β[Δ − (D_l − D_w)]), D = Σ_t KL(ref‖π) along a response.

    Source: arXiv:2404.11999 (TDPO).
    """
    chosen, rejected = log_ratios(logps)
    chosen_kl, rejected_kl = kls(logps)
    drift = rejected_kl - chosen_kl
    return -jax.nn.log_sigmoid(beta * (chosen - rejected - drift))


def tdpo2(logps: PairLogps, *, beta: Array, tdpo_alpha: Array) -> Array:
    """Computes −log σ(β[Δ − α(D_l − sg D_w)]); no gradient through D_w.

    Source: arXiv:2404.11999 (TDPO).
    """
    chosen, rejected = log_ratios(logps)
    chosen_kl, rejected_kl = kls(logps)
    drift = rejected_kl - jax.lax.stop_gradient(chosen_kl)
    return -jax.nn.log_sigmoid(beta * (chosen - rejected - tdpo_alpha * drift))


def odpo(logps: PairLogps, *, beta: Array, odpo_alpha: Array) -> Array:
    """Computes −log σ(βΔ − α log(s_w − s_l)), s the data's ratings.

    A difference of ratings below 1e-6 (equal, or the wrong way round) counts as 1e-6.

    Source: arXiv:2402.10571 (ODPO).
    """
    chosen, rejected = log_ratios(logps)
    offset = odpo_alpha * jnp.log(jnp.maximum(rating_gap(logps), MIN_RATING_GAP))
    return -jax.nn.log_sigmoid(beta * (chosen - rejected) - offset)


def mmpo(logps: PairLogps, *, beta: Array, mmpo_gamma: Array) -> Array:
    """Computes −p log σ(βΔ) − (1−p) log σ(−βΔ) with p = σ(γ(s_w − s_l)).

    Source: arXiv:2410.03145 (MMPO).
    """
    chosen, rejected = log_ratios(logps)
    logit = beta * (chosen - rejected)
    belief = mmpo_gamma * rating_gap(logps)
    kept = jax.nn.sigmoid(belief) * jax.nn.log_sigmoid(logit)
    return -kept - jax.nn.sigmoid(-belief) * jax.nn.log_sigmoid(-logit)


def chi_po(chosen: Array, rejected: Array, *, beta: Array, chi_clip: Array) -> Array:
    """Computes −log σ(clip[β(e^a + a) − β(e^b + b), ±2R]); R is `chi_clip`.

    Exponents are bounded. No gradient where the clip holds.

    Source: arXiv:2407.13399 (χPO).
    """
    chosen, rejected = (exp(ratio) + ratio for ratio in (chosen, rejected))
    logit = jnp.clip(beta * chosen - beta * rejected, -2 * chi_clip, 2 * chi_clip)
    return -jax.nn.log_sigmoid(logit)


def dpo_shift(
    chosen: Array,
    rejected: Array,
    *,
    beta: Array,
    shift_lambda: Array,
    shift_end: Array,
    progress: Array | float = 0.0,
) -> Array:
    """Computes −log σ(β(a − λb)); λ = 1 is DPO.

    λ moves from `shift_lambda` along a line to `shift_end`, which it would have after
    the last step; where that is negative, it stays.

    Source: arXiv:2502.07599 (DPO-Shift); the line is that of the official code.
    """
    end = jnp.where(shift_end < 0, shift_lambda, shift_end)
    moved = shift_lambda + (end - shift_lambda) * progress
    return -jax.nn.log_sigmoid(beta * (chosen - moved * rejected))
