"""What the exact experiments share: losses by name, comparisons, and descent.

The losses are the production table's, over `PairLogps` gathered from a policy whose
log-probs can be written down; nothing here knows a model, data or a figure.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dpo_jax import schema
from dpo_jax.errors import ConfigError
from dpo_jax.losses import LOSSES, find, options
from dpo_jax.types import Array, PairLogps

PairLoss = Callable[[PairLogps], Array]
SWAPPED = (1, 0, 3, 2, 5, 4)  # the fields of PairLogps with the two responses swapped


def settings(name: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Fills in the options of a loss: its usual setting, else the configuration's.

    Args:
      name: its name in `LOSSES`.
      chosen: options that differ; real-valued ones may be traced.

    Raises:
      ConfigError: if the loss does not use one of the options, or if one of its own has
        no default and is not given.
    """
    row = find(name, LOSSES)
    used = options(row)
    known = {**schema.base().loss, **row.usual, **chosen}
    unused = sorted(set(chosen) - set(used))
    missing = sorted(set(used) - set(known))
    if unused or missing:
        raise ConfigError(
            f"loss.name={name!r} uses {used}: not {unused}, and {missing} must be given"
        )
    return {option: known[option] for option in used}


def loss_of(name: str, chosen: Mapping[str, Any]) -> PairLoss:
    """Returns a loss of the table as a function of N pairs only.

    Args:
      name: its name in `LOSSES`, of a loss that keeps no statistics.
      chosen: options, as in `settings`.
    """
    row = find(name, LOSSES)
    assert row.takes == "pairs" and row.running is None and not row.token_weights, name
    given = settings(name, chosen)
    return lambda pairs: row(pairs, given)


def all_pairs(responses: int) -> tuple[np.ndarray, np.ndarray]:
    """Lists the unordered pairs of different responses, i32[N] each."""
    return np.triu_indices(responses, 1)


def compare(logps: Array, ref_logps: Array, first: Array, second: Array) -> PairLogps:
    """Gathers comparisons of enumerated responses, the first being the chosen one.

    Args:
      logps: f[K] of the policy, nats.
      ref_logps: f[K] of the reference.
      first: i32[N] indices of the chosen responses.
      second: i32[N] of the rejected ones.
    """
    ones = jnp.ones(jnp.shape(first), logps.dtype)
    sides = (logps[first], logps[second], ref_logps[first], ref_logps[second])
    return PairLogps(*sides, ones, ones)


def over_labels(loss: PairLoss, pairs: PairLogps, probability: Array) -> Array:
    """Expects a loss over the label: `chosen` is preferred with `probability`.

    Args:
      loss: of N pairs.
      pairs: N comparisons.
      probability: f[N].

    Returns:
      f[N].
    """
    swapped = PairLogps(*(pairs[field] for field in SWAPPED))
    return probability * loss(pairs) + (1 - probability) * loss(swapped)


def minimise(loss: Callable[[Any], Array], start: Any, *, lr: float, steps: int) -> Any:
    """Minimises with Adam, its learning rate falling along a cosine to 0; traceable."""
    tx = optax.adam(optax.cosine_decay_schedule(lr, steps))

    def step(carry, _):
        theta, state = carry
        updates, state = tx.update(jax.grad(loss)(theta), state)
        return (optax.apply_updates(theta, updates), state), None

    return jax.lax.scan(step, (start, tx.init(start)), None, length=steps)[0][0]


def zoom(
    loss: Callable[[Array], Array], low: float, high: float, *, rounds: int = 6
) -> Array:
    """Minimises over one number by grids of 401 points, each around the last's best.

    Args:
      loss: maps a scalar to a scalar; may have corners and several minima, of which
        the first grid must tell the lowest.
      low: of the bracket, which may hold the minimum at its end.
      high: of the bracket.
      rounds: every one narrows the bracket 200-fold, down to where the loss is flat.
    """

    def narrow(_, bracket):
        grid = jnp.linspace(*bracket, 401)
        best = jnp.argmin(jax.vmap(loss)(grid))
        return grid[jnp.maximum(best - 1, 0)], grid[jnp.minimum(best + 1, 400)]

    start = (jnp.asarray(low, float), jnp.asarray(high, float))
    low, high = jax.lax.fori_loop(0, rounds, narrow, start)
    return jnp.where(loss(low) < loss(high), low, high)
