"""Learning-rate schedules and optimizers, as optax directions of descent.

A transformation here says the direction; the step scales it by −lr(step), so that the
learning rate is a hyper-parameter like β and the logged one is the one applied.
"""

import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from dpo_jax.errors import ConfigError, unknown
from dpo_jax.sharding.rules import path_name
from dpo_jax.types import Array, Params

Schedule = Callable[[Array], Array]


def warmup(step: Array, warmup_steps: int) -> Array:
    """Returns min(1, (step + 1) / (warmup_steps + 1)).

    Source: the scheduler of eric-mitchell/direct-preference-optimization.
    """
    return jnp.minimum(1.0, (step + 1) / (warmup_steps + 1))


def constant(progress: Array) -> Array:
    """Returns 1."""
    return jnp.ones_like(progress)


def linear(progress: Array) -> Array:
    """Falls from 1 to 0 along a line."""
    return 1.0 - progress


def cosine(progress: Array) -> Array:
    """Falls from 1 to 0 along half a cosine."""
    return 0.5 * (1.0 + jnp.cos(jnp.pi * progress))


def schedule(name: str, *, warmup_steps: int, total_steps: int) -> Schedule:
    """Builds the factor on the peak learning rate.

    Args:
      name: a name of `SCHEDULES`; it acts after the warm-up.
      warmup_steps: W of `warmup`.
      total_steps: optimizer steps of the run.

    Returns:
      i32[] step, from 0 -> f32[] factor in [0, 1].

    Raises:
      ConfigError: if the name is not known.
    """
    if name not in SCHEDULES:
        raise ConfigError(unknown("optimizer.schedule", name, SCHEDULES))
    decay = SCHEDULES[name]
    span = max(total_steps - warmup_steps, 1)

    def factor(step: Array) -> Array:
        progress = jnp.clip((step - warmup_steps) / span, 0.0, 1.0)
        return warmup(step, warmup_steps) * decay(progress)

    return factor


def decayed(params: Params) -> Params:
    """Marks the leaves that weight decay acts on: kernels and embeddings."""

    def one(path: tuple, leaf: Array) -> bool:
        del leaf
        name = path_name(path)
        return not (name.endswith("/bias") or "norm" in name)

    return jax.tree_util.tree_map_with_path(one, params)


def adamw(
    *, b1: float, b2: float, eps: float, weight_decay: float
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay. Source: arXiv:1711.05101."""
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay, mask=decayed),
    )


def rmsprop(
    *, decay: float, eps: float, weight_decay: float
) -> optax.GradientTransformation:
    """RMSprop as torch defines it: decay .99 by default, ε outside the root.

    Weight decay is torch's too: added to the gradient.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=decayed),
        optax.scale_by_rms(decay=decay, eps=eps, eps_in_sqrt=False),
    )


def lion(*, b1: float, b2: float, weight_decay: float) -> optax.GradientTransformation:
    """Lion. Source: arXiv:2302.06675."""
    return optax.chain(
        optax.scale_by_lion(b1=b1, b2=b2),
        optax.add_decayed_weights(weight_decay, mask=decayed),
    )


def adafactor(*, weight_decay: float) -> optax.GradientTransformation:
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
    if name not in OPTIMIZERS:
        raise ConfigError(unknown("optimizer.name", name, OPTIMIZERS))
    return tuple(inspect.signature(OPTIMIZERS[name]).parameters)


def direction(name: str, values: dict[str, float]) -> optax.GradientTransformation:
    """Builds an optimizer from the options it uses; extra values are not read.

    Raises:
      ConfigError: if the name is not known.
    """
    used = {key: values[key] for key in options(name)}
    return OPTIMIZERS[name](**used)


SCHEDULES: dict[str, Callable[[Array], Array]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
}
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": adamw,
    "rmsprop": rmsprop,
    "lion": lion,
    "adafactor": adafactor,
    "sgd": sgd,
}
