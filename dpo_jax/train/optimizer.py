"""Learning-rate schedules and optimizers, as optax directions of descent.

A transformation here says the direction; the step scales it by −lr(step), so that the
learning rate is a hyper-parameter like β and the logged one is the one applied. Moments
decay by Python floats: 1 − b is taken in float64, and each b is a program of its own.
"""

import inspect
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dpo_jax.errors import known
from dpo_jax.sharding.rules import path_name
from dpo_jax.types import Array, Hyper, Params

Schedule = Callable[[Array, Hyper], Array]
Direction = Callable[[Hyper], optax.GradientTransformation]
Real = float | Array
TIME_SCALE = 1e4  # steps, of `inverse_sqrt` without a warm-up


def pace(*, warmup_steps: int, total_steps: int) -> dict[str, np.float32]:
    """Returns the hyper-parameters that a schedule reads.

    Args:
      warmup_steps: updates of rising learning rate, W.
      total_steps: updates of the run, T.

    Returns:
      `warmup_steps` W, `warmup_rate` 1/(W + 1) and `decay_rate` 1/max(T − W, 1). XLA
      turns a division by a constant into a product with its inverse; so do these.
    """
    span = max(total_steps - warmup_steps, 1)
    return {
        "warmup_steps": np.float32(warmup_steps),
        "warmup_rate": np.float32(1) / np.float32(warmup_steps + 1),
        "decay_rate": np.float32(1) / np.float32(span),
    }


def warmup(step: Array, rate: Array) -> Array:
    """Returns min(1, (step + 1) · rate).

    Source: the scheduler of eric-mitchell/direct-preference-optimization.
    """
    return jnp.minimum(1.0, (step + 1) * rate)


def constant(progress: Array, age: Array) -> Array:
    """Returns 1."""
    del age
    return jnp.ones_like(progress)


def linear(progress: Array, age: Array) -> Array:
    """Falls from 1 to 0 along a line."""
    del age
    return 1.0 - progress


def inverse_sqrt(progress: Array, age: Array) -> Array:
    """Falls as 1/√step, from 1 at the end of the warm-up.

    Source: transformers' `inverse_sqrt`, whose time scale is the warm-up, or 10,000
    steps without one.
    """
    del progress
    return jax.lax.rsqrt(age)


def cosine(progress: Array, age: Array) -> Array:
    """Falls from 1 to 0 along half a cosine."""
    del age
    return 0.5 * (1.0 + jnp.cos(jnp.pi * progress))


def schedule(name: str) -> Schedule:
    """Builds the factor on the peak learning rate.

    Args:
      name: a name of `SCHEDULES`; it acts after the warm-up.

    Returns:
      i32[] step, from 0, and the hyper-parameters of `pace` -> f32[] factor in [0, 1].

    Raises:
      ConfigError: if the name is not known.
    """
    decay = SCHEDULES[known("optimizer.schedule", name, SCHEDULES)]

    def factor(step: Array, hyper: Hyper) -> Array:
        warm = hyper["warmup_steps"]
        progress = (step - warm) * hyper["decay_rate"]
        risen = warmup(step, hyper["warmup_rate"])
        scale = jnp.where(warm > 0, warm, TIME_SCALE)
        age = 1.0 + jnp.maximum(step - warm, 0) / scale
        return risen * decay(jnp.clip(progress, 0.0, 1.0), age)

    return factor


def decayed(params: Params) -> Params:
    """Marks the leaves that weight decay acts on: kernels and embeddings."""

    def one(path: tuple, leaf: Array) -> bool:
        del leaf
        name = path_name(path)
        return not (name.endswith("/bias") or "norm" in name)

    return jax.tree_util.tree_map_with_path(one, params)


def adamw(
    *, b1: float, b2: float, eps: Real, weight_decay: Real
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay. Source: arXiv:1711.05101."""
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay, mask=decayed),
    )


def rmsprop(
    *, decay: float, eps: Real, weight_decay: Real
) -> optax.GradientTransformation:
    """RMSprop as torch defines it: decay .99 by default, ε outside the root.

    Weight decay is torch's too: added to the gradient.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=decayed),
        optax.scale_by_rms(decay=decay, eps=eps, eps_in_sqrt=False),
    )


def lion(*, b1: float, b2: float, weight_decay: Real) -> optax.GradientTransformation:
    """Lion. Source: arXiv:2302.06675."""
    return optax.chain(
        optax.scale_by_lion(b1=b1, b2=b2),
        optax.add_decayed_weights(weight_decay, mask=decayed),
    )


def adafactor(*, weight_decay: Real) -> optax.GradientTransformation:
    """Adafactor without momentum or relative steps. Source: arXiv:1804.04235."""
    return optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.add_decayed_weights(weight_decay, mask=decayed),
    )


def sgd() -> optax.GradientTransformation:
    """Plain gradient descent."""
    return optax.identity()


def options(name: str) -> tuple[str, ...]:
    """Names the options that an optimizer uses.

    Raises:
      ConfigError: if the name is not known.
    """
    make = OPTIMIZERS[known("optimizer.name", name, OPTIMIZERS)]
    return tuple(inspect.signature(make).parameters)


def direction(name: str, values: Mapping[str, Real]) -> optax.GradientTransformation:
    """Builds an optimizer from the options it uses; extra values are not read.

    Args:
      name: a name of `OPTIMIZERS`.
      values: of its options; `eps` and `weight_decay` may be traced.

    Raises:
      ConfigError: if the name is not known.
    """
    used = {key: values[key] for key in options(name)}
    return OPTIMIZERS[name](**used)


SCHEDULES: dict[str, Callable[[Array, Array], Array]] = {
    "constant": constant,
    "linear": linear,
    "inverse_sqrt": inverse_sqrt,
    "cosine": cosine,
}
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": adamw,
    "rmsprop": rmsprop,
    "lion": lion,
    "adafactor": adafactor,
    "sgd": sgd,
}
