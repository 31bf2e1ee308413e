"""What is measured besides training: held-out pairs, and sampled continuations."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dpo_jax.data import sources
from dpo_jax.data.loader import Loader
from dpo_jax.evals import preference, rollout
from dpo_jax.evals.rollout import Rollout
from dpo_jax.objectives import reward
from dpo_jax.precision import in_products_of
from dpo_jax.sampling import generate, pick
from dpo_jax.sharding import arrays
from dpo_jax.train.loop import Evaluator
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
from dpo_jax.wiring import generation
from dpo_jax.wiring.data import global_batches
from dpo_jax.wiring.model import Model, load_reference
from dpo_jax.wiring.parts import Parts
from dpo_jax.wiring.reference import Referred
from dpo_jax.wiring.training import Trainer

ROLLOUT_SEED = 99  # one key for all policies: common random numbers


class Measures(NamedTuple):
    """What a run measures besides training.

    Attributes:
      evaluators: name -> evaluator, in order.
      rollouts: its last samples lie here; None where nothing is sampled.
    """

    evaluators: dict[str, Evaluator]
    rollouts: "Rollouts | None"


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
    of_scores = trainer.kind == "reward"
    extras = reward_extras if of_scores else preference.no_extras

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
        batches = global_batches(loads, mesh, 0)
        annotated = (
            referred.annotate(state, frozen, batch, key, hyper) for batch in batches
        )
        values = preference.evaluate(
            annotated,
            score=lambda batch: compiled(state.params, frozen, batch, hyper),
            objective=objective,
            stats=jax.device_get(state.stats),
            hyper=jax.device_get(hyper),
            extras=extras,
        )
        yield from values.items()

    return measure


def reward_extras(whole: Columns) -> dict[str, float]:
    """Adds the calibration of a reward model."""
    return {"scores/calibration_error": float(reward.calibration_error(whole))}


class Sampled(NamedTuple):
    """Prompts and what the policy and the reference made of them."""

    prompts: list[str]
    policy: Rollout
    reference: Rollout


class Rollouts:
    """Samples continuations of a state, and keeps the last for the report."""

    def __init__(self, sample: Callable[[TrainState], Sampled]):
        self._sample = sample
        self.last: Sampled | None = None

    def __call__(self, state: TrainState) -> Iterator[tuple[str, float]]:
        """Yields means and standard errors of what was sampled."""
        self.last = self._sample(state)
        yield from rollout_metrics(self.last).items()


def make_rollouts(parts: Parts, referred: Referred) -> Callable[[TrainState], Sampled]:
    """Builds `state -> Sampled` on the prompts of a source with a true reward.

    The KL is that to the reference of the state where it moves.
    """
    config = parts.config
    policy, reference, tokenizer = parts.model, parts.reference, parts.data.tokenizer
    assert reference is not None  # `checks.rollout_faults`
    judged = sources.JUDGED[config.data.eval]
    texts = judged.prompts(config.seed, config.eval.rollouts, split="eval")
    prompts = [generation.encode(config, tokenizer, text) for text in texts]

    def judge(index: int, completion: str) -> float:
        return judged.reward(texts[index].split(), completion.split())

    def player(model: Model, dtype: str) -> rollout.PlayFn:
        decoding = generation.make_decoding(
            model.spec,
            dtype=dtype,
            attention=config.model.attention,
            length=config.data.max_tokens,  # as `apply` has it
            constrain=lambda x: x,
        )
        sample = functools.partial(
            generate.generate,
            model=decoding,
            max_new_tokens=config.data.max_tokens - config.data.max_prompt_tokens,
            pick=pick.temperature(1.0),
            stops=np.array([tokenizer.eos_token_id], np.int32),
        )
        return rollout.make_play(
            apply=model.apply_anywhere,
            ref_apply=reference.apply_anywhere,
            sample=sample,
            rows=generate.rows,
        )

    rollout_of = functools.partial(
        rollout.rollout,
        prompts=prompts,
        key=jax.random.key(ROLLOUT_SEED),
        decode=functools.partial(tokenizer.decode, skip_special_tokens=True),
        reward=judge,
    )
    of_ref = config.ref.dtype or config.model.dtype
    start = referred.frozen.get("ref")
    if start is None:  # it moves: its beginning is not held beside the train state
        start = load_reference(config, reference, parts.mesh)
    before = rollout_of(start, start, play=player(reference, of_ref))
    play = player(policy, config.model.dtype)  # compiled at the first evaluation

    def sample(state: TrainState) -> Sampled:
        ref = referred.frozen.get("ref", state.ref)
        return Sampled(texts, rollout_of(state.params, ref, play=play), before)

    return sample


def rollout_metrics(sampled: Sampled) -> dict[str, float]:
    """Means and standard errors of a policy's rollouts, as metrics."""
    found = {}
    columns = {"reward": sampled.policy.rewards, "kl": sampled.policy.kls}
    for name, values in columns.items():
        mean, error = rollout.mean_se(values)
        found |= {f"rollouts/{name}": mean, f"rollouts/{name}_se": error}
    return found | {"rollouts/length": float(sampled.policy.lengths.mean())}


def before_and_after(sampled: Sampled) -> dict[str, Any]:
    """Lays reference and policy side by side, as results.json has them.

    The row `difference` pairs the prompts, so its error is that of the mean difference.
    """
    both = {"before (reference)": sampled.reference, "after (policy)": sampled.policy}
    rows = [
        {
            "name": name,
            "values": {
                "true reward": rollout.mean_se(found.rewards),
                "KL to reference (nats)": rollout.mean_se(found.kls),
                "length (tokens)": rollout.mean_se(found.lengths),
            },
        }
        for name, found in both.items()
    ]
    gain = rollout.mean_se(sampled.policy.rewards - sampled.reference.rewards)
    rows.append({"name": "difference", "values": {"true reward": gain}})
    count = len(sampled.prompts)
    return {"title": f"True reward of {count} sampled continuations", "rows": rows}


def side_by_side(sampled: Sampled, count: int) -> list[dict[str, Any]]:
    """Picks the first few prompts with both continuations, as samples.json has them."""
    before, after = sampled.reference, sampled.policy
    return [
        {
            "prompt": sampled.prompts[i],
            "before": before.texts[i],
            "after": after.texts[i],
            "reward_before": float(before.rewards[i]),
            "reward_after": float(after.rewards[i]),
        }
        for i in range(min(count, len(sampled.prompts)))
    ]
