"""What a run samples as it goes: prompts of data.eval, beside the reference."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dpo_jax import roles
from dpo_jax.data import prepare, sources, tokenize
from dpo_jax.data.prepare import Questions
from dpo_jax.errors import DataError
from dpo_jax.evals import rollouts
from dpo_jax.evals.rollouts import Rollout
from dpo_jax.objectives import ON_POLICY
from dpo_jax.precision import in_products_of
from dpo_jax.rewards.ask import Reward
from dpo_jax.rewards.simple import of_words
from dpo_jax.sampling import batches, pick
from dpo_jax.sampling.batches import Sampler
from dpo_jax.sampling.rollout import Prompts, rows_of
from dpo_jax.sharding import mesh as mesh_lib
from dpo_jax.types import Array, Frozen, Params, Samples, TrainState
from dpo_jax.wiring import generation, reading, rewarding, scoring
from dpo_jax.wiring.model import Model
from dpo_jax.wiring.parts import Parts
from dpo_jax.wiring.reading import EVAL_SEED, DataRequest
from dpo_jax.wiring.sampled_results import Sampled, rollout_metrics

ROLLOUT_SEED = 99  # one key for all policies: common random numbers
ROLLOUT_ROWS = 128  # of a shard that are sampled together, at most


class Rollouts:
    """Samples continuations of a state, and keeps the last for the report."""

    def __init__(self, sample: Callable[[TrainState], Sampled]):
        self._sample = sample
        self.last: Sampled | None = None

    def __call__(self, state: TrainState) -> Iterator[tuple[str, float]]:
        """Yields means and standard errors of what was sampled."""
        self.last = self._sample(state)
        yield from rollout_metrics(self.last).items()


class Stage(NamedTuple):
    """Prompts of data.eval, and what it takes to continue them.

    Attributes:
      questions: the prompts, and what their rows say.
      prompts: i32[P] ids of each.
      new_tokens: of a sample, at most.
      tokenizer: of the policy.
      mesh: of the run.
      measure: what rewards are called.
      score: ids of n samples of each prompt -> scores [N, n] by the reward model; None
        without one.
      frozen: what does not change.
      temperature: that policy and reference are sampled and measured at.
    """

    questions: Questions
    prompts: list[np.ndarray]
    new_tokens: int
    tokenizer: Any
    mesh: Mesh
    measure: str
    score: Callable[[list[list[list[int]]]], np.ndarray | None]
    frozen: Frozen
    temperature: float

    def sampler(self, model: Model) -> Sampler:
        """Makes what continues prompts with a model."""
        return batches.make_sampler(
            generation.make_decoding(model.decoder),
            pick=pick.sampler(temperature=self.temperature),
            stops=self.stops(model),
            max_new_tokens=self.new_tokens,
            mesh=self.mesh,
        )

    def stops(self, model: Model) -> list[int]:
        """Lists the ids that end a sample of a model."""
        return generation.stop_ids(self.tokenizer, model.folder, ())

    def draw(
        self, sampler: Sampler, params: Params, n: int, tell: Callable[..., Any]
    ) -> Any:
        """Continues each prompt n times, always with the same noise.

        Args:
          sampler: of `sampler`.
          params: of its model.
          n: samples of each prompt.
          tell: (prompts, samples) on the mesh -> tree of arrays [N, n, …].

        Returns:
          The tree, on every host, over all prompts.
        """
        key = jax.random.key(ROLLOUT_SEED)
        rows = ROLLOUT_ROWS * mesh_lib.row_shards(self.mesh)
        drawn = (
            (part, sampler.read(tell(at, samples)))
            for part, at, samples in batches.rollouts(
                params, self.prompts, key, sampler=sampler, n=n, batch=rows
            )
        )
        return batches.gather(drawn, len(self.prompts), n)

    def decode(self, ids: Sequence[int]) -> str:
        """Turns ids into text, special tokens left out."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def make_stage(parts: Parts, frozen: Frozen) -> Stage:
    """Reads the prompts that a run samples; all its samples have one length.

    An on-policy run is measured at the temperature that it trains at, as TRL's is: its
    rewards, its KL and its frontier are those of the policy that draws the samples.

    Args:
      parts: of the run.
      frozen: what does not change, the reward model's parameters among it.
    """
    config, tokenizer = parts.config, parts.data.tokenizer
    request = reading.request_of(config, reads_ratings=False)
    asked, true = rollout_questions(request, config.eval.rollouts, tokenizer)
    prompts = rollout_prompts(config.data, tokenizer, asked, any_length=true)
    new_tokens = config.data.max_tokens - config.data.max_prompt_tokens
    if config.objective in ON_POLICY:
        new_tokens = config.rollout.max_new_tokens
    true = true or bool(config.eval.true_reward)
    said = scoring.of_frozen(parts.scorer, width=new_tokens)
    return Stage(
        asked,
        prompts,
        new_tokens,
        tokenizer,
        parts.mesh,
        Sampled._field_defaults["measure"] if true else "reward",
        functools.partial(said, frozen, prompts),
        frozen,
        config.rollout.temperature,
    )


def make_rollouts(
    parts: Parts, stage: Stage, start: Params
) -> Callable[[TrainState], Sampled]:
    """Builds `state -> Sampled` on prompts of data.eval.

    The KL is that to the reference of the state where it moves; to that of the start
    where the run is compared with its frontier.

    Args:
      parts: of the run.
      stage: of the run.
      start: parameters of the reference before the first step.
    """
    config, policy, reference = parts.config, parts.model, parts.reference
    assert reference is not None  # `checks.rollout_faults`
    judge = make_judge(parts, parts.rewards, stage, name="rollouts")
    chunk, n = config.model.logits_chunk, config.eval.best_of

    def kl(params: Params, ref: Params, rows: Prompts, samples: Samples) -> Array:
        return rollouts.sequence_kl(
            params,
            ref,
            rows_of(rows, samples),
            apply=policy.apply,
            ref_apply=reference.apply,
            chunk=chunk,
            temperature=stage.temperature,
        )

    def play(sampler: Sampler, params: Params, kl: Callable[..., Array]) -> Rollout:
        tell = lambda rows, samples: (samples, kl(rows, samples))  # noqa: E731
        drawn = stage.draw(sampler, params, n, tell)
        return rollouts.judged(*drawn, decode=stage.decode, judge=judge)

    def none(rows: Prompts, samples: Samples) -> Array:
        return np.zeros(samples.ended.shape, np.float32)  # the reference to itself

    ours, theirs = policy.decoder, reference.decoder
    sampler = stage.sampler(policy)  # one where both compute the same
    of_ref = sampler if theirs == ours else stage.sampler(reference)
    before = play(of_ref, start, none)
    widest = jnp.promote_types(ours.dtype, theirs.dtype).name
    compiled = jax.jit(in_products_of(widest, kl))
    moves = parts.ref["sync_every_steps"] and not config.eval.frontier
    held = None if moves else start

    def sample(state: TrainState) -> Sampled:
        ref = roles.reference(state, stage.frozen) if held is None else held
        params = roles.policy(state.params, stage.frozen)
        after = play(sampler, params, functools.partial(compiled, params, ref))
        return Sampled(stage.questions.prompts, after, before, stage.measure)

    return sample


def rollout_questions(
    request: DataRequest, count: int, tokenizer: Any
) -> tuple[Questions, bool]:
    """Returns the prompts that are sampled, and whether they have a true reward."""
    truth = sources.truth_of(request.data["eval"])
    if truth is not None:
        prompts = truth.prompts(EVAL_SEED, count, split="eval")
        return Questions([*prompts], {}, [()] * len(prompts)), True
    found = reading.sources_of(request, "eval", tokenizer)
    held_out = [each.source for each in found.values()]
    return prepare.questions(held_out).first(count), False


def rollout_prompts(
    given: Mapping[str, Any], tokenizer: Any, asked: Questions, *, any_length: bool
) -> list[np.ndarray]:
    """Encodes the prompts that are sampled.

    Args:
      given: `config.data`.
      tokenizer: of the policy.
      asked: the prompts.
      any_length: whether they may exceed data.max_prompt_tokens.

    Raises:
      DataError: if one does and may not: a reward would read what the policy does not.
    """
    template = tokenize.read_chat_template(given["chat_template"], tokenizer)
    join, now = given["join"], given["now"]
    prompts = generation.encode(tokenizer, asked, join=join, template=template, now=now)
    most = given["max_prompt_tokens"]
    long = [i for i, prompt in enumerate(prompts) if len(prompt) > most]
    if long and not any_length:
        raise DataError(
            f"{len(long)} of {len(prompts)} prompts of eval.rollouts have more than "
            f"data.max_prompt_tokens={most} tokens, first number {long[0]} with "
            f"{len(prompts[long[0]])}; raise it, or give shorter prompts"
        )
    return prompts


def make_judge(
    parts: Parts, rewards: Sequence[Reward], stage: Stage, *, name: str
) -> rollouts.Judge:
    """Builds what judges n samples of each prompt: the truth, and rewards.

    The truth is that of the source, else eval.true_reward, else the rewards together.

    Args:
      parts: of the run.
      rewards: that are asked; () where the source says the truth.
      stage: of the run.
      name: of who asks, as `rewarding.make_asker` has it.
    """
    config = parts.config
    truth, chosen = sources.truth_of(config.data.eval), config.eval.true_reward
    asked, by_model = stage.questions, any(r.name == rewarding.MODEL for r in rewards)
    seconds = config.reward.timeout_seconds
    asker = rewarding.make_asker(rewards, name=name, seconds=seconds)

    def judge(texts: list[list[str]], ids: list[list[list[int]]]) -> rollouts.Judged:
        shape = (len(texts), len(texts[0]))
        scores, by_name = np.empty(shape), {}
        if rewards:
            places = range(len(texts))
            said = stage.score(ids) if by_model else None
            verdicts = rewarding.of_samples(asker, asked, places, texts, ids, said)
            scores = verdicts.total.reshape(shape)
            named = verdicts.by_name.items()
            by_name = {name: values.reshape(shape) for name, values in named}
        if truth is None:
            return rollouts.Judged(by_name.get(chosen, scores), scores, by_name)
        prompts = [prompt for prompt in asked.prompts for _ in range(shape[1])]
        answers = [text for row in texts for text in row]
        known = of_words(truth.reward)(prompts=prompts, completions=answers)
        true = np.reshape(known, shape)
        return rollouts.Judged(true, scores if rewards else true, by_name)

    return judge
