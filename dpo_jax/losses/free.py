"""Losses of a pair without a reference.

pw, pl are the summed log-probs of the chosen and rejected response under the policy,
p̄w, p̄l the same per token, in nats. A loss takes p̄w and p̄l, or pw and pl (`chosen`,
`rejected`), or the pairs where it adds their likelihood NLL (`shared.likelihood`). Each
returns f32[N]; nothing couples the batch but the tokens that NLL is divided by.
"""

import jax
import jax.numpy as jnp

from dpo_jax.losses import shared
from dpo_jax.losses.shared import mean_logps, smoothed
from dpo_jax.types import Array, PairLogps

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


def simper(chosen: Array, rejected: Array) -> Array:
    """Computes −e^p̄w + e^p̄l, the inverse perplexities; it has no hyper-parameter.

    Source: arXiv:2502.00883 (SimPER).
    """
    return jnp.exp(rejected) - jnp.exp(chosen)


def cpo(
    logps: PairLogps,
    *,
    beta: Array,
    nll_weight: Array,
    tokens_per_pair: Array,
    whole_per_pair: Array,
    likelihood: str = "",
) -> Array:
    """Computes −log σ(β(pw − pl)) + λ NLL.

    Args:
      logps: of N pairs.
      beta: scale of the log-probs.
      nll_weight: λ.
      likelihood: as in `shared.likelihood`, '' = `tokens`, which the official code of
        ALMA-R and TRL take; `sum` is the letter of the paper.
      tokens_per_pair: as there.
      whole_per_pair: as there.

    Source: arXiv:2401.08417 (CPO).
    """
    nll = shared.likelihood(
        logps,
        likelihood or "tokens",
        tokens_per_pair=tokens_per_pair,
        whole_per_pair=whole_per_pair,
    )
    margin = beta * (logps.chosen - logps.rejected)
    return nll_weight * nll - jax.nn.log_sigmoid(margin)


def arpo(
    logps: PairLogps,
    *,
    beta: Array,
    arpo_scale: Array,
    arpo_rate: Array,
    nll_weight: Array,
    tokens_per_pair: Array,
    whole_per_pair: Array,
    likelihood: str = "",
) -> Array:
    """Computes `cpo` with κ pl for pl, κ = min(η₁ e^(η₂ |p̄w − p̄l|) − 1, 1).

    The closer the two responses, the less the rejected one is pushed down. κ carries a
    gradient, as in the official code.

    Args:
      logps: of N pairs.
      beta: scale of the log-probs.
      arpo_scale: η₁.
      arpo_rate: η₂.
      nll_weight: λ.
      likelihood: as in `cpo`.
      tokens_per_pair: as there.
      whole_per_pair: as there.

    Source: arXiv:2410.03115 (X-ALMA, adaptive rejection).
    """
    chosen, rejected = mean_logps(logps)
    growth = shared.exp(arpo_rate * jnp.abs(chosen - rejected))
    share = jnp.minimum(arpo_scale * growth - 1.0, 1.0)
    return cpo(
        logps._replace(rejected=share * logps.rejected),
        beta=beta,
        nll_weight=nll_weight,
        likelihood=likelihood,
        tokens_per_pair=tokens_per_pair,
        whole_per_pair=whole_per_pair,
    )


def orpo(
    logps: PairLogps,
    *,
    beta: Array,
    tokens_per_pair: Array,
    whole_per_pair: Array,
    likelihood: str = "",
) -> Array:
    """Computes NLL − β log σ(log odds(p̄w) − log odds(p̄l)); the paper's λ is `beta`.

    log odds(p̄) = p̄ − log(1 − e^p̄); there p̄ counts as at most −1e-6.

    Args:
      logps: of N pairs.
      beta: weight of the odds.
      likelihood: as in `shared.likelihood`, '' = `responses`, the paper's equations
        read per response; the official code and TRL take `whole`.
      tokens_per_pair: as there.
      whole_per_pair: as there.

    Source: arXiv:2403.07691 (ORPO) eqs. 6–7.
    """

    def log_odds(logp: Array) -> Array:
        return logp - jax.nn.log1mexp(-jnp.minimum(logp, MAX_MEAN_LOGP))

    nll = shared.likelihood(
        logps,
        likelihood or "responses",
        tokens_per_pair=tokens_per_pair,
        whole_per_pair=whole_per_pair,
    )
    chosen, rejected = (log_odds(logp) for logp in mean_logps(logps))
    return nll - beta * jax.nn.log_sigmoid(chosen - rejected)


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
