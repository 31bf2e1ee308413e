"""Scores of answers given as texts: by a reward model's own tokenizer, or by functions.

What was sampled is judged as text, so that one judge reads policies of any vocabulary,
and answers that people wrote.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dpo_jax.data import tokenize
from dpo_jax.data.encode import Encoded, encode_all
from dpo_jax.data.kinds import RawRow
from dpo_jax.errors import ConfigError, collected
from dpo_jax.evals.judges import Answer, Comparison, Judge, Judgement, by_scores
from dpo_jax.rewards import RewardTable
from dpo_jax.rewards.ask import Reward
from dpo_jax.schema import Config, Section
from dpo_jax.wiring import data as data_wiring
from dpo_jax.wiring import rewarding, scoring, weights

Scores = Callable[[Sequence[Answer]], np.ndarray]  # N answers -> f64[N]; NaN = none
TokenIds = Callable[[Sequence[Answer]], list[list[int]]]

ROWS = 32  # of a shard that are scored together


def judge_of(scores: Scores, name: str) -> Judge:
    """Makes a judge that prefers the higher score; each answer is scored once."""

    def ask(comparisons: Sequence[Comparison]) -> Judgement:
        votes = by_scores(
            scores([a for a, _ in comparisons]), scores([b for _, b in comparisons])
        )
        absent = int(np.isnan(votes[:, 0]).sum())
        return Judgement(votes, {"no score": 2 * absent} if absent else {})

    return Judge(name, ask)


def once(scores: Scores) -> Scores:
    """Makes scores remember what they said of an answer."""
    known: dict[tuple[str, str, bool], float] = {}

    def ask(answers: Sequence[Answer]) -> np.ndarray:
        keys = [(str(each.prompt), each.text, each.ended) for each in answers]
        new = {
            key: answer
            for key, answer in zip(keys, answers, strict=True)
            if key not in known
        }
        if new:
            said = scores([*new.values()]).tolist()
            known.update(zip(new, said, strict=True))
        return np.array([known[key] for key in keys])

    return ask


def of_reward(config: Config, name: str, table: RewardTable, mesh: Mesh) -> Scores:
    """Builds the scores of a reward by its name; `model` is that of reward.path.

    Args:
      config: names the reward model, and the tokenizer of a reward that takes
        `completion_ids`; others are given none.
      name: of the reward.
      table: of reward functions.
      mesh: that a reward model runs on.

    Raises:
      ConfigError: if the reward is not known, or there is no reward model.
      ModelError: if the reward model cannot be used.
    """
    own = {**config.reward, "name": name, "weights": ()}
    if name != rewarding.MODEL:
        own |= {"path": "", "dtype": ""}  # of the reward model, another judge
    with collected(ConfigError) as complaints:
        complaints += rewarding.faults(own, table)
    how = {"join": config.data.join, "now": config.data.now}
    if name == rewarding.MODEL:
        model, length = config.model, config.data.max_tokens
        return once(of_model(config.reward, model, length, mesh, how))
    seconds = config.reward.timeout_seconds
    reward = Reward(name, table[name])
    asker = rewarding.make_asker([reward], name=f"judge/{name}", seconds=seconds)
    counts = "completion_ids" in inspect.signature(table[name]).parameters
    tokens: TokenIds = lambda answers: [[] for _ in answers]  # noqa: E731
    if counts:
        tokenizer = data_wiring.load_tokenizer(
            config.tokenizer.path, config.model, config.data.train
        )
        template = tokenize.read_chat_template(config.data.chat_template, tokenizer)
        tokens = _token_ids(tokenizer, {**how, "chat_template": template})

    def scores(answers: Sequence[Answer]) -> np.ndarray:
        return asker(
            prompts=[each.prompt for each in answers],
            completions=[each.text for each in answers],
            completion_ids=tokens(answers),
            ids=[(i, 0) for i in range(len(answers))],
            columns={},
        ).total

    return once(scores)


def _token_ids(tokenizer: Any, how: dict[str, Any]) -> TokenIds:
    """Returns what encodes answers; `how` as of `data.encode.encode_all`."""

    def ids(answers: Sequence[Answer]) -> list[list[int]]:
        rows = [*map(_row, answers)]
        encoded = encode_all(rows, tokenizer, **how)
        return [
            each.responses[0] if isinstance(each, Encoded) else [] for each in encoded
        ]

    return ids


def of_model(
    given: Section, model: Section, length: int, mesh: Mesh, how: dict[str, str]
) -> Scores:
    """Builds the scores of the reward model of reward.path.

    It reads a prompt and an answer as its own tokenizer and chat template render them,
    uncut. An answer without a token has no score.

    Args:
      given: `config.reward`.
      model: `config.model`, which says how it computes.
      length: `data.max_tokens`.
      mesh: that it runs on.
      how: `join` and `now` of `data.encode.encode_all`.
    """
    folder, like = scoring.lone_decoder(given["path"], model, length)
    tokenizer = tokenize.load_tokenizer(str(folder))
    words = tokenize.max_token_id(tokenizer) + 1

    def scores(answers: Sequence[Answer]) -> np.ndarray:
        rows = [*map(_row, answers)]
        encoded = encode_all(rows, tokenizer, chat_template=None, **how)
        at = [i for i, each in enumerate(encoded) if isinstance(each, Encoded)]
        kept = [each for each in encoded if isinstance(each, Encoded)]
        values = np.full(len(answers), np.nan)
        if not kept:
            return values
        width = max(len(each.responses[0]) for each in kept)
        with jax.set_mesh(mesh):
            scorer = scoring.make_scorer(
                like,
                given,
                mesh,
                batch=ROWS,
                vocab=words,
                longest=width + max(len(each.prompt) for each in kept),
                tokenizers=(),
                ignored=model["ignore_attributes"],
            )
            assert scorer is not None
            params = weights.load_params(scorer.model, mesh, seed=0)
            prompts = [np.asarray(each.prompt, np.int32) for each in kept]
            said = scorer(params, prompts, [[*e.responses] for e in kept], width=width)
        values[at] = said[:, 0]
        return values

    return scores


def _row(answer: Answer) -> RawRow:
    """Makes the row of data that an answer would be."""
    said: Any = answer.text
    if not isinstance(answer.prompt, str):
        said = [{"role": "assistant", "content": answer.text}]
    return RawRow(answer.prompt, (said,), ended=(answer.ended,))
