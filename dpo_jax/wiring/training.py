"""Objective, optimizer and compiled step."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dpo_jax.config import Config
from dpo_jax.models import scalar as scalar_head
from dpo_jax.models.decoder import abstract_params
from dpo_jax.objectives import OBJECTIVES, balanced
from dpo_jax.objectives.judged import Kind
from dpo_jax.schema import Section
from dpo_jax.sharding import arrays, rules
from dpo_jax.train import optimizer, step
from dpo_jax.types import Frozen, Hyper, Objective, Params, Stats, TrainState
from dpo_jax.wiring.model import Model
from dpo_jax.wiring.objective import (
    Losses,
    hyper,
    make_objective,
    needs_whole_reference,
    start_stats,
    with_routers,
)
from dpo_jax.wiring.on_policy import Learning, floats_of
from dpo_jax.wiring.scoring import Scorer
from dpo_jax.wiring.turns import Sizes, Turn
from dpo_jax.wiring.weights import (
    abstract_own,
    abstract_weights,
    own_params,
    trained_shapes,
)


class Models(NamedTuple):
    """The models of a run by their role.

    Attributes:
      policy: that is trained.
      reference: that it is held against; None where nothing asks one.
      scorer: the reward model, which no step reads; None without one.
      value: the critic, where it is a model of its own.
    """

    policy: Model
    reference: Model | None = None
    scorer: Scorer | None = None
    value: Model | None = None


class Trainer(NamedTuple):
    """The step over a mesh, and what it takes.

    Attributes:
      init: what is frozen -> the state before the first step.
      abstract: the state as `jax.ShapeDtypeStruct`s with shardings.
      frozen: what is frozen, likewise.
      step: `(state, frozen, annotated batch, hyper) -> (state, metrics)`, jitted.
      dtype: of the model's computation.
      objective: what is minimised.
      hyper: () -> float hyper-parameters on the mesh.
    """

    init: Callable[[Frozen], TrainState]
    abstract: TrainState
    frozen: Frozen
    step: step.StepFn
    dtype: str
    objective: Objective
    hyper: Callable[[], Hyper]


class Minimised(NamedTuple):
    """What a run minimises, and how a step of it is made of an update.

    Attributes:
      objective: see `types.Objective`.
      stats: its running statistics before the first step.
      floats: hyper-parameters that it reads, but for those of `loss.*`.
      beside: shapes of what is trained beside the policy: the critic as `value`, or {}.
      step_of: update -> step of the loop.
      places: shardings of what the loop hands to a step.
    """

    objective: Objective
    stats: Stats
    floats: Mapping[str, float]
    beside: Params
    step_of: Callable[[step.StepFn], Callable[..., Any]]
    places: Any


def minimised(
    config: Config, losses: Losses, models: Models, mesh: Mesh, sizes: Sizes | None
) -> Minimised:
    """Finds what a run minimises; arguments are those of `make_trainer`."""
    name, rows = config.objective, arrays.row_sharding(mesh, leading=1)
    coef = config.model.router_aux_coef
    chunk, kind = config.model.logits_chunk, OBJECTIVES[name]
    policy, reference, _, value = models
    learning, step_of, places = None, lambda update: update, rows
    floats, heat = {balanced.COEF: coef} if coef else {}, 1.0
    if sizes is not None:
        given, heat = config[name], config.rollout.temperature
        learning = Learning(name, given, mesh, policy.apply, chunk, heat, value)
        step_of, places = learning.turns, Turn._make((rows, arrays.replicated(mesh)))
        floats |= floats_of(name, given)
    if not isinstance(kind, Kind):
        assert learning is not None
        objective, stats = learning.objective, learning.stats
        beside = {}
        if objective.algorithm.critic:
            head = functools.partial(scalar_head.value_head, policy.spec)
            shapes = abstract_params(value.spec) if value else jax.eval_shape(head)
            beside["value"] = shapes
        objective = with_routers(objective, policy.spec, weighted=coef > 0)
        return Minimised(objective, stats, floats, beside, step_of, places)
    whole = reference if needs_whole_reference(losses) else None
    objective = make_objective(
        kind,
        losses,
        config.loss,
        policy.apply,
        chunk=chunk,
        ref_head=None if whole is None else whole.head,
        temperature=heat,
        labels=config.online.labels,
    )
    objective = with_routers(objective, policy.spec, weighted=coef > 0)
    return Minimised(objective, start_stats(losses), floats, {}, step_of, places)


def make_trainer(
    config: Config,
    losses: Losses,
    models: Models,
    mesh: Mesh,
    steps: int,
    ref: Section,
    sizes: Sizes | None = None,
) -> Trainer:
    """Wires models, loss and optimizer into a step over the mesh; runs nothing.

    Args:
      config: of the run.
      losses: of the run; those of `ppo`, `rloo` and `awr` are not read.
      models: of the run.
      mesh: of the run.
      steps: updates of the run.
      ref: how the reference moves, as `config.ref` has it.
      sizes: of a turn, of an on-policy run.
    """
    given, values = config.optimizer, config.optimizer.to_dict()
    what = minimised(config, losses, models, mesh, sizes)
    every = ref["sync_every_steps"]
    take = functools.partial(
        step.train_step,
        objective=what.objective,
        tx=lambda hyper: optimizer.direction(given.name, {**values, **hyper}),
        lr_factor=optimizer.schedule(given.schedule),
        sync_every=every,
    )
    tx = optimizer.direction(given.name, values)
    make = functools.partial(step.init_state, tx=tx, stats=what.stats)
    own = trained_shapes(models.policy)
    abstract = jax.eval_shape(
        make, own | what.beside, seed=0, ref=own if every else None
    )
    places = rules.shardings(abstract, mesh, rules.STATE_RULES)
    live, scalar = ref["mode"] == "live" and not every, arrays.replicated(mesh)
    frozen = _frozen_shapes(models, mesh, live=live, moments=config.reward.standardize)
    compiled = step.compile_step(
        what.step_of(take),
        state_shardings=places,
        frozen_shardings=jax.tree.map(lambda leaf: leaf.sharding, frozen),
        batch_sharding=what.places,
        scalar=scalar,
        dtype=config.model.dtype,
    )
    floats = {**_optimizer_floats(values, steps), **what.floats}
    floats["sync_mix"] = ref["sync_mix"]
    return Trainer(
        _make_init(models, make, places, mesh, config.seed),
        rules.with_shardings(abstract, places),
        frozen,
        compiled,
        config.model.dtype,
        what.objective,
        lambda: jax.device_put(hyper(losses, config.loss, **floats), scalar),
    )


def _frozen_shapes(models: Models, mesh: Mesh, *, live: bool, moments: int) -> Frozen:
    """Returns what `Parts.refer` loads, as shapes with shardings.

    The weights of a reference are among it where it is `live` and does not move, the
    moments of scores where `reward.standardize` asks for some.
    """
    policy, reference, scorer, _ = models
    frozen: Frozen = {}
    if policy.adapters is not None:
        frozen["base"] = abstract_weights(policy, mesh)
    if reference is not None and live and (own := abstract_own(reference, mesh)):
        frozen["ref"] = own
    if scorer is not None:
        frozen["reward"] = abstract_weights(scorer.model, mesh)
    if moments:
        place = arrays.replicated(mesh)
        frozen["standard"] = jax.ShapeDtypeStruct((2,), np.float32, sharding=place)
    return frozen


def _optimizer_floats(given: Section, steps: int) -> dict[str, Any]:
    """Collects the float hyper-parameters of `config.optimizer` and its schedule."""
    warmup = warmup_steps(steps, given["warmup_steps"], given["warmup_share"])
    return {
        **{key: given[key] for key in ("lr", "eps")},
        **{key: given[key] for key in ("clip", "weight_decay") if given[key]},
        **optimizer.pace(warmup_steps=warmup, total_steps=steps),
        "step_share": 1 / max(steps, 1),
    }


def _make_init(
    models: Models, make: Callable[..., TrainState], places: Any, mesh: Mesh, seed: int
) -> Callable[[Frozen], TrainState]:
    """Builds `frozen -> the state before the first step`.

    It is what `make` makes of `(params, seed, ref)`, and lies as `places` say; it holds
    a reference, or a critic, where they have a place.
    """
    policy, reference, _, value = models
    load = functools.partial(own_params, mesh=mesh, seed=seed)

    def init(frozen: Frozen) -> TrainState:
        ref = load(reference) if reference and places.ref is not None else None
        known = frozen.get("ref", ref)
        if reference_is_policy(policy, reference) and known is not None:
            params = jax.tree.map(jnp.copy, known)  # the files are read once
        else:
            params = load(policy)
        if policy.adapters is not None and policy.spec.scalar:
            params["score"] = jax.tree.map(jnp.copy, frozen["base"]["score"])
        if "value" in places.params:
            critic = load(value) if value else scalar_head.value_head(policy.spec)
            params = jax.device_put({**params, "value": critic}, places.params)
        start = jax.jit(make, out_shardings=places, donate_argnames=("params", "ref"))
        # the seed is an argument, or each one would compile a program of its own
        return start(params=params, ref=ref, seed=np.uint32(seed))

    return init


def reference_is_policy(model: Model, reference: Model | None) -> bool:
    """Tells whether the reference holds the masters that the policy starts with."""
    if reference is None or reference.held != model.held:
        return False
    same = (reference.folder, reference.spec) == (model.folder, model.spec)
    return same and reference.adapters == model.adapters


def warmup_steps(steps: int, warmup: int, share: float) -> int:
    """Counts the steps of the warm-up; a share of the run is rounded up.

    Args:
      steps: of the run.
      warmup: steps that the user asks for.
      share: of the run, instead.

    Source: rounding as transformers' `warmup_ratio`.
    """
    return math.ceil(share * steps) if share else warmup
