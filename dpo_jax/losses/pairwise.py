"""Losses of δ, the difference of a pair's scores, f32[N].

Throughout, a = log π(chosen) − log ref(chosen), b = the same of the rejected response,
and δ = f(a) − f(b) with f of `divergence` and lengths of `normalize`; for the defaults
δ = a − b. Log-probs are sums over tokens in nats. Each loss takes δ and returns f32[N];
nothing couples the batch.
"""

import jax
import jax.numpy as jnp

from dpo_jax.errors import ConfigError, known
from dpo_jax.losses.shared import (
    MAX_EXPONENT,
    exp,
    log_ratios,
    per_token,
    smoothed,
    square,
)
from dpo_jax.types import Array, PairLogps

MAX_FORWARD_EXPONENT = 30.0


def reverse_kl(ratio: Array, alpha: float) -> Array:
    """Returns the log-ratio itself, the score of DPO."""
    del alpha
    return ratio


def forward_kl(ratio: Array, alpha: float) -> Array:
    """Returns 1 − e^(−ratio), its exponent bounded."""
    del alpha
    return 1.0 - jnp.exp(jnp.minimum(-ratio, MAX_FORWARD_EXPONENT))


def jensen_shannon(ratio: Array, alpha: float) -> Array:
    """Returns log 2 + log σ(ratio)."""
    del alpha
    return jnp.log(2.0) + jax.nn.log_sigmoid(ratio)


def alpha_divergence(ratio: Array, alpha: float) -> Array:
    """Returns (e^((α−1)·ratio) − 1) / (α − 1), bounded; the log-ratio at α = 1."""
    if alpha == 1.0:
        return ratio
    return jnp.expm1(jnp.minimum((alpha - 1) * ratio, MAX_EXPONENT)) / (alpha - 1)


DIVERGENCES = {
    "reverse_kl": reverse_kl,
    "forward_kl": forward_kl,
    "js": jensen_shannon,
    "alpha": alpha_divergence,
}


def delta(
    logps: PairLogps, *, divergence: str, divergence_alpha: float, normalize: str
) -> tuple[Array]:
    """Computes δ, the difference of the two responses' scores.

    Args:
      logps: of N pairs.
      divergence: a name of `DIVERGENCES`; f(log-ratio) is a response's score.
      divergence_alpha: α of the `alpha` divergence; the others do not read it.
      normalize: `sum`, or `mean` to divide each score by its response's length.

    Returns:
      (δ f32[N],), the arguments of the losses below.

    Source: arXiv:2309.16240 (f-divergences); TRL `sigmoid_norm` (`mean`).
    """
    score = DIVERGENCES[divergence]
    chosen, rejected = (score(x, divergence_alpha) for x in log_ratios(logps))
    if normalize == "mean":
        chosen, rejected = per_token(logps, chosen, rejected)
    return (chosen - rejected,)


def check_choices(*, divergence: str, divergence_alpha: float, normalize: str) -> None:
    """Refuses values that `delta` does not know or would not read.

    Raises:
      ConfigError: naming the key.
    """
    known("loss.divergence", divergence, DIVERGENCES)
    known("loss.normalize", normalize, ("sum", "mean"))
    if divergence != "alpha" and divergence_alpha != 1.0:
        raise ConfigError(
            f"loss.divergence_alpha={divergence_alpha} is not used by "
            f"loss.divergence={divergence!r}; leave it at 1.0 or choose 'alpha'"
        )


def dpo(delta: Array, *, beta: Array, label_smoothing: Array) -> Array:
    """Computes −(1−ε) log σ(βδ) − ε log σ(−βδ).

    Args:
      delta: f32[N] δ, nats.
      beta: strength of the KL penalty, > 0.
      label_smoothing: ε, probability that a label is flipped, 0 ≤ ε < ½.

    Source: arXiv:2305.18290 eq. 7; label smoothing as cDPO (Mitchell 2023).
    """
    return smoothed(beta * delta, label_smoothing)


def ipo(delta: Array, *, beta: Array) -> Array:
    """Computes (δ − 1/(2β))²; the paper's τ is `beta`.

    Source: arXiv:2310.12036 eq. 17; TRL's `ipo` is `normalize='mean'`.
    """
    return square(delta - 1.0 / (2.0 * beta))


def hinge(delta: Array, *, beta: Array) -> Array:
    """Computes max(0, 1 − βδ); the slope at the corner is that of max.

    Source: arXiv:2309.06657 (RSO), after arXiv:2305.10425 (SLiC).
    """
    return jax.nn.relu(1.0 - beta * delta)


def exo_pair(delta: Array, *, beta: Array, label_smoothing: Array) -> Array:
    """Computes KL(σ(βδ) ‖ 1−ε), the reverse KL to the smoothed label.

    σ(βδ)[log σ(βδ) − log(1−ε)] + σ(−βδ)[log σ(−βδ) − log ε]. ε must be > 0; below the
    least normal number it counts as that.

    Source: arXiv:2402.00856.
    """
    logit = beta * delta
    least = jnp.finfo(logit.dtype).tiny
    win = jax.nn.log_sigmoid(logit) - jnp.log1p(-label_smoothing)
    lose = jax.nn.log_sigmoid(-logit) - jnp.log(jnp.maximum(label_smoothing, least))
    return jax.nn.sigmoid(logit) * win + jax.nn.sigmoid(-logit) * lose


def robust(delta: Array, *, beta: Array, label_smoothing: Array) -> Array:
    """Computes [−(1−ε) log σ(βδ) + ε log σ(−βδ)] / (1 − 2ε).

    Unbiased under labels flipped with probability ε < ½; it has no lower bound.

    Source: arXiv:2403.00409 (rDPO).
    """
    logit = beta * delta
    kept = (1.0 - label_smoothing) * jax.nn.log_sigmoid(logit)
    flipped = label_smoothing * jax.nn.log_sigmoid(-logit)
    return (flipped - kept) / (1.0 - 2.0 * label_smoothing)


def discopop(delta: Array, *, beta: Array, discopop_tau: Array) -> Array:
    """Computes (1−m)(−log σ(x)) + m e^(−x) with x = βδ and m = σ(x/τ).

    The product m e^(−x) is one exponential, so that neither factor overflows.

    Source: arXiv:2406.08414 (DiscoPOP, log-ratio modulated loss).
    """
    logit = beta * delta
    modulation = logit / discopop_tau
    logistic = -jax.nn.sigmoid(-modulation) * jax.nn.log_sigmoid(logit)
    return logistic + exp(jax.nn.log_sigmoid(modulation) - logit)
