"""Rotary positions: which angles a head's features turn by, and the turning.

Angles, cosines and sines are float32 whatever the compute dtype. Two scalings depend on
how long a text is (`dynamic`, `longrope`); they use one static length for a whole run,
so that a token's angle never depends on its neighbours in a batch. This file knows
nothing of attention or parameters.
"""

import math

import jax.numpy as jnp
import numpy as np

from dpo_jax.models.spec import DecoderSpec, RopeScaling
from dpo_jax.types import Array


def frequencies(
    theta: float, width: int, scaling: RopeScaling | None, *, length: int
) -> np.ndarray:
    """Computes the angular frequencies of the rotary pairs.

    Args:
      theta: base of the wavelengths.
      width: features that turn; two to a pair.
      scaling: how the wavelengths are stretched; None = not.
      length: tokens of the longest text of the run; `dynamic` and `longrope` only.

    Returns:
      f32[width / 2] radians per position, the fastest first.

    Source: arXiv:2104.09864 eq. 15 and what `SCALINGS` cite.
    """
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    plain = (np.float32(theta) ** -exponents).astype(np.float32)
    if scaling is None:
        return plain
    scaled = SCALINGS[scaling.kind](plain, theta, width, scaling, length)
    return scaled.astype(np.float32)


def _linear(
    plain: np.ndarray, theta: float, width: int, scaling: RopeScaling, length: int
) -> np.ndarray:
    """Divides every frequency.

    Source: arXiv:2306.15595 eq. 4.
    """
    del theta, width, length
    return plain / np.float32(scaling.factor)


def _llama3(
    plain: np.ndarray, theta: float, width: int, scaling: RopeScaling, length: int
) -> np.ndarray:
    """Divides the slow frequencies, ramping between slow and fast.

    Source: Meta's Llama 3.1 code, `apply_scaling`.
    """
    del theta, width, length
    turns = scaling.original_max_positions * plain / (2 * np.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 - keep) * plain / np.float32(scaling.factor) + keep * plain


def _dynamic(
    plain: np.ndarray, theta: float, width: int, scaling: RopeScaling, length: int
) -> np.ndarray:
    """Raises theta so that the slowest pair is stretched by the length.

    Texts within the original context keep their frequencies.

    Source: arXiv:2309.00071 section 3.3 (dynamic NTK), as HF implements it.
    """
    stretch = max(length / scaling.original_max_positions, 1.0)
    ratio = scaling.factor * stretch - (scaling.factor - 1)
    raised = theta * ratio ** (width / (width - 2))
    return frequencies(raised, width, None, length=length)


def _yarn(
    plain: np.ndarray, theta: float, width: int, scaling: RopeScaling, length: int
) -> np.ndarray:
    """Divides slow pairs, keeps fast ones, ramps linearly over the pairs between.

    Source: arXiv:2309.00071 eq. 17–20; `truncate` rounds the ramp's ends outwards.
    """
    del length

    def pair(turns: float) -> float:  # that makes so many turns in the original context
        context = scaling.original_max_positions / (turns * 2 * math.pi)
        return width * math.log(context) / (2 * math.log(theta))

    first, last = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    span = last - first if last != first else 1e-3
    slow = np.clip((np.arange(width // 2) - first) / span, 0.0, 1.0)
    return slow * plain / scaling.factor + (1 - slow) * plain


def _longrope(
    plain: np.ndarray, theta: float, width: int, scaling: RopeScaling, length: int
) -> np.ndarray:
    """Divides each frequency by its own searched factor, short or long.

    Source: arXiv:2402.13753 eq. 4; Phi-3's code picks the factors by the length.
    """
    del theta, width
    long = length > scaling.original_max_positions
    factors = scaling.long_factors if long else scaling.short_factors
    return plain / np.asarray(factors, np.float32)


def per_layer(spec: DecoderSpec, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns what each layer turns by.

    A layer without positions has frequency 0, which turns nothing. Layers with a window
    use `rope_theta_local` unscaled, where the spec has one.

    Args:
      spec: of a decoder with rotary positions.
      length: as in `frequencies`.

    Returns:
      f32[L, pairs] radians per position, and f32[L] that cosines and sines are
      multiplied by.
    """
    width, scaling = spec.rope_dim or spec.head_dim, spec.rope_scaling
    distant = frequencies(spec.rope_theta, width, scaling, length=length)
    factor = scaling.attention_factor if scaling else 1.0
    turned, magnitude = [], []
    for layer in range(spec.layers):
        local = spec.rope_theta_local and spec.windows and spec.windows[layer]
        used = not spec.rope_layers or spec.rope_layers[layer]
        pairs = distant
        if local:
            pairs = frequencies(spec.rope_theta_local, width, None, length=length)
        turned.append(pairs if used else np.zeros_like(pairs))
        magnitude.append(factor if used and not local else 1.0)
    return np.stack(turned), np.asarray(magnitude, np.float32)


def table(positions: Array, pairs: Array, magnitude: Array) -> tuple[Array, Array]:
    """Returns cos and sin of each angle, f32[B, T, 1, pairs] each.

    Args:
      positions: i32[B, T].
      pairs: f32[pairs] radians per position.
      magnitude: f32[] that both are multiplied by.
    """
    angles = positions.astype(jnp.float32)[..., None] * pairs
    angles = angles[:, :, None, :]  # [B, T, 1, pairs]
    return magnitude * jnp.cos(angles), magnitude * jnp.sin(angles)


def query_scale(spec: DecoderSpec, positions: Array) -> Array | None:
    """Returns what queries at i32[B, T] positions are multiplied by, f32[B, T, 1, 1].

    It grows by steps, one for each original context, and is 1 within the first; None
    where the spec has none.

    Source: Llama 4's attention temperature, as HF implements it in Ministral 3.
    """
    if not spec.query_beta:
        return None
    assert spec.rope_scaling is not None
    step = positions // spec.rope_scaling.original_max_positions
    scale = 1 + spec.query_beta * jnp.log1p(step.astype(jnp.float32))
    return scale[:, :, None, None]


def rotate(x: Array, cos: Array, sin: Array, *, interleaved: bool) -> Array:
    """Turns pairs of features of [B, T, H, E] by their angles.

    Features beyond the angles pass as they are. Pairs are (i, i + half) or, where
    interleaved, (2i, 2i + 1).
    """
    pairs = cos.shape[-1]
    turning, rest = x[..., : 2 * pairs].astype(jnp.float32), x[..., 2 * pairs :]
    if interleaved:
        first, second = turning[..., ::2], turning[..., 1::2]
    else:
        first, second = jnp.split(turning, 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    if interleaved:
        joined = jnp.stack(turned, axis=-1).reshape(turning.shape)
    else:
        joined = jnp.concatenate(turned, axis=-1)
    return jnp.concatenate([joined.astype(x.dtype), rest], axis=-1)


SCALINGS = {
    "dynamic": _dynamic,
    "linear": _linear,
    "llama3": _llama3,
    "longrope": _longrope,
    "yarn": _yarn,
}
