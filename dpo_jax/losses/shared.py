"""What the losses share: log-ratios, the pairs that count, and bounded functions.

Everything here is finite wherever its input is, in value and in gradient. This file
knows no loss by name.
"""

import chex
import jax
import jax.numpy as jnp

from dpo_jax.types import Array, PairLogps, SingleLogps

MAX_EXPONENT = 80.0  # e^80 is finite in float32
MAX_ROOT = 1e18  # its square is finite in float32


def log_ratios(logps: PairLogps) -> tuple[Array, Array]:
    """Returns (a, b) = log π/ref of the chosen and the rejected responses, f32[N]."""
    chosen, rejected = summed_logps(logps)
    chex.assert_equal_shape([chosen, logps.ref_chosen, logps.ref_rejected])
    return chosen - logps.ref_chosen, rejected - logps.ref_rejected


def summed_logps(logps: PairLogps) -> tuple[Array, Array]:
    """Returns (pw, pl), the policy's log-probs of both responses, f32[N] each."""
    chex.assert_equal_shape(
        [logps.chosen, logps.rejected, logps.chosen_lengths, logps.rejected_lengths]
    )
    return logps.chosen, logps.rejected


def mean_logps(logps: PairLogps) -> tuple[Array, Array]:
    """Returns (p̄w, p̄l), the same per token."""
    return per_token(logps, *summed_logps(logps))


def per_token(logps: PairLogps, chosen: Array, rejected: Array) -> tuple[Array, Array]:
    """Divides values of both responses by their lengths."""
    return (
        chosen / jnp.maximum(logps.chosen_lengths, 1.0),
        rejected / jnp.maximum(logps.rejected_lengths, 1.0),
    )


def likelihood(
    logps: PairLogps, over: str, *, tokens_per_pair: Array, whole_per_pair: Array
) -> Array:
    """Returns f32[N] whose mean over the pairs is −log π(chosen), in nats a unit.

    Args:
      logps: of N pairs.
      over: what it is a mean over: `tokens` of the batch's chosen responses, `whole` =
        those and the tokens of their prompts, `responses` = first over each one's
        tokens, `sum` = pairs alone.
      tokens_per_pair: of the chosen responses of the whole batch, their mean.
      whole_per_pair: the same with the prompts, but for their first tokens.
    """
    if over == "whole":
        assert logps.chosen_prompt is not None
        return -(logps.chosen + logps.chosen_prompt) / jnp.maximum(whole_per_pair, 1.0)
    units = {
        "tokens": tokens_per_pair,
        "responses": logps.chosen_lengths,
        "sum": 1.0,
    }
    return -logps.chosen / jnp.maximum(units[over], 1.0)


def counted(logps: PairLogps) -> tuple[PairLogps, Array]:
    """Puts zeros where there is no pair, so that what stands there has no influence.

    Returns:
      The pairs and bool[N], True where there is one.
    """
    mask = logps.mask
    if mask is None:
        mask = jnp.ones(logps.chosen.shape, bool)
    blank = [None if v is None else jnp.where(mask, v, 0) for v in logps]
    return PairLogps(*blank)._replace(mask=mask), mask


def single_ratios(singles: SingleLogps) -> Array:
    """Returns log π/ref of responses judged singly, 0 where there is none, f32[N]."""
    logps = jnp.where(singles.mask, singles.logps, 0)
    return logps - jnp.where(singles.mask, singles.ref_logps, 0)


def mean(values: Array, mask: Array) -> Array:
    """Returns the mean of the values that count, 0 if none does; [N], bool[N]."""
    count = jnp.maximum(mask.sum(), 1).astype(values.dtype)
    return jnp.where(mask, values, 0).sum() / count


def smoothed(logit: Array, label_smoothing: Array) -> Array:
    """Returns −(1−ε) log σ(x) − ε log σ(−x), the cross-entropy of flipped labels."""
    kept = (1.0 - label_smoothing) * jax.nn.log_sigmoid(logit)
    return -kept - label_smoothing * jax.nn.log_sigmoid(-logit)


def exp(exponent: Array) -> Array:
    """Returns e^x, its exponent bounded."""
    return jnp.exp(jnp.minimum(exponent, MAX_EXPONENT))


def square(root: Array) -> Array:
    """Returns x², its root bounded."""
    return jnp.square(jnp.clip(root, -MAX_ROOT, MAX_ROOT))
