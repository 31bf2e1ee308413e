"""Objective, optimizer and compiled step."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from dpo_jax.config import Config
from dpo_jax.data.loader import Loader
from dpo_jax.losses import Loss, options
from dpo_jax.models.decoder import abstract_params
from dpo_jax.models.spec import DecoderSpec
from dpo_jax.objectives.preference import Preference
from dpo_jax.objectives.sft import Sft
from dpo_jax.sharding import arrays, rules
from dpo_jax.train import optimizer, step, throughput
from dpo_jax.types import ApplyFn, Batch, Objective, TrainState
from dpo_jax.wiring.model import Model, load_params


class Trainer(NamedTuple):
    """The compiled parts of training.

    Attributes:
      init: () -> the state before the first step.
      abstract: the state as `jax.ShapeDtypeStruct`s with shardings.
      step: `(state, annotated batch) -> (state, metrics)`.
      objective: what is minimised.
      hyper: float hyper-parameters.
    """

    init: Callable[[], TrainState]
    abstract: TrainState
    step: Callable[[TrainState, Batch], tuple[TrainState, step.Metrics]]
    objective: Objective
    hyper: dict[str, jax.Array]


def make_trainer(
    config: Config, loss: Loss, model: Model, built: Mesh, steps: int
) -> Trainer:
    """Wires model, loss and optimizer into a step over the mesh."""
    tx = optimizer.direction(config.optimizer.name, config.optimizer.to_dict())
    objective = make_objective(config, loss, model.apply)
    factor = optimizer.schedule(
        config.optimizer.schedule,
        warmup_steps=config.optimizer.warmup_steps,
        total_steps=steps,
    )
    take = functools.partial(
        step.train_step,
        objective=objective,
        tx=tx,
        lr_factor=factor,
        clip_norm=config.optimizer.clip,
        microbatches=config.batch.microbatches,
    )
    abstract, places = state_places(model.spec, tx, built, config.seed)
    scalar = arrays.replicated(built)
    compiled = step.compile_step(
        take,
        state_shardings=places,
        batch_sharding=arrays.row_sharding(built, leading=1),
        scalar=scalar,
    )
    values = jax.device_put(hyper(config), scalar)

    def init() -> TrainState:
        params = load_params(model, built, "float32", seed=config.seed)
        make = functools.partial(step.init_state, tx=tx, seed=config.seed)
        return jax.jit(make, out_shardings=places, donate_argnums=0)(params)

    return Trainer(
        init,
        rules.with_shardings(abstract, places),
        lambda state, batch: compiled(state, batch, values),
        objective,
        values,
    )


def make_objective(config: Config, loss: Loss, apply: ApplyFn) -> Objective:
    """Builds what is minimised; float options come from `hyper`, others are fixed."""
    chunk = config.model.logits_chunk
    if config.objective == "sft":
        return Sft(apply, chunk)
    names = options(loss)
    fixed = {n: config.loss[n] for n in names if not is_traced(n, config.loss[n])}
    traced = [name for name in names if name not in fixed]

    def pair_loss(pairs: Any, hyper: Mapping[str, Any]) -> Any:
        return loss.fn(pairs, **fixed, **{name: hyper[name] for name in traced})

    return Preference(apply, pair_loss, loss.per, chunk)


def is_traced(name: str, value: Any) -> bool:
    """Tells hyper-parameters that a sweep may change without compiling again."""
    return isinstance(value, float) and name != "divergence_alpha"


def hyper(config: Config) -> dict[str, jax.Array]:
    """Collects the float hyper-parameters as arrays."""
    values = {k: v for k, v in config.loss.items() if is_traced(k, v)}
    values["lr"] = config.optimizer.lr
    return {name: jnp.float32(value) for name, value in values.items()}


def state_places(
    spec: DecoderSpec, tx: optax.GradientTransformation, built: Mesh, seed: int
) -> tuple[TrainState, Any]:
    """Returns the abstract train state and the sharding of each leaf."""
    make = functools.partial(step.init_state, tx=tx, seed=seed)
    abstract = jax.eval_shape(make, abstract_params(spec))
    return abstract, rules.shardings(abstract, built, rules.STATE_RULES)


def facts(
    config: Config, spec: DecoderSpec, loads: Loader, number: int
) -> dict[str, float]:
    """Tells the loop what the host knows of a step's batch.

    `flops` are given in seconds at the speed of a plain matmul on these devices.
    """
    found = loads.facts(number - 1)
    layers = jax.tree.leaves(abstract_params(spec)["layers"])
    flops = throughput.model_flops(
        trunk=sum(leaf.size for leaf in layers),
        head=spec.width * spec.vocab,
        tokens=found["tokens"],
        scored=found.pop("scored"),
        reference=config.ref.mode != "none",
    )
    speed = throughput.matmul_flops_per_second(config.model.dtype)
    return {**found, "flops": flops / speed}
