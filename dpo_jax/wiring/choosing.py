"""Which continuation of several is the best: by the rewards of a configuration."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from jax.sharding import Mesh

from dpo_jax.data import tokenize
from dpo_jax.data.prepare import Questions
from dpo_jax.schema import Section
from dpo_jax.wiring import rewarding, scoring, weights
from dpo_jax.wiring.generation import Answers, Policy, SampleRequest
from dpo_jax.wiring.rewarding import Asker

# (ids of prompts, ids of n continuations of each) -> scores [N, n] by a reward model
Scores = Callable[[list[list[int]], list[list[list[int]]]], np.ndarray | None]


def best(
    answers: Answers, columns: Mapping[str, list[Any]], asker: Asker, score: Scores
) -> Answers:
    """Keeps the continuation of the highest reward of each prompt, the first of equals.

    Args:
      answers: n continuations of each prompt.
      columns: of the data, a value a prompt.
      asker: of `rewarding.make_asker`.
      score: of the reward model; says None without one.

    Returns:
      The same with one continuation of each prompt; none where none has a verdict.

    Raises:
      DataError: if a reward gives no verdicts.
    """
    kept = {}
    for name, of_policy in answers.completions.items():
        rows = [(i, one) for i, of in enumerate(of_policy) for one in of]
        ids = [[one.tokens for one in of] for of in of_policy]
        scores = rewarding.scores_column(score(answers.prompt_ids[name], ids))
        verdicts = asker(
            prompts=[answers.prompts[i] for i, _ in rows],
            completions=[one.text for _, one in rows],
            completion_ids=[one.tokens for _, one in rows],
            ids=[(i, one.sample) for i, one in rows],
            columns={n: [values[i] for i, _ in rows] for n, values in columns.items()}
            | scores,
        )
        judged = [[] for _ in of_policy]
        for (i, one), reward in zip(rows, verdicts.total.tolist(), strict=True):
            if not math.isnan(reward):
                judged[i].append(one._replace(reward=reward))
        kept[name] = [
            [max(of, key=lambda one: one.reward)] if of else [] for of in judged
        ]
        if absent := sum(not of for of in judged):
            logging.warning("%s: %d prompts have no verdict, and no best", name, absent)
    return answers._replace(completions=kept)


def of_policies(
    policies: Sequence[Policy],
    asked: Questions,
    request: SampleRequest,
    mesh: Mesh,
    *,
    given: Section,
    model: Section,
    length: int,
) -> Scores:
    """Builds and loads the reward model that continuations of policies are chosen by.

    Args:
      policies: whose words it has to know.
      asked: what they continue.
      request: how.
      mesh: that all run on; `jax.set_mesh` stands around this and what it returns.
      given: `config.reward`.
      model: `config.model`, which says how it computes.
      length: `data.max_tokens`.

    Raises:
      UserError: as `scoring.make_scorer`.
    """
    if not given["path"]:
        return lambda prompts, ids: None
    words = [policy.tokenizer() for policy in policies]
    longest = max(
        max(map(len, policy.encoded(asked, tokenizer)))
        for policy, tokenizer in zip(policies, words, strict=True)
    )
    _, like = scoring.lone_decoder(given["path"], model, length)
    width = request.max_new_tokens
    scorer = scoring.make_scorer(
        like,
        given,
        mesh,
        batch=request.batch,
        vocab=max(map(tokenize.max_token_id, words)) + 1,
        longest=longest + width,
        tokenizers=words,
        ignored=model["ignore_attributes"],
    )
    assert scorer is not None
    params = weights.load_params(scorer.model, mesh, seed=0)

    def score(prompts: list[list[int]], ids: list[list[list[int]]]) -> np.ndarray:
        read = [np.asarray(each, np.int32) for each in prompts]
        return scorer(params, read, ids, width=width)

    return score
