"""Losses of a pair's log-ratios against a reference.

Throughout, a = log π(chosen) − log ref(chosen), b = the same of the rejected response,
and δ = f(a) − f(b) with f of `divergence` and lengths of `normalize`; for the defaults
δ = a − b. Log-probs are sums over tokens in nats. Nothing couples the batch.
"""

import chex
import jax
import jax.numpy as jnp

from dpo_jax.errors import ConfigError, unknown
from dpo_jax.types import Array, PairLogps

MAX_EXPONENT = 80.0  # e^80 is finite in float32
MAX_FORWARD_EXPONENT = 30.0
MAX_GAP = 1e18  # its square is finite in float32


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
) -> Array:
    """Computes δ, the difference of the two responses' scores.

    Args:
      logps: of N pairs.
      divergence: a name of `DIVERGENCES`; f(log-ratio) is a response's score.
      divergence_alpha: α of the `alpha` divergence; the others do not read it.
      normalize: `sum`, or `mean` to divide each score by its response's length.

    Returns:
      f32[N].

    Source: arXiv:2309.16240 (f-divergences); TRL `sigmoid_norm` (`mean`).
    """
    chex.assert_equal_shape(list(logps[:6]))
    score = DIVERGENCES[divergence]
    chosen = score(logps.chosen - logps.ref_chosen, divergence_alpha)
    rejected = score(logps.rejected - logps.ref_rejected, divergence_alpha)
    if normalize == "mean":
        chosen = chosen / jnp.maximum(logps.chosen_lengths, 1.0)
        rejected = rejected / jnp.maximum(logps.rejected_lengths, 1.0)
    return chosen - rejected


def check_choices(*, divergence: str, divergence_alpha: float, normalize: str) -> None:
    """Refuses values that `delta` does not know or would not read.

    Raises:
      ConfigError: naming the key.
    """
    if divergence not in DIVERGENCES:
        raise ConfigError(unknown("loss.divergence", divergence, DIVERGENCES))
    if normalize not in ("sum", "mean"):
        raise ConfigError(unknown("loss.normalize", normalize, ("sum", "mean")))
    if divergence != "alpha" and divergence_alpha != 1.0:
        raise ConfigError(
            f"loss.divergence_alpha={divergence_alpha} is not used by "
            f"loss.divergence={divergence!r}; leave it at 1.0 or choose 'alpha'"
        )


def dpo(
    logps: PairLogps,
    *,
    beta: Array,
    label_smoothing: Array,
    divergence: str,
    divergence_alpha: float,
    normalize: str,
) -> Array:
    """Computes −(1−ε) log σ(βδ) − ε log σ(−βδ).

    Args:
      logps: of N pairs.
      beta: strength of the KL penalty, > 0.
      label_smoothing: ε, probability that a label is flipped, 0 ≤ ε < ½.
      divergence: see `delta`.
      divergence_alpha: see `delta`.
      normalize: see `delta`.

    Returns:
      f32[N].

    Source: arXiv:2305.18290 eq. 7; label smoothing as cDPO (Mitchell 2023).
    """
    logit = beta * delta(
        logps,
        divergence=divergence,
        divergence_alpha=divergence_alpha,
        normalize=normalize,
    )
    kept = (1.0 - label_smoothing) * jax.nn.log_sigmoid(logit)
    return -kept - label_smoothing * jax.nn.log_sigmoid(-logit)


def ipo(
    logps: PairLogps,
    *,
    beta: Array,
    divergence: str,
    divergence_alpha: float,
    normalize: str,
) -> Array:
    """Computes (δ − 1/(2β))², f32[N]; the paper's τ is `beta`.

    Source: arXiv:2310.12036 eq. 17; TRL's `ipo` is `normalize='mean'`.
    """
    gap = delta(
        logps,
        divergence=divergence,
        divergence_alpha=divergence_alpha,
        normalize=normalize,
    )
    return jnp.square(jnp.clip(gap, -MAX_GAP, MAX_GAP) - 1.0 / (2.0 * beta))


def hinge(
    logps: PairLogps,
    *,
    beta: Array,
    divergence: str,
    divergence_alpha: float,
    normalize: str,
) -> Array:
    """Computes max(0, 1 − βδ), f32[N]; the slope at the corner is that of max.

    Source: arXiv:2309.06657 (RSO), after arXiv:2305.10425 (SLiC).
    """
    gap = delta(
        logps,
        divergence=divergence,
        divergence_alpha=divergence_alpha,
        normalize=normalize,
    )
    return jax.nn.relu(1.0 - beta * gap)
