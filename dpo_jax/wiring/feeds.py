"""What the loop takes its batches from: steps that are planned, or turns."""

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging
from jax.sharding import Mesh

from dpo_jax.data.loader import Loader
from dpo_jax.data.mixture import Sources
from dpo_jax.models.decoder import leaves
from dpo_jax.models.spec import DecoderSpec
from dpo_jax.train import throughput
from dpo_jax.types import Frozen, TrainState
from dpo_jax.wiring.data import global_batches
from dpo_jax.wiring.turns import Turns

# (step, metrics) -> what the host knows of a step, as `train.loop.Functions` has it
Facts = Callable[[int, Mapping[str, float]], dict[str, float]]
Runs = Sequence[tuple[float, DecoderSpec]]  # forward passes that a step takes of models


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
      facts: of `make_facts`.
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
    runs: Runs,
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
        work = Work(told["tokens"], scored, lambda window: visible)
        flops = flops_of(runs, work)
        told |= shares(sources, turns.ids_at(step - 1))
        return {**told, "flops": flops / peak}

    return Feed(
        lambda state: turns.next_batch(state, frozen, now),
        facts,
        (first + updates).__eq__,
        turns.ids_at,
        updates,
    )


def make_facts(
    loads: Loader,
    policy: DecoderSpec,
    reference: DecoderSpec | None,
    peak: float,
    sources: Sources | None = None,
    *,
    passes: float = 3.0,
) -> Facts:
    """Builds what tells the loop what the host knows of a step's batch.

    Args:
      loads: lays the batches out.
      policy: what is trained.
      reference: what is run forward beside it; None where nothing is.
      peak: FLOP/s of all devices; `flops` are given in seconds at that speed.
      sources: whose shares of a step are told, where there are several.
      passes: forward passes that a step is worth; the backward pass takes two, or one
        where weights get no gradient.
    """
    runs = [(passes, policy)]
    if reference is not None:
        runs.append((1.0, reference))

    def facts(number: int, values: Mapping[str, float]) -> dict[str, float]:
        del values  # lengths are known before the step
        counts = loads.facts(number - 1)
        visible = functools.partial(loads.visible_pairs, number - 1)
        flops = flops_of(runs, Work(counts["tokens"], counts.pop("scored"), visible))
        if sources is not None:
            counts |= shares(sources, loads.ids_at(number - 1))
        return {**counts, "flops": flops / peak}

    return facts


def shares(sources: Sources, ids: Sequence[int]) -> dict[str, float]:
    """Tells the share of each source among rows, where there are several."""
    if not sources.several:
        return {}
    return {f"{name}/share": share for name, share in sources.shares(ids).items()}


@functools.cache
def sizes(spec: DecoderSpec) -> throughput.Sizes:
    """Counts what the FLOPs of a model depend on; a scalar head costs nothing."""
    kernels = re.compile("layers/.*/kernel")
    ours = {p: leaf.shape for p, leaf in leaves(spec).items() if kernels.fullmatch(p)}
    experts = sum(math.prod(ours[path]) for path in ours if "/experts/" in path)
    idle = experts * (spec.experts - spec.experts_per_token) // max(spec.experts, 1)
    return throughput.Sizes(
        trunk=sum(map(math.prod, ours.values())) - idle,
        head=0 if spec.scalar else spec.width * spec.vocab,
        queries=spec.heads * spec.head_dim,
    )


class Work(NamedTuple):
    """What a step is given.

    Attributes:
      tokens: of all rows.
      scored: of them.
      visible: width of a window -> (query, key) pairs of a layer; 0 = without one.
    """

    tokens: float
    scored: float
    visible: Callable[[int], float]

    def visible_to(self, spec: DecoderSpec) -> float:
        """Counts the (query, key) pairs of all layers, each by its window."""
        windows = Counter(spec.windows or (0,) * spec.layers)
        return sum(n * self.visible(window) for window, n in windows.items())


def flops_of(runs: Runs, work: Work) -> float:
    """Counts the FLOPs that a step needs, over all devices; see `throughput`."""
    return sum(
        passes
        * throughput.forward_flops(
            sizes(spec),
            tokens=work.tokens,
            scored=work.scored,
            visible=work.visible_to(spec),
        )
        for passes, spec in runs
    )
