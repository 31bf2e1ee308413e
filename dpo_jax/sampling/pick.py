"""How the next token is picked from the logits of one row, and how likely it was.

Truncations set logits to −∞. They act in the order of `sampler`, each on what the one
before has left, as in Hugging Face's `generate`. None of them sorts the vocabulary: the
threshold is looked for instead.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dpo_jax import heads
from dpo_jax.errors import ConfigError, collected
from dpo_jax.types import Array

# f32[V] logits, PRNG key -> i32[] id, f32[] log-prob in nats
Pick = Callable[[Array, Array], tuple[Array, Array]]
Warp = Callable[[Array], Array]  # f32[V] -> f32[V]


def greedy(logits: Array, key: Array) -> tuple[Array, Array]:
    """Picks the likeliest token, the first of equals.

    Nothing is drawn: the log-prob is that of the model, at temperature 1.
    """
    del key
    return _with_logps(logits, jnp.argmax(logits, axis=-1))


def _with_logps(logits: Array, token: Array) -> tuple[Array, Array]:
    _, normalizer = heads.log_softmax(logits)
    return token.astype(jnp.int32), logits[token] - normalizer


def sampler(
    *, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Pick:
    """Makes a picker that samples from a tempered and truncated softmax.

    The log-prob is that of the very distribution that is drawn from. The token is the
    one with the largest logit + Gumbel noise, noise by id: where two computations of
    the logits differ by rounding, so can tokens only if the best two sums are that
    close.

    Args:
      temperature: logits are divided by it; 0 = greedy.
      top_k: the k likeliest are kept; 0 = all.
      top_p: the fewest likeliest of at least this mass are kept; 1 = all.
      min_p: what is at least this times as likely as the likeliest is kept; 0 = all.

    Raises:
      ConfigError: if a value is out of range, or greedy is truncated.
    """
    with collected(ConfigError) as complaints:
        complaints += faults(temperature, top_k, top_p, min_p)
    if temperature == 0:
        return greedy
    warps: list[Warp] = [lambda logits: logits / temperature]
    if top_k:
        warps.append(lambda logits: keep_top_k(logits, top_k))
    if top_p < 1:
        warps.append(lambda logits: keep_top_p(logits, top_p))
    if min_p:
        warps.append(lambda logits: keep_min_p(logits, min_p))

    def pick(logits: Array, key: Array) -> tuple[Array, Array]:
        for warp in warps:
            logits = warp(logits)
        noise = jax.random.gumbel(key, logits.shape, logits.dtype)
        return _with_logps(logits, _largest(logits + noise))

    return pick


def _largest(values: Array) -> Array:
    """Returns the first index of the largest of f32[V].

    As `argmax`, but each of the two reductions reads the values as they are stored: XLA
    on CPU fuses what makes them into an `argmax`, where noise is drawn number by number
    and costs 2.6 times as much.
    """
    last = values.shape[-1] - 1
    return jnp.where(values == values.max(), jnp.arange(last + 1), last).min()


def faults(temperature: float, top_k: int, top_p: float, min_p: float) -> list[str]:
    """Returns one sentence for each value that makes no sense."""
    complaints = []
    if not 0 <= temperature < float("inf"):
        complaints.append(
            f"temperature={temperature} must be ≥ 0 and finite; 0 = greedy"
        )
    if top_k < 0:
        complaints.append(f"top_k={top_k} must be ≥ 0; 0 = off")
    if not 0 < top_p <= 1:
        complaints.append(f"top_p={top_p} must lie in (0, 1]; 1 = off")
    if not 0 <= min_p <= 1:
        complaints.append(f"min_p={min_p} must lie in [0, 1]; 0 = off")
    if temperature == 0 and (top_k, top_p, min_p) != (0, 1.0, 0.0):
        complaints.append(
            "top_k, top_p and min_p are not used by temperature=0 (greedy); leave them "
            "at 0, 1 and 0, or raise the temperature"
        )
    return complaints


def keep_top_k(logits: Array, k: int) -> Array:
    """Keeps the k largest of f32[V]; those that equal the smallest of them, too."""
    k = min(k, logits.shape[-1])
    return _keep_least(logits, lambda kept: kept.sum() >= k)


def keep_top_p(logits: Array, p: float) -> Array:
    """Keeps the fewest likeliest of f32[V] whose probabilities add up to at least p.

    Tokens that equal the least likely of them are kept, too.

    Source: arXiv:1904.09751 section 3.1.
    """
    probs = jax.nn.softmax(logits, axis=-1)
    return _keep_least(logits, lambda kept: jnp.where(kept, probs, 0.0).sum() >= p)


def _keep_least(logits: Array, enough: Callable[[Array], Array]) -> Array:
    """Keeps the fewest largest of f32[V] that are enough.

    The threshold is found by bisection over the integers that order as floats do: 32
    passes over the logits, where a sort of a large vocabulary costs several times more.

    Args:
      logits: f32[V].
      enough: bool[V] of what is kept -> bool[]; if it holds, it holds for more.
    """
    bits = jax.lax.bitcast_convert_type(logits.astype(jnp.float32), jnp.int32)
    order = jnp.where(bits < 0, bits ^ jnp.iinfo(jnp.int32).max, bits)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds  # from `low` on it is enough, from `high` on it is not
        middle = (low & high) + ((low ^ high) >> 1)  # their mean, without overflow
        good = enough(order >= middle)
        return jnp.where(good, middle, low), jnp.where(good, high, middle)

    limits = jnp.iinfo(jnp.int32)
    start = (jnp.int32(limits.min), jnp.int32(limits.max))
    least, _ = jax.lax.fori_loop(0, 32, halve, start)
    return jnp.where(order >= least, logits, -jnp.inf)


def keep_min_p(logits: Array, p: float) -> Array:
    """Keeps tokens at least p times as likely as the likeliest of f32[V].

    Source: arXiv:2407.01082 section 3.
    """
    return jnp.where(logits >= logits.max() + jnp.log(p), logits, -jnp.inf)
