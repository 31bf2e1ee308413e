"""What the loop takes its batches from: steps that are planned, or turns."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging
from jax.sharding import Mesh

from dpo_jax.data.loader import Loader
from dpo_jax.data.mixture import Sources
from dpo_jax.models.spec import DecoderSpec
from dpo_jax.train import throughput
from dpo_jax.types import Frozen, TrainState
from dpo_jax.wiring.data import global_batches
from dpo_jax.wiring.training import Facts, shares, sizes
from dpo_jax.wiring.turns import Turns


class Feed(NamedTuple):
    """Batches, and what the host knows of them.

    Attributes:
      next_batch: state -> the batch of its next turn.
      facts: as `train.loop.Functions` has it.
      compiles: step -> whether its batch has a shape that no step had before.
      ids_at: step, from 0 -> `Record.index` of its rows.
      updates: of a turn.
    """

    next_batch: Callable[[TrainState], Any]
    facts: Facts
    compiles: Callable[[int], bool]
    ids_at: Callable[[int], list[int]]
    updates: int = 1


def of_steps(loads: Loader, mesh: Mesh, first: int, facts: Facts) -> Feed:
    """Feeds planned steps, filled ahead by threads.

    Args:
      loads: plans them.
      mesh: of the run.
      first: updates already taken.
      facts: of `training.make_facts`.
    """
    shapes = dict(loads.compiled_shapes())
    logging.info("compiles %d step shapes {rows: steps}: %s", len(shapes), shapes)
    batches = global_batches(loads, mesh, first)
    return Feed(
        lambda state: next(batches),
        facts,
        loads.new_shapes(first).__contains__,
        loads.ids_at,
    )


def of_turns(
    turns: Turns,
    frozen: Frozen,
    runs: Sequence[tuple[float, DecoderSpec]],
    first: int,
    peak: float,
    sources: Sources,
    now: Callable[[], float],
) -> Feed:
    """Feeds the rollouts of turns.

    Args:
      turns: makes them.
      frozen: what does not change.
      runs: how many forward passes a turn takes of each model.
      first: updates already taken.
      peak: FLOP/s of all devices.
      sources: whose shares of a turn's prompts are told, where there are several.
      now: tells the time in seconds.
    """
    updates = turns.sizes.updates

    def facts(step: int, values: Mapping[str, float]) -> dict[str, float]:
        del values  # that of the device
        told = turns.facts(step, now())
        scored, visible = told.pop("scored"), told.pop("visible")
        flops = sum(
            passes
            * throughput.forward_flops(
                sizes(spec),
                tokens=told["tokens"],
                scored=scored,
                visible=spec.layers * visible,
            )
            for passes, spec in runs
        )
        told |= shares(sources, turns.ids_at(step - 1))
        return {**told, "flops": flops / peak}

    return Feed(
        lambda state: turns.next_batch(state, frozen, now),
        facts,
        (first + updates).__eq__,
        turns.ids_at,
        updates,
    )
