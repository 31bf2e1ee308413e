"""Samples of policies beside other answers, and the tables of who wins by which judge.

Samples are files that `sample --out` wrote; what they are compared with is the chosen
response of data.eval, answers of another file, or one of the policies.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from dpo_jax.data import columns, sources
from dpo_jax.data.columns import Text
from dpo_jax.data.sources.files import BadRow, Fields
from dpo_jax.errors import DataError, unknown
from dpo_jax.evals import best_of, judges, winrate
from dpo_jax.evals.judges import Answer, Comparison, Judge, Judgement
from dpo_jax.evals.winrate import Compared, Rate
from dpo_jax.wiring import reading
from dpo_jax.wiring.reading import DataRequest
from dpo_jax.wiring.text_scores import Scores

CHOSEN = "chosen"
SHOWN = 3  # faults that a message names


class Arm(NamedTuple):
    """What one policy said at one temperature.

    Attributes:
      policy: its name.
      temperature: that it was sampled at; None = the file does not say.
      answers: several to a prompt, maybe.
    """

    policy: str
    temperature: float | None
    answers: list[Answer]

    @property
    def name(self) -> str:
        """As tables and flags have it."""
        if self.temperature is None:
            return self.policy
        return f"{self.policy}:{self.temperature:g}"


class Pairing(NamedTuple):
    """The comparisons of an arm.

    Attributes:
      arm: whose answers are A.
      comparisons: one of each of its answers.
      prompts: i64 of each, which prompt it is.
    """

    arm: Arm
    comparisons: list[Comparison]
    prompts: np.ndarray


def rows_of(file: str, flag: str) -> list[tuple[str, Fields]]:
    """Reads the rows of a file of data, each with its place.

    Raises:
      DataError: if it cannot be read, or a row is no row.
    """
    (part,) = sources.parts_of(file, flag)
    origin = sources.find(part, "eval")
    found, faults = [], []
    for where, fields in sources.read(origin, sources.Request("eval")):
        if isinstance(fields, BadRow):
            faults.append(f"{where}: {fields.detail}")
        else:
            found.append((where, fields))
    _refuse(flag, file, faults or [] if found else faults or ["the file has no rows"])
    return found


def _refuse(flag: str, file: str, faults: Sequence[str]) -> None:
    """Raises DataError if there are faults."""
    if faults:
        more = f" and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        shown = " · ".join(faults[:SHOWN]) + more
        raise DataError(f"{flag}={file}: {shown}")


def arms_of(files: Sequence[str], flag: str = "--samples") -> list[Arm]:
    """Reads samples: one arm for each policy and temperature.

    Raises:
      DataError: if a row has no prompt or text, or two files have the same arm.
    """
    arms: dict[tuple[str, float | None], tuple[str, Arm]] = {}
    for file in files:
        faults = []
        for where, fields in rows_of(file, flag):
            try:
                answer = _answer(fields, "text")
                policy = str(fields.get("policy", file))
                key = policy, _temperature(fields)
            except BadRow as bad:
                faults.append(f"{where}: {bad.detail}")
                continue
            owner, arm = arms.setdefault(key, (file, Arm(*key, [])))
            if owner != file:
                faults.append(f"{where}: {arm.name!r} stands in {owner} as well")
                break
            arm.answers.append(answer)
        _refuse(flag, file, faults)
    return [arm for _, arm in arms.values()]


def _temperature(fields: Fields) -> float | None:
    value = fields.get("temperature")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRow("wrong type", f"temperature={value!r} is no number")
    return float(value)


def _answer(fields: Fields, *names: str) -> Answer:
    """Takes a prompt and the answer to it, of the first column that is there."""
    prompt = columns.text("prompt", columns.value_of(fields, "prompt"))
    name = next((name for name in names if name in fields), names[0])
    said = columns.text(name, columns.value_of(fields, name))
    text = said if isinstance(said, str) else said[-1]["content"]
    return Answer(prompt, text, bool(fields.get("ended", True)))


def baseline_of(named: str, arms: Sequence[Arm], request: DataRequest) -> list[Answer]:
    """Finds what the arms are compared with.

    Args:
      named: `chosen`, the name of an arm, or a file of rows with `prompt` and one of
        `text`, `chosen` and `completion`.
      arms: of the samples.
      request: whose data.eval holds the chosen responses.

    Raises:
      DataError: if there is no such thing.
    """
    if named == CHOSEN:
        if not request.data["eval"]:
            raise DataError("--against=chosen: data.eval='' holds none; set it")
        found = reading.sources_of(request, "eval", None)
        rows = [row for each in found.values() for row, _ in each.source.asked()[0]]
        faults = [row.where for row in rows if not row.responses][:1]
        _refuse("--against", CHOSEN, [f"{where} has no response" for where in faults])
        return [
            Answer(row.prompt, _last(row.responses[0]), not row.ended or row.ended[0])
            for row in rows
        ]
    for arm in arms:
        if named in (arm.name, arm.policy):
            same = [each.name for each in arms if each.policy == arm.policy]
            if named != arm.name and len(same) > 1:
                raise DataError(f"--against={named} may be {' or '.join(same)}")
            return arm.answers
    if "." not in named:
        known = [CHOSEN, *(arm.name for arm in arms)]
        raise DataError(f"{unknown('--against', named, known)}; or give a FILE.jsonl")
    found, faults = [], []
    for where, fields in rows_of(named, "--against"):
        try:
            found.append(_answer(fields, "text", "chosen", "completion"))
        except BadRow as bad:
            faults.append(f"{where}: {bad.detail}")
    _refuse("--against", named, faults)
    return found


def _last(response: Text) -> str:
    return response if isinstance(response, str) else response[-1]["content"]


def pair_up(arm: Arm, baseline: Sequence[Answer], limit: int) -> Pairing:
    """Lays each answer of an arm beside one to the same prompt.

    Where the baseline has several, they take turns.

    Args:
      arm: whose answers are A.
      baseline: answers that are B.
      limit: prompts that are compared, from the first; 0 = all.

    Raises:
      DataError: if the baseline lacks an answer to a prompt.
    """
    theirs: dict[str, list[Answer]] = {}
    for answer in baseline:
        theirs.setdefault(judges.as_text(answer.prompt), []).append(answer)
    numbers: dict[str, int] = {}
    places, comparisons, taken = [], [], {}
    for answer in arm.answers:
        key = judges.as_text(answer.prompt)
        if limit and key not in numbers and len(numbers) == limit:
            continue
        if key not in theirs:
            raise DataError(
                f"--against has no answer to the prompt {key[:80]!r} of {arm.name}; "
                "give answers to the same prompts"
            )
        turn = taken[key] = taken.get(key, -1) + 1
        other = theirs[key][turn % len(theirs[key])]
        places.append(numbers.setdefault(key, len(numbers)))
        comparisons.append(Comparison(answer, other))
    return Pairing(arm, comparisons, np.array(places))


class Judged(NamedTuple):
    """What a judge says of an arm.

    Attributes:
      pairing: its comparisons.
      judge: name of the judge.
      compared: its verdicts.
    """

    pairing: Pairing
    judge: str
    compared: Compared


def judged_by(
    judge: Judge, pairings: Sequence[Pairing], max_absent: float
) -> tuple[list[Judged], Judgement]:
    """Asks a judge about all arms together.

    Args:
      judge: that is asked.
      pairings: of the arms.
      max_absent: share of comparisons that may lack a verdict.

    Raises:
      DataError: if more do.
    """
    every = [one for pairing in pairings for one in pairing.comparisons]
    said = judge.ask(every)
    lengths = np.array([(len(one.a.text), len(one.b.text)) for one in every], float)
    found, at = [], 0
    for pairing in pairings:
        part = slice(at, at := at + len(pairing.comparisons))
        compared = Compared(pairing.prompts, said.votes[part], lengths[part])
        found.append(Judged(pairing, judge.name, compared))
    absent = sum(int(np.isnan(each.compared.outcomes).sum()) for each in found)
    if absent > max_absent * len(every):
        reasons = ", ".join(f"{n} {why}" for why, n in said.absent.items())
        raise DataError(
            f"judge {judge.name!r} has no verdict on {absent} of {len(every)} "
            f"comparisons ({reasons}), more than --max_absent={max_absent:g} of them"
        )
    if absent:
        logging.warning("%s: %d comparisons have no verdict", judge.name, absent)
    return found, said


def rows_of_arm(
    judged: Judged, baseline: str, scores: Scores | None, by: str
) -> list[dict[str, Any]]:
    """Makes the rows of an arm and a judge: the arm itself, and the best of m of it.

    Args:
      judged: what the judge says.
      baseline: what the arm is compared with.
      scores: by which the best of several is chosen; None = by nothing.
      by: what they are called.
    """
    compared, arm = judged.compared, judged.pairing.arm
    found = winrate.win_rate(compared)
    control = winrate.length_controlled(compared)
    if found is None or control is None:
        return []
    own = {"policy": arm.policy, "temperature": arm.temperature, "against": baseline}
    first = {
        **own,
        "best_of": 1,
        "chosen_by": "",
        "judge": judged.judge,
        **_numbers(found.rate),
        "judged": found.judged,
        "wins": found.wins,
        "losses": found.losses,
        "ties": found.ties,
        "splits": found.splits,
        "absent": found.absent,
        "prefers_first": found.first,
        "length_controlled": control.rate,
        "length_controlled_se": _number(control.se),
        "length": found.lengths[0],
        "length_against": found.lengths[1],
    }
    if scores is None:
        return [first]
    of_answers = scores([one.a for one in judged.pairing.comparisons])
    every_has = int(np.bincount(judged.pairing.prompts).min())
    rows = [first]
    for m in best_of.sizes(every_has):
        rate = winrate.best_of_rate(compared, of_answers, m)
        if rate is not None:
            row = {**own, "best_of": m, "chosen_by": by, "judge": judged.judge}
            rows.append({**row, **_numbers(rate)})
    return rows


def _numbers(rate: Rate) -> dict[str, Any]:
    return {
        "win_rate": rate.value,
        "se": _number(rate.se),
        "low": _number(rate.low),
        "high": _number(rate.high),
        "prompts": rate.prompts,
        "smallest_difference": rate.smallest,
    }


def _number(value: float) -> float | None:
    """Gives a number to JSON, which has no NaN."""
    return None if math.isnan(value) else value


def agreements(by_judge: Sequence[Sequence[Judged]]) -> list[dict[str, Any]]:
    """Compares every two judges over all arms."""
    rows = []
    outcomes = {
        of[0].judge: np.concatenate([each.compared.outcomes for each in of])
        for of in by_judge
    }
    names = list(outcomes)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            found = winrate.agreement(outcomes[one], outcomes[other])
            if found is not None:
                numbers = {**found._asdict(), "kappa": _number(found.kappa)}
                rows.append({"judge": one, "other": other, **numbers})
    return rows


def lengths_of(judged: Judged) -> list[dict[str, Any]]:
    """Shows how the win rate of an arm hangs on the difference in length."""
    arm = judged.pairing.arm.name
    return [
        {
            "policy": arm,
            "judge": judged.judge,
            "shortest": each.least,
            "longest": each.most,
            "judged": each.count,
            **_numbers(each.rate),
        }
        for each in winrate.by_length(judged.compared)
    ]
