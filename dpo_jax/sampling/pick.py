"""How the next token is picked from logits."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dpo_jax.types import Array

Pick = Callable[[Array, Array], Array]


def greedy(logits: Array, key: Array) -> Array:
    """Picks the likeliest token: f32[B, V] -> i32[B]."""
    del key
    return jnp.argmax(logits, axis=-1)


def temperature(value: float) -> Pick:
    """Makes a picker that samples from softmax(logits / value); value > 0."""

    def pick(logits: Array, key: Array) -> Array:
        return jax.random.categorical(key, logits / value, axis=-1)

    return pick
