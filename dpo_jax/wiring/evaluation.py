"""What is measured besides training: held-out pairs, and what `sampled` samples."""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
from absl import logging
from jax.sharding import Mesh

from dpo_jax.data.loader import Loader
from dpo_jax.evals import preference
from dpo_jax.precision import in_products_of
from dpo_jax.sharding import arrays
from dpo_jax.train.loop import Evaluator
from dpo_jax.train.step import at_step
from dpo_jax.types import (
    Batch,
    Columns,
    Counts,
    Frozen,
    Hyper,
    Params,
    Reports,
    TrainState,
)
from dpo_jax.wiring.data import global_batches
from dpo_jax.wiring.parts import Parts
from dpo_jax.wiring.reference import Referred
from dpo_jax.wiring.sampled import Rollouts, make_rollouts
from dpo_jax.wiring.training import Trainer

TOLD_SECONDS = 30.0  # between lines that tell how far an evaluation is


class Measures(NamedTuple):
    """What a run measures besides training.

    Attributes:
      evaluators: name -> evaluator, in order.
      rollouts: its last samples lie here; None where nothing is sampled.
    """

    evaluators: dict[str, Evaluator]
    rollouts: Rollouts | None


def make_measures(parts: Parts, referred: Referred) -> Measures:
    """Builds the evaluators that a run asks for.

    A new one is a function of the state and a line here.
    """
    section = parts.config.eval
    every = section.every_steps
    evaluators, rollouts = {}, None
    if referred.eval is not None:
        pairs = make_pairs(parts.trainer, referred, referred.eval, parts.mesh)
        evaluators["pairs"] = Evaluator(pairs, every)
    if section.rollouts and parts.reference is not None:
        rollouts = Rollouts(make_rollouts(parts, referred))
        own = section.rollouts_every_steps
        evaluators["rollouts"] = Evaluator(rollouts, own or every)
    return Measures(evaluators, rollouts)


def make_pairs(
    trainer: Trainer, referred: Referred, loads: Loader, mesh: Mesh
) -> Callable[[TrainState], Iterator[tuple[str, float]]]:
    """Builds the loss and metrics over the evaluation set, every record once."""
    key, objective = jax.random.key(0), trainer.objective

    def score(
        params: Params, frozen: Frozen, batch: Batch, hyper: Hyper
    ) -> tuple[Columns, Reports, Counts]:
        rows = jax.tree.map(lambda leaf: leaf[0], batch)
        counts = objective.counts(rows)
        return *objective.score(params, frozen, rows, key, hyper), counts

    compiled = jax.jit(
        in_products_of(trainer.dtype, score), out_shardings=arrays.replicated(mesh)
    )
    frozen, hyper = referred.frozen, trainer.hyper()

    def measure(state: TrainState) -> Iterator[tuple[str, float]]:
        batches = told(global_batches(loads, mesh, 0), len(loads))
        annotated = (
            referred.annotate(state, frozen, batch, key, hyper) for batch in batches
        )
        values = preference.evaluate(
            annotated,
            score=lambda batch: compiled(state.params, frozen, batch, hyper),
            objective=objective,
            stats=jax.device_get(state.stats),
            hyper=at_step(*jax.device_get((hyper, state.step))),
        )
        yield from values.items()

    return measure


def told(batches: Iterator[Batch], count: int) -> Iterator[Batch]:
    """Yields batches, and logs every `TOLD_SECONDS` how many are done."""
    since = time.monotonic()
    for done, batch in enumerate(batches):
        if time.monotonic() - since > TOLD_SECONDS:
            since = time.monotonic()
            logging.info("evaluated %d of %d batches", done, count)
        yield batch
