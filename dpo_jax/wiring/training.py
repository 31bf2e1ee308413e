"""Objective, optimizer and compiled step."""

import functools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from dpo_jax.config import Config
from dpo_jax.data.loader import Loader
from dpo_jax.models.decoder import abstract_params, flatten
from dpo_jax.models.spec import DecoderSpec
from dpo_jax.sharding import arrays, rules
from dpo_jax.train import optimizer, step, throughput
from dpo_jax.types import Batch, Hyper, Objective, TrainState
from dpo_jax.wiring.model import (
    Model,
    head_from_hyper,
    head_places,
    load_params,
)
from dpo_jax.wiring.objective import (
    Losses,
    hyper,
    make_objective,
    needs_whole_reference,
    start_stats,
)


class Trainer(NamedTuple):
    """The compiled parts of training.

    Attributes:
      init: () -> the state before the first step.
      abstract: the state as `jax.ShapeDtypeStruct`s with shardings.
      step: `(state, annotated batch, the reference's head) -> (state, metrics)`.
      kind: config.objective.
      objective: what is minimised.
      hyper: float hyper-parameters.
    """

    init: Callable[[], TrainState]
    abstract: TrainState
    step: Callable[[TrainState, Batch, Hyper], tuple[TrainState, step.Metrics]]
    kind: str
    objective: Objective
    hyper: Hyper


class Wired(NamedTuple):
    """The step over a mesh, before any array lies there.

    Attributes:
      make: `(params, ref=None) -> the state before the first step`.
      abstract: the state as `jax.ShapeDtypeStruct`s with shardings.
      places: the sharding of each leaf of the state.
      step: `(state, batch, hyper-parameters and the reference's head) -> (state,
        metrics)`, jitted.
      objective: what is minimised.
    """

    make: Callable[..., TrainState]
    abstract: TrainState
    places: Any
    step: Any
    objective: Objective


def wire(
    config: Config,
    losses: Losses,
    model: Model,
    reference: Model | None,
    built: Mesh,
    steps: int,
) -> Wired:
    """Wires model, loss and optimizer into a step over the mesh."""
    tx = optimizer.direction(config.optimizer.name, config.optimizer.to_dict())
    whole = reference if needs_whole_reference(losses) else None
    objective = make_objective(
        config, losses, model.apply, None if whole is None else head_from_hyper(whole)
    )
    follows = bool(config.ref.sync_every_steps)
    take = functools.partial(
        step.train_step,
        objective=objective,
        tx=tx,
        lr_factor=optimizer.schedule(
            config.optimizer.schedule,
            warmup_steps=warmup_steps(config, steps),
            total_steps=steps,
        ),
        clip_norm=config.optimizer.clip,
        microbatches=config.batch.microbatches,
        sync=follow(config) if follows else None,
    )
    stats = start_stats(losses)
    make = functools.partial(step.init_state, tx=tx, seed=config.seed, stats=stats)
    abstract, places = state_places(model.spec, make, built, follows)
    scalar = arrays.replicated(built)
    compiled = step.compile_step(
        take,
        state_shardings=places,
        batch_sharding=arrays.row_sharding(built, leading=1),
        hyper_shardings=dict.fromkeys(hyper(config, losses), scalar)
        | ({} if whole is None else head_places(whole, built)),
        scalar=scalar,
    )
    abstract = rules.with_shardings(abstract, places)
    return Wired(make, abstract, places, compiled, objective)


def make_trainer(
    config: Config,
    losses: Losses,
    model: Model,
    reference: Model | None,
    built: Mesh,
    steps: int,
) -> Trainer:
    """Wires the step, and what gives it its first state and its hyper-parameters."""
    wired = wire(config, losses, model, reference, built, steps)
    values = jax.device_put(hyper(config, losses), arrays.replicated(built))

    def init() -> TrainState:
        load = functools.partial(load_params, built=built, seed=config.seed)
        params = load(model, dtype="float32")
        follows = reference if config.ref.sync_every_steps else None
        ref = None if follows is None else load(follows, dtype="float32")
        start = jax.jit(
            wired.make, out_shardings=wired.places, donate_argnames=("params", "ref")
        )
        return start(params=params, ref=ref)

    return Trainer(
        init,
        wired.abstract,
        lambda state, batch, head: wired.step(state, batch, values | head),
        config.objective,
        wired.objective,
        values,
    )


def warmup_steps(config: Config, steps: int) -> int:
    """Counts the steps of the warm-up; a share of the run is rounded up.

    Source: rounding as transformers' `warmup_ratio`.
    """
    share = config.optimizer.warmup_share
    return math.ceil(share * steps) if share else config.optimizer.warmup_steps


def follow(config: Config) -> step.Sync:
    """Builds the move of the reference towards the policy (TR-DPO)."""
    every, mix = config.ref.sync_every_steps, config.ref.sync_mix
    return functools.partial(step.follow, every=every, mix=mix)


def state_places(
    spec: DecoderSpec, make: Callable[..., TrainState], built: Mesh, follows: bool
) -> tuple[TrainState, Any]:
    """Returns the abstract train state and the sharding of each leaf.

    Args:
      spec: of the policy.
      make: `(params, ref=None) -> state`.
      built: the mesh.
      follows: whether the reference is part of the state.
    """
    params = abstract_params(spec)
    abstract = jax.eval_shape(make, params, ref=params if follows else None)
    return abstract, rules.shardings(abstract, built, rules.STATE_RULES)


def make_facts(
    loads: Loader, policy: DecoderSpec, reference: DecoderSpec | None, peak: float
) -> Callable[[int], dict[str, float]]:
    """Builds what tells the loop what the host knows of a step's batch.

    Args:
      loads: lays the batches out.
      policy: what is trained.
      reference: what is run forward beside it; None where nothing is.
      peak: FLOP/s of all devices; `flops` are given in seconds at that speed.
    """

    def facts(number: int) -> dict[str, float]:
        found = loads.facts(number - 1)
        flops = [
            throughput.forward_flops(
                sizes(spec),
                tokens=found["tokens"],
                scored=found["scored"],
                visible=visible_pairs(spec, loads, number - 1),
            )
            for spec in (policy, reference)
            if spec is not None
        ]
        del found["scored"]
        return {**found, "flops": throughput.step_flops(*flops) / peak}

    return facts


@functools.cache
def sizes(spec: DecoderSpec) -> throughput.Sizes:
    """Counts what the FLOPs of a model depend on; a scalar head costs nothing."""
    layers = flatten(abstract_params(spec)["layers"])
    return throughput.Sizes(
        trunk=sum(leaf.size for p, leaf in layers.items() if p.endswith("/kernel")),
        head=0 if spec.scalar else spec.width * spec.vocab,
        queries=spec.heads * spec.head_dim,
    )


def visible_pairs(spec: DecoderSpec, loads: Loader, step: int) -> int:
    """Counts the (query, key) pairs of a step in all layers, each by its window."""
    windows = Counter(spec.windows or (0,) * spec.layers)
    return sum(n * loads.visible_pairs(step, w) for w, n in windows.items())
