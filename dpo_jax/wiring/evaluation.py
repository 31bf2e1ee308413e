"""What is measured besides training: held-out pairs, and sampled continuations."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from dpo_jax.data import sources, tokenize
from dpo_jax.data.loader import Loader
from dpo_jax.evals import preference, rollouts
from dpo_jax.evals.rollouts import Rollout
from dpo_jax.precision import in_products_of
from dpo_jax.sampling import batches, pick
from dpo_jax.sampling.batches import Sampler
from dpo_jax.sampling.rollout import Prompts, rows_of
from dpo_jax.sharding import arrays
from dpo_jax.sharding import mesh as mesh_lib
from dpo_jax.train.loop import Evaluator
from dpo_jax.types import (
    Array,
    Batch,
    Columns,
    Counts,
    Frozen,
    Hyper,
    Params,
    Reports,
    Samples,
    TrainState,
)
from dpo_jax.wiring import generation
from dpo_jax.wiring.data import EVAL_SEED, global_batches
from dpo_jax.wiring.model import Model, load_params
from dpo_jax.wiring.parts import Parts
from dpo_jax.wiring.reference import Referred
from dpo_jax.wiring.training import Trainer

TOLD_SECONDS = 30.0  # between lines that tell how far an evaluation is
ROLLOUT_SEED = 99  # one key for all policies: common random numbers
ROLLOUT_ROWS = 128  # of a shard that are sampled together, at most


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
            hyper=jax.device_get(hyper),
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
    config, reference = parts.config, parts.reference
    assert reference is not None  # `checks.rollout_faults`
    policy, mesh, tokenizer = parts.model, parts.mesh, parts.data.tokenizer
    source = sources.JUDGED[sources.parts_of(config.data.eval, "data.eval")[0].source]
    texts = source.prompts(EVAL_SEED, config.eval.rollouts, split="eval")
    template = tokenize.read_chat_template(config.data.chat_template, tokenizer)
    prompts = [
        generation.encode(tokenizer, text, join=config.data.join, template=template)
        for text in texts
    ]
    key, chunk = jax.random.key(ROLLOUT_SEED), config.model.logits_chunk

    def judge(index: int, completion: str) -> float:
        return source.reward(texts[index].split(), completion.split())

    def sampler_of(model: Model) -> Sampler:
        return batches.make_sampler(
            generation.make_decoding(model.decoder),
            pick=pick.sampler(temperature=1.0),
            stops=[tokenizer.eos_token_id],
            max_new_tokens=config.data.max_tokens - config.data.max_prompt_tokens,
            mesh=mesh,
        )

    def kl(params: Params, ref: Params, rows: Prompts, samples: Samples) -> Array:
        return rollouts.sequence_kl(
            params,
            ref,
            rows_of(rows, samples),
            apply=policy.apply,
            ref_apply=reference.apply,
            chunk=chunk,
        )

    def play(
        sampler: Sampler, params: Params, ref: Params, kl: Callable[..., Array]
    ) -> Rollout:
        rows = ROLLOUT_ROWS * mesh_lib.row_shards(mesh)
        sampled = (
            (part, sampler.read((samples, kl(params, ref, at, samples))))
            for part, at, samples in batches.rollouts(
                params, prompts, key, sampler=sampler, n=1, batch=rows
            )
        )
        return rollouts.judged(
            *batches.gather(sampled, len(prompts), 1),
            decode=functools.partial(tokenizer.decode, skip_special_tokens=True),
            reward=judge,
        )

    def none(params: Params, ref: Params, rows: Prompts, samples: Samples) -> Array:
        return np.zeros(samples.ended.shape, np.float32)  # the reference to itself

    start = referred.frozen.get("ref")
    if start is None:  # it moves: its start is not held beside the train state
        start = load_params(reference, mesh, seed=config.seed)
    ours, theirs = policy.decoder, reference.decoder
    sampler = sampler_of(policy)  # one where both compute the same
    of_ref = sampler if theirs == ours else sampler_of(reference)
    before = play(of_ref, start, start, none)
    widest = jnp.promote_types(ours.dtype, theirs.dtype).name
    compiled = jax.jit(in_products_of(widest, kl))

    def sample(state: TrainState) -> Sampled:
        ref = referred.frozen.get("ref", state.ref)
        return Sampled(texts, play(sampler, state.params, ref, compiled), before)

    return sample


def rollout_metrics(sampled: Sampled) -> dict[str, float]:
    """Means and standard errors of a policy's rollouts, as metrics."""
    means = {}
    columns = {"reward": sampled.policy.rewards, "kl": sampled.policy.kls}
    for name, values in columns.items():
        mean, error = rollouts.mean_se(values)
        means[f"rollouts/{name}"] = mean
        if error is not None:
            means[f"rollouts/{name}_se"] = error
    return means | {"rollouts/length": float(sampled.policy.lengths.mean())}


def before_and_after(sampled: Sampled) -> dict[str, Any]:
    """Lays reference and policy side by side, as results.json has them.

    The row `difference` pairs the prompts, so its error is that of the mean difference.
    """
    both = {"before (reference)": sampled.reference, "after (policy)": sampled.policy}
    rows = [
        {
            "name": name,
            "values": {
                "true reward": _cell(rollout.rewards),
                "KL to reference (nats)": _cell(rollout.kls),
                "length (tokens)": _cell(rollout.lengths),
            },
        }
        for name, rollout in both.items()
    ]
    gain = _cell(sampled.policy.rewards - sampled.reference.rewards)
    rows.append({"name": "difference", "values": {"true reward": gain}})
    count = len(sampled.prompts)
    return {"title": f"True reward of {count} sampled continuations", "rows": rows}


def _cell(values: np.ndarray) -> float | tuple[float, float]:
    """Gives a mean with its standard error, where there is one."""
    mean, error = rollouts.mean_se(values)
    return mean if error is None else (mean, error)


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
