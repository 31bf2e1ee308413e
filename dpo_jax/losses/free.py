"""Losses of a pair without a reference.

pw, pl are the summed log-probs of the chosen and rejected response under the policy,
p̄w, p̄l the same per token, in nats. The first three losses take p̄w and p̄l (`chosen`,
`rejected`), the others pw and pl. Each returns f32[N]; nothing couples the batch.
"""

import jax
import jax.numpy as jnp

from dpo_jax.losses.shared import smoothed
from dpo_jax.types import Array

MAX_SHAPE_EXPONENT = 30.0  # of `alpha_po`; (e^30)/α times β stays finite
MAX_MEAN_LOGP = -1e-6  # of `orpo`'s odds: those of certainty are infinite


def simpo(
    chosen: Array,
    rejected: Array,
    *,
    beta: Array,
    gamma: Array,
    label_smoothing: Array,
) -> Array:
    """Computes −(1−ε) log σ(x) − ε log σ(−x) with x = β(p̄w − p̄l) − γ.

    Source: arXiv:2405.14734 (SimPO) eq. 6; γ is the margin, not γ/β.
    """
    return smoothed(beta * (chosen - rejected) - gamma, label_smoothing)


def alpha_po(
    chosen: Array,
    rejected: Array,
    *,
    beta: Array,
    gamma: Array,
    label_smoothing: Array,
    alpha_po_alpha: Array,
) -> Array:
    """Computes `simpo` with (1 − e^(−α p̄))/α in place of p̄; at α = 0 that is p̄.

    Exponents are bounded.

    Source: arXiv:2501.03884 (AlphaPO).
    """
    zero = alpha_po_alpha == 0
    safe = jnp.where(zero, 1.0, alpha_po_alpha)

    def shaped(logp: Array) -> Array:
        exponent = jnp.minimum(-safe * logp, MAX_SHAPE_EXPONENT)
        return jnp.where(zero, logp, -jnp.expm1(exponent) / safe)

    reward = beta * (shaped(chosen) - shaped(rejected))
    return smoothed(reward - gamma, label_smoothing)


def cpo(chosen: Array, rejected: Array, *, beta: Array, nll_weight: Array) -> Array:
    """Computes −log σ(β(pw − pl)) − λ pw; the likelihood is summed over tokens.

    Source: arXiv:2401.08417 (CPO).
    """
    margin = beta * (chosen - rejected)
    return -jax.nn.log_sigmoid(margin) - nll_weight * chosen


def orpo(chosen: Array, rejected: Array, *, beta: Array) -> Array:
    """Computes −p̄w − β log σ(log odds(p̄w) − log odds(p̄l)); the paper's λ is `beta`.

    The likelihood is the mean over the chosen response's tokens. log odds(p̄) =
    p̄ − log(1 − e^p̄); there p̄ counts as at most −1e-6.

    Source: arXiv:2403.07691 (ORPO) eqs. 6–7.
    """

    def log_odds(logp: Array) -> Array:
        return logp - jax.nn.log1mexp(-jnp.minimum(logp, MAX_MEAN_LOGP))

    ratio = log_odds(chosen) - log_odds(rejected)
    return -chosen - beta * jax.nn.log_sigmoid(ratio)


def slic_hf(
    chosen: Array, rejected: Array, *, nll_weight: Array, slic_margin: Array
) -> Array:
    """Computes max(0, δ0 − pw + pl) − λ pw; the likelihood is summed over tokens.

    Here the calibrated and the regularising response are both the chosen one.

    Source: arXiv:2305.10425 (SLiC-HF).
    """
    rank = jax.nn.relu(slic_margin - chosen + rejected)
    return rank - nll_weight * chosen


def unlikelihood(chosen: Array, rejected: Array, *, unlikelihood_alpha: Array) -> Array:
    """Computes −pw + α pl; it has no lower bound.

    Source: the baseline of arXiv:2305.18290 §6.
    """
    return unlikelihood_alpha * rejected - chosen
