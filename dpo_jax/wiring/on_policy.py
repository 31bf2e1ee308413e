"""What an on-policy run learns by: an algorithm of samples, or pairs made of them."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dpo_jax import roles
from dpo_jax.errors import ConfigError, DeviceError
from dpo_jax.models import scalar
from dpo_jax.models.spec import DecoderSpec
from dpo_jax.objectives import OBJECTIVES
from dpo_jax.objectives.algorithms import SampleKind
from dpo_jax.objectives.on_policy import (
    Critic,
    OnPolicy,
    SampleScorer,
    rollout_of,
    settled,
)
from dpo_jax.sampling import compare
from dpo_jax.schema import Section
from dpo_jax.sharding import arrays
from dpo_jax.sharding import mesh as mesh_lib
from dpo_jax.train.step import Metrics, StepFn
from dpo_jax.train.turn import take_turn
from dpo_jax.types import ApplyFn, Frozen, Hyper, TrainState
from dpo_jax.wiring import microbatches
from dpo_jax.wiring.model import Model
from dpo_jax.wiring.turns import Sizes, Turn

FLOATS = {  # algorithm -> hyper-parameter -> its key in the algorithm's section
    "ppo": {
        **{k: k for k in ("kl_coef", "gamma", "lam", "value_clip", "value_coef")},
        **{k: k for k in ("kl_target", "kl_horizon", "missing_eos_penalty")},
        "clip_range": "clip",
    },
    "rloo": {
        **{k: k for k in ("kl_coef", "missing_eos_penalty")},
        "clip_range": "clip",
    },
    "awr": {
        **{k: k for k in ("weight_clip", "missing_eos_penalty")},
        "awr_beta": "beta",
    },
}


def floats_of(name: str, given: Section) -> dict[str, float]:
    """Collects the float hyper-parameters of an algorithm; `given` is its section."""
    return {hyper: given[key] for hyper, key in FLOATS.get(name, {}).items()}


def sizes_of(
    name: str, given: Section, rollout: Section, *, pairs: int, width: int
) -> Sizes:
    """Counts what a turn is made of, in one microbatch.

    Args:
      name: of the objective.
      given: its section.
      rollout: `config.rollout`.
      pairs: `batch.pairs`, of which online's minibatches follow.
      width: tokens of the longest prompt.
    """
    prompts, samples = rollout["prompts"], rollout["samples"]
    if name == "online":
        minibatches = prompts * compare.pairs_of(given["rank"], samples) // pairs
    else:
        minibatches = given["minibatches"]
    return Sizes(
        prompts,
        samples,
        rollout["max_new_tokens"],
        width,
        given["epochs"],
        minibatches,
        microbatches=1,
    )


def in_microbatches(
    sizes: Sizes,
    asked: int,
    spec: DecoderSpec,
    mesh: Mesh,
    *,
    remat: str,
    dtype: str,
    chunk: int,
    beside: DecoderSpec | None = None,
) -> Sizes:
    """Cuts the updates of a turn into microbatches: as many as asked, or as few as fit.

    Args:
      sizes: of the turn, in one microbatch.
      asked: `batch.microbatches`; 0 = open.
      spec: of the policy.
      mesh: of the run.
      remat: as `Decoder` has it.
      dtype: of the computation.
      chunk: scored tokens per row whose logits are held at a time.
      beside: of a critic that is trained with the policy.

    Raises:
      DeviceError: if rows do not divide over the mesh.
    """
    shards = mesh_lib.row_shards(mesh)
    if sizes.rows % (shards * (asked or 1)):
        raise DeviceError(
            f"an update has {sizes.rows} prompts, which {shards} data shards and "
            f"batch.microbatches={asked or 1} do not divide; change rollout.prompts "
            "or the number of minibatches"
        )
    if not asked:
        of_device = sizes.rows // shards
        asked = microbatches.of_first(
            microbatches.fewest_that_fit(
                spec,
                mesh,
                rows=of_device,
                parts=of_device,
                tokens=sizes.width + sizes.samples * sizes.new_tokens,
                remat=remat,
                dtype=dtype,
                chunk=chunk,
                beside=beside,
            )
        )
    return sizes._replace(microbatches=asked)


def moving(name: str, given: Section, ref: Section, updates: int) -> dict[str, Any]:
    """Says how the reference moves: `config.ref` as `online.ref` changes it.

    Args:
      name: of the objective.
      given: its section.
      ref: `config.ref`.
      updates: of a turn.
    """
    if name != "online" or given["ref"] != "each_round":
        return dict(ref)
    return {**ref, "sync_every_steps": updates, "sync_mix": 1.0}


def turn_steps(
    records: int, *, steps: int, epochs: float, prompts: int, updates: int
) -> int:
    """Counts the updates of a run, which are those of whole turns.

    Args:
      records: of data.train.
      steps: that the user asks for, rounded up; 0 = by epochs.
      epochs: over the records, rounded down.
      prompts: of a turn.
      updates: of a turn.

    Raises:
      ConfigError: if the records fill no turn.
    """
    turns = math.ceil(steps / updates) if steps else int(epochs * records / prompts)
    if turns < 1:
        raise ConfigError(
            f"train.epochs={epochs} of {records} prompts fill no turn of "
            f"rollout.prompts={prompts}"
        )
    return turns * updates


@dataclasses.dataclass(frozen=True, eq=False)
class Learning:
    """How a run learns from samples.

    Attributes:
      name: of the objective.
      given: its section.
      mesh: of the run.
      apply: the policy.
      chunk: scored tokens per row whose logits are held at a time.
      temperature: that samples are drawn and scored at.
      value: the critic, where it is a model of its own.
    """

    name: str
    given: Section
    mesh: Mesh
    apply: ApplyFn
    chunk: int
    temperature: float
    value: Model | None = None

    @functools.cached_property
    def objective(self) -> OnPolicy:
        """What is minimised; of `online` a preference loss is, instead."""
        kind = OBJECTIVES[self.name]
        assert isinstance(kind, SampleKind)
        algorithm = kind.make(self.given)
        critic = self.critic if algorithm.critic else None
        scorer = SampleScorer(self.apply, self.chunk, self.temperature, critic)
        return OnPolicy(algorithm, scorer)

    @property
    def critic(self) -> Critic:
        """The value function: on the policy's trunk, or on one of its own."""
        if self.value is None:
            return scalar.on_trunk
        apply = self.value.apply
        return lambda params, hidden, batch: apply(params, batch)[:2]

    @property
    def stats(self) -> dict[str, Any]:
        """Running statistics before the first turn."""
        if self.objective.algorithm.close is None:
            return {}
        return {"kl_coef": jnp.float32(self.given["kl_coef"])}

    def turns(self, update: StepFn) -> Callable[..., tuple[TrainState, Metrics]]:
        """Makes the step of a turn out of that of an update."""
        place = arrays.row_sharding(self.mesh, leading=1)

        def spread(rows: Any) -> Any:
            return jax.lax.with_sharding_constraint(rows, place)

        def of_pairs(
            state: TrainState, frozen: Frozen, turn: Turn, hyper: Hyper
        ) -> tuple[TrainState, Metrics]:
            return take_turn(state, frozen, *turn, hyper, step=update, place=spread)

        def of_samples(
            state: TrainState, frozen: Frozen, turn: Turn, hyper: Hyper
        ) -> tuple[TrainState, Metrics]:
            algorithm, known = self.objective.algorithm, hyper | state.stats
            rollout, said = settled(
                roles.whole(state.params, frozen),
                turn.rollout,
                known,
                algorithm=algorithm,
                scorer=self.objective.scorer,
            )
            new, metrics = of_pairs(
                state, frozen, turn._replace(rollout=rollout), hyper
            )
            if "kl_coef" in known:
                said["kl_coef"] = known["kl_coef"]
            if algorithm.close is not None:
                stats = algorithm.close(state.stats, rollout_of(rollout), known)
                kept = jax.tree.map(
                    lambda n, o: jnp.where(metrics["ok"], n, o), stats, state.stats
                )
                new = new._replace(stats=kept)
            return new, metrics | said

        return of_pairs if self.name == "online" else of_samples
