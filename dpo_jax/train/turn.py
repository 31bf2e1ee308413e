"""One rollout's updates, scanned: epochs of minibatches, the same step for each.

Sampling and updating are two programs with the host between them, so a reward may be
any Python function. This room knows no objective: which rows make a minibatch is an
argument, and so is the step.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.train.step import Metrics, StepFn
from dpo_jax.types import Array, Batch, Frozen, Hyper, TrainState

LAST = ("lr",)  # metrics of the last update; the others are means over the updates


def rows_of_updates(
    seed: int, turn: int, *, rows: int, epochs: int, minibatches: int, microbatches: int
) -> np.ndarray:
    """Deals a rollout's rows to the updates of its turn, each row once an epoch.

    Args:
      seed: of the run.
      turn: number of the turn, from 0.
      rows: of the rollout; a multiple of minibatches · microbatches.
      epochs: passes over the rows.
      minibatches: updates of a pass.
      microbatches: parts of an update.

    Returns:
      i32[updates, microbatches, rows of a part].
    """
    draw = np.random.default_rng([seed, turn])
    dealt = np.stack([draw.permutation(rows) for _ in range(epochs)])
    return dealt.astype(np.int32).reshape(epochs * minibatches, microbatches, -1)


def take_turn(
    state: TrainState,
    frozen: Frozen,
    rollout: Batch,
    order: Array,
    hyper: Hyper,
    *,
    step: StepFn,
    place: Callable[[Any], Any],
) -> tuple[TrainState, Metrics]:
    """Takes all updates of a turn.

    Args:
      state: all that changes.
      frozen: role -> parameters that never change.
      rollout: annotated rows [parts, B, …]; its `pairs` count within their row.
      order: i32[updates, microbatches, rows] from `rows_of_updates`.
      hyper: float hyper-parameters.
      step: `train_step`, bound.
      place: spreads an update's rows over the mesh.

    Returns:
      The new state; metrics as means over the updates, `ok` where all were.
    """
    count = rollout.docs.shape[0] * rollout.docs.shape[1]
    rows = jax.tree.map(lambda leaf: leaf.reshape(count, *leaf.shape[2:]), rollout)

    def one(state: TrainState, chosen: Array) -> tuple[TrainState, Metrics]:
        part = jax.tree.map(lambda leaf: leaf[chosen], rows)
        return step(state, frozen, place(renumbered(part)), hyper)

    state, each = jax.lax.scan(one, state, order)
    metrics = {
        name: values[-1] if name in LAST else values.mean(0)
        for name, values in each.items()
        if name != "ok"
    }
    return state, metrics | {"ok": each["ok"].all()}


def renumbered(batch: Batch) -> Batch:
    """Counts `pairs` within the microbatch, where they counted within their row."""
    first = batch.ends.shape[-1] * jnp.arange(batch.pairs.shape[-3])[:, None, None]
    pairs = jnp.where(batch.pairs >= 0, batch.pairs + first, -1)
    return batch._replace(pairs=pairs)
