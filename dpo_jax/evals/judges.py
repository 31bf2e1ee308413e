"""Judges: what compares two answers to a prompt, and how a judge is asked in words.

A judge says of each comparison what it makes of both orders. Judges that score answers
or look labels up see no order; one that reads is asked twice. Knows no server.
"""

import hashlib
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from dpo_jax.errors import ConfigError, DataError, unknown
from dpo_jax.files import read_small

Place = Literal["first", "second", "tie"]  # of two answers as shown

PROMPTS = Path(__file__).parent / "prompts"
SLOT = re.compile(r"\{(prompt|answer_a|answer_b)\}")
WORTH: dict[str, float] = {"first": 1.0, "second": 0.0, "tie": 0.5}


class Answer(NamedTuple):
    """An answer to a prompt.

    Attributes:
      prompt: a text, or a chat of messages with `role` and `content`.
      text: what was answered.
      ended: by itself, not by a limit of tokens.
    """

    prompt: Any
    text: str
    ended: bool = True


class Comparison(NamedTuple):
    """Two answers to one prompt.

    Attributes:
      a: of the system that is judged.
      b: of the system that it is compared with.
    """

    a: Answer
    b: Answer


class Judgement(NamedTuple):
    """What a judge says of M comparisons.

    Attributes:
      votes: f64[M, 2] as `winrate.Compared` has them.
      absent: reason -> how many of the 2M verdicts are missing for it.
      published: what is to be kept of each verdict, in order.
    """

    votes: np.ndarray
    absent: Mapping[str, int] = {}
    published: Sequence[Mapping[str, Any]] = ()


class Judge(NamedTuple):
    """What compares answers.

    Attributes:
      name: as tables show it.
      ask: M comparisons -> what is said of them.
    """

    name: str
    ask: Callable[[Sequence[Comparison]], Judgement]


def by_scores(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Prefers the higher score: f64[M] twice, NaN = none -> votes f64[M, 2]."""
    votes = np.where(np.isnan(a + b), np.nan, 0.5 + 0.5 * np.sign(a - b))
    return np.stack([votes, votes], 1)


def by_labels(rows: Sequence[Mapping[str, Any]], name: str) -> Judge:
    """Looks verdicts up: those of people, or of another judge.

    Several verdicts on a comparison, in whatever order it was shown, give what most of
    them say, a tie where as many say either.

    Args:
      rows: with `prompt`, the answers `first` and `second`, and the `verdict`.
      name: of the judge.

    Raises:
      DataError: naming the row, if it lacks one or its verdict is none of `Place`.
    """
    found: dict[tuple[str, str, str], list[float]] = {}
    for number, row in enumerate(rows, 1):
        if row.get("absent"):
            continue  # of a judge that gave no verdict
        lacks = [key for key in ("first", "second", "verdict") if key not in row]
        if lacks or "prompt" not in row or row["verdict"] not in WORTH:
            raise DataError(
                f"labels {name!r}, row {number}: `prompt`, `first`, `second` and a "
                "`verdict` of first, second or tie are due; there are "
                f"{sorted(row)} with verdict {str(row.get('verdict'))[:40]!r}"
            )
        prompt, worth = as_text(row["prompt"]), WORTH[row["verdict"]]
        shown = row["first"], row["second"]
        found.setdefault((prompt, *shown), []).append(worth)
        found.setdefault((prompt, *shown[::-1]), []).append(1 - worth)

    def ask(comparisons: Sequence[Comparison]) -> Judgement:
        keys = [(as_text(a.prompt), a.text, b.text) for a, b in comparisons]
        votes = [_majority(found[key]) if key in found else np.nan for key in keys]
        absent = int(np.isnan(votes).sum())
        reasons = {"no label": 2 * absent} if absent else {}
        return Judgement(np.stack([votes, votes], 1), reasons)

    return Judge(name, ask)


def _majority(votes: Sequence[float]) -> float:
    return 0.5 + 0.5 * float(np.sign(np.mean(votes) - 0.5))


class Template(NamedTuple):
    """How a judge that reads is asked.

    Attributes:
      name: of it.
      prompt: text with the slots {prompt}, {answer_a} and {answer_b}.
      verdict: what the line of the verdict begins with.
      tie: what stands there for a tie; '' = it has to choose.
      digest: of its bytes.
    """

    name: str
    prompt: str
    verdict: str
    tie: str
    digest: str


def read_template(named: str) -> Template:
    """Reads one that is shipped, by its name, or a TOML file.

    Raises:
      ConfigError: if there is none, or it lacks something.
    """
    shipped = {path.stem: path for path in PROMPTS.glob("*.toml")}
    if not named.endswith(".toml") and named not in shipped:
        raise ConfigError(f"{unknown('--prompt', named, shipped)}; or give a FILE.toml")
    path = shipped.get(named, Path(named))
    try:
        data = read_small(path)
        given = tomllib.loads(data.decode())
    except (OSError, ValueError) as error:
        raise ConfigError(f"--prompt={named} cannot be read: {error}") from error
    wrong = given.keys() - {"prompt", "verdict", "tie"}
    texts = all(isinstance(value, str) for value in given.values())
    asked, verdict = given.get("prompt", ""), given.get("verdict", "")
    if wrong or not texts or not asked or not verdict:
        raise ConfigError(
            f"--prompt={named} has the keys {sorted(given)}; texts `prompt` and "
            "`verdict` are due, and `tie` may be there"
        )
    if sorted(SLOT.findall(asked)) != ["answer_a", "answer_b", "prompt"]:
        raise ConfigError(
            f"--prompt={named}: its prompt must have each of {{prompt}}, {{answer_a}} "
            "and {answer_b} once"
        )
    digest = hashlib.sha256(data).hexdigest()[:16]
    return Template(path.stem, asked.strip(), verdict, given.get("tie", ""), digest)


def fill(template: Template, prompt: Any, first: str, second: str) -> str:
    """Fills the slots in one pass: what stands in an answer is no slot."""
    values = {"prompt": as_text(prompt), "answer_a": first, "answer_b": second}
    return SLOT.sub(lambda slot: values[slot[1]].strip(), template.prompt)


def as_text(prompt: Any) -> str:
    """Writes a chat as text, a message a paragraph; a text stays as it is."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{each['role']}: {each['content']}" for each in prompt)


def verdict_of(reply: str, template: Template) -> Place | None:
    """Reads the verdict off a whole reply.

    Every line that begins as the verdict's must name one answer and nothing else, in
    quotes or bold or not, and all must name the same; else there is none.
    """
    named: dict[str, Place] = {"A": "first", "B": "second"}
    if template.tie:
        named[template.tie] = "tie"
    found = set()
    for line in reply.splitlines():
        plain = line.strip(" \t*")
        if plain.startswith(template.verdict):
            rest = plain.removeprefix(template.verdict)
            found.add(named.get(rest.strip(" \t*\"'.")))
    (verdict,) = found if len(found) == 1 else (None,)
    return verdict
