"""Benchmarks that need no judge, and the files that others' tools judge.

IFEval and RewardBench 2 are scored here; AlpacaEval and Arena-Hard get samples as their
own tools read them.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dpo_jax.data.sources.files import Fields
from dpo_jax.errors import DataError
from dpo_jax.evals import ifeval as checks
from dpo_jax.evals import rewardbench, winrate
from dpo_jax.evals.judges import Answer, as_text
from dpo_jax.evals.winrate import Rate
from dpo_jax.wiring.judging import Arm
from dpo_jax.wiring.text_scores import Scores

Rows = Sequence[tuple[str, Fields]]  # (where, columns)


def ifeval(arm: Arm, data: Rows, end_of_thoughts: str) -> dict[str, Any]:
    """Scores an arm on IFEval.

    Several responses to a prompt are averaged; errors are those of prompts.

    Args:
      arm: responses to prompts of the data, all of which it must answer.
      data: rows with `prompt`, `instruction_id_list` and `kwargs`.
      end_of_thoughts: see `checks.answer_of`.

    Returns:
      Rates by prompt and by instruction, strict and loose, and of each instruction.

    Raises:
      DataError: if a prompt is not answered, or an instruction cannot be checked.
    """
    said = _by_prompt(arm)
    places, ids, found = [], [], []
    for place, (where, fields) in enumerate(data):
        names = _column(fields, "instruction_id_list", where, list)
        given = _column(fields, "kwargs", where, list)
        for answer in _answers(said, _column(fields, "prompt", where, str), where):
            text = checks.answer_of(answer.text, end_of_thoughts)
            found.append(checks.followed(text, names, given, where))
            places.append(place)
            ids.append(names)
    row: dict[str, Any] = {"policy": arm.policy, "temperature": arm.temperature}
    for kind in ("strict", "loose"):
        each = [of._asdict()[kind] for of in found]
        whole = np.array([all(of) for of in each], float)
        parts = np.array([one for of in each for one in of], float)
        owner = np.repeat(places, [len(of) for of in each])
        named = np.array([name for of in ids for name in of])
        row |= _rate(
            f"prompt_{kind}", winrate.mean_over_prompts(np.array(places), whole)
        )
        row |= _rate(f"instruction_{kind}", winrate.mean_over_prompts(owner, parts))
        for name in sorted(set(named)):
            of_name = parts[named == name]
            row[f"{name}/{kind}"] = float(of_name.mean())
    return row | {"prompts": len(data), "responses": len(found)}


def _rate(name: str, rate: Rate) -> dict[str, float | None]:
    return {name: rate.value, f"{name}_se": None if np.isnan(rate.se) else rate.se}


def rewardbench2(data: Rows, scores: Scores, *, as_chats: bool) -> dict[str, Any]:
    """Scores a reward model on RewardBench 2.

    Args:
      data: rows with `id`, `subset`, `prompt`, `chosen` and `rejected`, both lists.
      scores: of the reward model.
      as_chats: whether prompts are the user's turns of chats, as for models whose
        tokenizer has a chat template; else they are plain text.

    Returns:
      Subset -> value, standard error and prompts; and their mean, each of one weight.

    Raises:
      DataError: if a row lacks something, or an answer has no score.
    """
    asked, sizes = [], []
    for where, fields in data:
        prompt: Any = _column(fields, "prompt", where, str)
        if as_chats:
            prompt = [{"role": "user", "content": prompt}]
        lists = [_column(fields, name, where, list) for name in ("chosen", "rejected")]
        if not all(lists):
            raise DataError(f"{where}: chosen and rejected must not be empty")
        asked += [Answer(prompt, text) for texts in lists for text in texts]
        sizes.append([*map(len, lists)])
    values, scored, at = scores(asked), [], 0
    for (where, fields), (right, wrong) in zip(data, sizes, strict=True):
        own = values[at : (at := at + right + wrong)]
        if np.isnan(own).any():
            raise DataError(f"{where}: an answer has no score; it may be empty")
        name, subset = (str(fields.get(key, "")) for key in ("id", "subset"))
        scored.append(rewardbench.Scored(name, subset, own[:right], own[right:]))
    found = rewardbench.subset_scores(scored)
    of = {name: each._asdict() for name, each in found.items()}
    return {"subsets": of, "mean_of_subsets": rewardbench.overall(found)}


def alpaca_eval(arm: Arm) -> list[dict[str, str]]:
    """Lists what AlpacaEval reads as `--model_outputs`: the first answer to each."""
    firsts = {asked: answers[0] for asked, answers in _by_prompt(arm).items()}
    return [
        {"instruction": asked, "output": answer.text, "generator": arm.name}
        for asked, answer in firsts.items()
    ]


def arena_hard(arm: Arm, data: Rows) -> list[dict[str, Any]]:
    """Lists what Arena-Hard-Auto reads below `model_answer/`: the first answers.

    Args:
      arm: answers to all questions.
      data: its questions, rows with `uid` and `prompt`.

    Raises:
      DataError: if a question is not answered.
    """
    said, rows = _by_prompt(arm), []
    for where, fields in data:
        uid, prompt = (_column(fields, name, where, str) for name in ("uid", "prompt"))
        answer = _answers(said, prompt, where)[0]
        whole = "\0".join((arm.name, uid, answer.text))
        rows.append(
            {
                "uid": uid,
                "ans_id": hashlib.sha256(whole.encode()).hexdigest()[:22],
                "model": arm.name,
                "messages": [
                    {"role": "user", "content": prompt},
                    {"role": "assistant", "content": {"answer": answer.text}},
                ],
                "tstamp": time.time(),
            }
        )
    return rows


def _by_prompt(arm: Arm) -> dict[str, list[Answer]]:
    """Groups answers by what was asked: the text, or the last message of a chat."""
    found: dict[str, list[Answer]] = {}
    for answer in arm.answers:
        prompt = answer.prompt
        asked = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        found.setdefault(asked, []).append(answer)
    return found


def _answers(said: Mapping[str, list[Answer]], prompt: str, where: str) -> list[Answer]:
    if prompt not in said:
        raise DataError(
            f"{where}: --samples has no answer to {as_text(prompt)[:80]!r}; sample its "
            "prompts"
        )
    return said[prompt]


def _column(fields: Fields, name: str, where: str, kind: type) -> Any:
    value = fields.get(name)
    if not isinstance(value, kind):
        found = "missing" if name not in fields else type(value).__name__
        raise DataError(f"{where}: column {name!r} is {found}; {kind.__name__} is due")
    return value
