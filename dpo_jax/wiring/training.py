"""Objective, optimizer and compiled step."""

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dpo_jax.config import Config
from dpo_jax.data.loader import Loader
from dpo_jax.data.mixture import Sources
from dpo_jax.models import scalar as scalar_head
from dpo_jax.models.decoder import abstract_params, leaves
from dpo_jax.models.spec import DecoderSpec
from dpo_jax.objectives import OBJECTIVES, balanced
from dpo_jax.objectives.judged import Kind
from dpo_jax.sharding import arrays, rules
from dpo_jax.train import optimizer, step, throughput
from dpo_jax.types import Frozen, Hyper, Objective, Params, Stats, TrainState
from dpo_jax.wiring.model import (
    Model,
    abstract_own,
    abstract_weights,
    own_params,
    trained_shapes,
)
from dpo_jax.wiring.objective import (
    Losses,
    hyper,
    make_objective,
    needs_whole_reference,
    start_stats,
    with_routers,
)
from dpo_jax.wiring.on_policy import Learning, floats_of, moving
from dpo_jax.wiring.scoring import Scorer
from dpo_jax.wiring.turns import Sizes, Turn

# (step, metrics) -> what the host knows of a step, as `train.loop.Functions` has it
Facts = Callable[[int, Mapping[str, float]], dict[str, float]]


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
      value: shapes of the critic that is trained beside the policy; None without one.
      step_of: update -> step of the loop.
      places: shardings of what the loop hands to a step.
      ref: how the reference moves, as `config.ref` has it.
    """

    objective: Objective
    stats: Stats
    floats: Mapping[str, float]
    value: Params | None
    step_of: Callable[[step.StepFn], Callable[..., Any]]
    places: Any
    ref: Mapping[str, Any]


def minimised(
    config: Config,
    losses: Losses,
    model: Model,
    reference: Model | None,
    mesh: Mesh,
    sizes: Sizes | None,
    value: Model | None,
) -> Minimised:
    """Finds what a run minimises; arguments are those of `make_trainer`."""
    name, rows = config.objective, arrays.row_sharding(mesh, leading=1)
    coef = config.model.router_aux_coef
    chunk, kind = config.model.logits_chunk, OBJECTIVES[name]
    learning, step_of, places = None, lambda update: update, rows
    ref, floats, heat = dict(config.ref), {balanced.COEF: coef} if coef else {}, 1.0
    if sizes is not None:
        given, heat = config[name], config.rollout.temperature
        learning = Learning(name, given, mesh, model.apply, chunk, heat, value)
        step_of, places = learning.turns, Turn._make((rows, arrays.replicated(mesh)))
        floats |= floats_of(name, given)
        ref = moving(name, given, ref, sizes.updates)
    if not isinstance(kind, Kind):
        assert learning is not None
        objective, stats = learning.objective, learning.stats
        beside = None
        if objective.algorithm.critic:
            head = functools.partial(scalar_head.value_head, model.spec)
            beside = abstract_params(value.spec) if value else jax.eval_shape(head)
        objective = with_routers(objective, model.spec, weighted=coef > 0)
        return Minimised(objective, stats, floats, beside, step_of, places, ref)
    whole = reference if needs_whole_reference(losses) else None
    objective = make_objective(
        kind,
        losses,
        config.loss,
        model.apply,
        chunk=chunk,
        ref_head=None if whole is None else whole.head,
        temperature=heat,
        labels=config.online.labels,
    )
    objective = with_routers(objective, model.spec, weighted=coef > 0)
    stats = start_stats(losses)
    return Minimised(objective, stats, floats, None, step_of, places, ref)


def make_trainer(
    config: Config,
    losses: Losses,
    model: Model,
    reference: Model | None,
    mesh: Mesh,
    steps: int,
    sizes: Sizes | None = None,
    scorer: Scorer | None = None,
    value: Model | None = None,
) -> Trainer:
    """Wires model, loss and optimizer into a step over the mesh; runs nothing.

    Args:
      config: of the run.
      losses: of the run; those of `ppo`, `rloo` and `awr` are not read.
      model: the policy.
      reference: None without one.
      mesh: of the run.
      steps: updates of the run.
      sizes: of a turn, of an on-policy run.
      scorer: the reward model; None without one. It is frozen, and no step reads it.
      value: the critic, where it is a model of its own.
    """
    name, values = config.optimizer.name, config.optimizer.to_dict()
    what = minimised(config, losses, model, reference, mesh, sizes, value)
    follows = bool(what.ref["sync_every_steps"])
    take = functools.partial(
        step.train_step,
        objective=what.objective,
        tx=lambda hyper: optimizer.direction(name, {**values, **hyper}),
        lr_factor=optimizer.schedule(config.optimizer.schedule),
        sync_every=what.ref["sync_every_steps"],
    )
    tx = optimizer.direction(name, values)
    make = functools.partial(step.init_state, tx=tx, stats=what.stats)
    abstract, places = state_places(
        trained_shapes(model), make, mesh, follows=follows, value=what.value
    )
    live = config.ref.mode == "live" and not follows
    frozen: Frozen = {}
    if model.adapters is not None:
        frozen["base"] = abstract_weights(model, mesh)
    if reference is not None and live and (own := abstract_own(reference, mesh)):
        frozen["ref"] = own
    if scorer is not None:
        frozen["reward"] = abstract_weights(scorer.model, mesh)
    scalar = arrays.replicated(mesh)
    if config.reward.standardize:
        frozen["standard"] = jax.ShapeDtypeStruct((2,), np.float32, sharding=scalar)
    warmup = warmup_steps(steps, values["warmup_steps"], values["warmup_share"])
    floats = {
        **{key: values[key] for key in ("lr", "eps")},
        **{key: values[key] for key in ("clip", "weight_decay") if values[key]},
        **optimizer.pace(warmup_steps=warmup, total_steps=steps),
        "step_share": 1 / max(steps, 1),
        "sync_mix": what.ref["sync_mix"],
        **what.floats,
    }
    compiled = step.compile_step(
        what.step_of(take),
        state_shardings=places,
        frozen_shardings=jax.tree.map(lambda leaf: leaf.sharding, frozen),
        batch_sharding=what.places,
        scalar=scalar,
        dtype=config.model.dtype,
    )

    def init(frozen: Frozen) -> TrainState:
        load = functools.partial(own_params, mesh=mesh, seed=config.seed)
        ref = load(reference) if reference is not None and follows else None
        known = frozen.get("ref", ref)
        if reference_is_policy(model, reference) and known is not None:
            params = jax.tree.map(jnp.copy, known)  # the files are read once
        else:
            params = load(model)
        if model.adapters is not None and model.spec.scalar:
            params["score"] = jax.tree.map(jnp.copy, frozen["base"]["score"])
        if what.value is not None:
            critic = load(value) if value else scalar_head.value_head(model.spec)
            params = jax.device_put({**params, "value": critic}, places.params)
        start = jax.jit(make, out_shardings=places, donate_argnames=("params", "ref"))
        # the seed is an argument, or each one would compile a program of its own
        return start(params=params, ref=ref, seed=np.uint32(config.seed))

    return Trainer(
        init,
        rules.with_shardings(abstract, places),
        frozen,
        compiled,
        config.model.dtype,
        what.objective,
        lambda: jax.device_put(hyper(losses, config.loss, **floats), scalar),
    )


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


def state_places(
    params: Params,
    make: Callable[..., TrainState],
    mesh: Mesh,
    *,
    follows: bool,
    value: Params | None = None,
) -> tuple[TrainState, Any]:
    """Returns the abstract train state and the sharding of each leaf.

    Args:
      params: shapes of what is trained of the policy.
      make: `(params, seed, ref=None) -> state`.
      mesh: of the run.
      follows: whether the reference is part of the state.
      value: shapes of the critic that is trained beside the policy; None without one.
    """
    ref = params if follows else None
    if value is not None:
        params = {**params, "value": value}
    abstract = jax.eval_shape(make, params, seed=0, ref=ref)
    return abstract, rules.shardings(abstract, mesh, rules.STATE_RULES)


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
        flops = sum(
            times
            * throughput.forward_flops(
                sizes(spec),
                tokens=counts["tokens"],
                scored=counts["scored"],
                visible=visible_pairs(spec, loads, number - 1),
            )
            for times, spec in runs
        )
        del counts["scored"]
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


def visible_pairs(spec: DecoderSpec, loads: Loader, step: int) -> int:
    """Counts the (query, key) pairs of a step in all layers, each by its window."""
    windows = Counter(spec.windows or (0,) * spec.layers)
    return sum(n * loads.visible_pairs(step, w) for w, n in windows.items())
