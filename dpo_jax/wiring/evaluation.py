"""What is measured besides training: held-out pairs, and what `sampled` samples."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
from absl import logging
from jax.sharding import Mesh

from dpo_jax.data.loader import Loader
from dpo_jax.data.mixture import Sources
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
from dpo_jax.wiring import frontier
from dpo_jax.wiring.data import global_batches
from dpo_jax.wiring.parts import Parts
from dpo_jax.wiring.reference import Referred
from dpo_jax.wiring.sampled import Rollouts, make_rollouts, make_stage
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


def make_measures(
    parts: Parts, referred: Referred, workdir: os.PathLike | str
) -> Measures:
    """Builds the evaluators that a run asks for.

    A new one is a function of the state and a line here; one may read what one before
    it has measured.
    """
    section = parts.config.eval
    every = section.every_steps
    evaluators, rollouts = {}, None
    if referred.eval is not None:
        owners = owners_of(referred.eval, parts.data.sources_of("eval"))
        pairs = make_pairs(parts.trainer, referred, referred.eval, parts.mesh, owners)
        evaluators["pairs"] = Evaluator(pairs, every)
    if section.rollouts and parts.reference is not None:
        own = section.rollouts_every_steps or every
        stage = make_stage(parts, referred.frozen)
        start = parts.start(referred.frozen)
        rollouts = Rollouts(make_rollouts(parts, stage, start))
        evaluators["rollouts"] = Evaluator(rollouts, own)
        if section.frontier:
            bound = frontier.make_bound(parts, stage, start, workdir)
            above = frontier.Above(rollouts, bound, workdir)
            evaluators["frontier"] = Evaluator(above, own)
    return Measures(evaluators, rollouts)


def owners_of(loads: Loader, sources: Sources) -> list[str]:
    """Names the source of each batch of a set; [] where there is one source."""
    if not sources.several:
        return []
    return [sources.name_of(loads.ids_at(step)[0]) for step in range(len(loads))]


def make_pairs(
    trainer: Trainer,
    referred: Referred,
    loads: Loader,
    mesh: Mesh,
    owners: Sequence[str] = (),
) -> Callable[[TrainState], Iterator[tuple[str, float]]]:
    """Builds the loss and metrics over the evaluation set, every record once.

    Args:
      trainer: whose objective is measured.
      referred: what the reference says of the records.
      loads: batches of the set.
      mesh: of the run.
      owners: see `preference.evaluate`.
    """
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
            owners=owners,
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
