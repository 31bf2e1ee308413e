"""A judge behind an OpenAI-compatible server: asked in both orders, never twice.

Every verdict is kept on disk under the digest of all that it depends on: the judge, its
revision and settings, and the whole text that it was asked. What is no verdict (a
time-out, a reply cut short, one that names no answer) is not kept, so a relaunch asks
for it again, and for nothing else. The server's address and its key are part of neither
the digest nor what is written.
"""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from dpo_jax import files
from dpo_jax.errors import ConfigError, DataError
from dpo_jax.evals import judges
from dpo_jax.evals.judges import WORTH, Comparison, Judge, Judgement, Template

SECRET = "***"  # what the key is written as wherever it turns up
REFUSED = (401, 403, 404)  # by the server, whatever it is asked


class Reply(NamedTuple):
    """What a server answers.

    Attributes:
      text: of the reply.
      whole: whether the judge ended it by itself.
      served: the model that answered, as the server names it.
    """

    text: str
    whole: bool
    served: str


class Unanswered(Exception):
    """A question to which no reply came; says why, in a few words."""


Complete = Callable[[str], Reply]  # a text -> what the model says to it


class Served(NamedTuple):
    """Who is asked, and how.

    Attributes:
      model: as the server knows it.
      revision: of its weights, as whoever runs the server states it; '' = not stated.
      template: of the question.
      max_tokens: of a reply.
    """

    model: str
    revision: str
    template: Template
    max_tokens: int

    @property
    def settings(self) -> dict[str, Any]:
        """What a verdict depends on beside the text; it is published with it."""
        return {
            "judge": self.model,
            "revision": self.revision,
            "temperature": 0.0,
            "max_tokens": self.max_tokens,
            "template": self.template.name,
            "template_digest": self.template.digest,
        }


def judge(
    served: Served,
    complete: Complete,
    *,
    folder: epath.PathLike,
    concurrency: int,
    max_absent: float,
) -> Judge:
    """Builds a judge that asks a server for what is not in a folder.

    Args:
      served: who is asked.
      complete: asks the server; raises `Unanswered` where no reply came.
      folder: of the verdicts.
      concurrency: questions at a time, at most.
      max_absent: share of verdicts that may be missing before it gives up.
    """

    def ask(comparisons: Sequence[Comparison]) -> Judgement:
        questions = [
            Question.of(served, a.prompt, *shown)
            for a, b in comparisons
            for shown in ((a.text, b.text), (b.text, a.text))
        ]
        answers = _Asking(served, complete, epath.Path(folder)).all_of(
            questions, concurrency, most=max_absent * len(questions)
        )
        places = [answers[each.key] for each in questions]
        worth = [WORTH.get(each.get("verdict", ""), np.nan) for each in places]
        votes = np.reshape(worth, (-1, 2))
        votes[:, 1] = 1 - votes[:, 1]  # B's answer was shown first
        absent = Counter(each["absent"] for each in places if "absent" in each)
        published = [
            {**served.settings, **question.shown, **answer}
            for question, answer in zip(questions, places, strict=True)
        ]
        return Judgement(votes, absent, published)

    name = f"{served.model}@{served.revision}" if served.revision else served.model
    return Judge(name, ask)


class Question(NamedTuple):
    """One order of a comparison.

    Attributes:
      key: digest of all that its verdict depends on.
      text: as it is asked.
      shown: prompt and answers, for whoever reads the verdict.
    """

    key: str
    text: str
    shown: dict[str, Any]

    @classmethod
    def of(cls, served: Served, prompt: Any, first: str, second: str) -> "Question":
        """Makes the question of a prompt and two answers in the order shown."""
        text = judges.fill(served.template, prompt, first, second)
        whole = json.dumps({**served.settings, "text": text}, sort_keys=True)
        key = hashlib.sha256(whole.encode()).hexdigest()
        return cls(key, text, {"prompt": prompt, "first": first, "second": second})


class _Asking:
    """Questions on their way; stops when too many remain without a verdict."""

    def __init__(self, served: Served, complete: Complete, folder: epath.Path):
        self._served, self._complete, self._folder = served, complete, folder
        self._lock, self._absent = threading.Lock(), Counter()
        self._stop: BaseException | None = None

    def all_of(
        self, questions: Sequence[Question], concurrency: int, *, most: float
    ) -> dict[str, dict[str, Any]]:
        """Answers each question: from the folder, or by the server.

        Raises:
          DataError: if more than `most` of them have no verdict.
          ConfigError: if the server refuses all of them.
          WriteError: if a verdict cannot be kept.
        """
        unique = list({each.key: each for each in questions}.values())
        with ThreadPoolExecutor(concurrency) as pool:
            try:
                answers = list(pool.map(lambda q: self._guarded(q, most), unique))
            except BaseException:
                self._stop = self._stop or KeyboardInterrupt()
                raise
        if self._stop is not None:
            raise self._stop from None
        return {q.key: answer for q, answer in zip(unique, answers, strict=True)}

    def _guarded(self, question: Question, most: float) -> dict[str, Any]:
        """Answers a question, unless asking has stopped."""
        if self._stop is not None:
            return {"absent": "not asked"}
        try:
            answer = self._answer(question)
        except Exception as error:
            self._stop = self._stop or error
            return {"absent": "not asked"}
        if why := answer.get("absent"):
            with self._lock:
                self._absent[why] += 1
                if self._absent.total() > most:
                    self._stop = self._stop or self._too_many(most)
        return answer

    def _too_many(self, most: float) -> DataError:
        reasons = ", ".join(f"{n} {why}" for why, n in self._absent.most_common())
        return DataError(
            f"judge {self._served.model!r} gave no verdict to {self._absent.total()} "
            f"questions ({reasons}), more than the {most:g} that --max_absent allows; "
            "verdicts so far are kept, relaunch to ask for the others"
        )

    def _answer(self, question: Question) -> dict[str, Any]:
        """Finds the verdict of a question, or says why there is none."""
        path = self._folder / question.key[:2] / f"{question.key}.json"
        template = self._served.template
        if (kept := _kept(path)) is not None:
            place = judges.verdict_of(kept["reply"], template)
            if place is not None:
                return {**kept, "verdict": place}
        try:
            reply = self._complete(question.text)
        except Unanswered as event:
            return {"absent": str(event)}
        said = {"reply": reply.text, "served": reply.served}
        if not reply.whole:
            return {**said, "absent": "cut short"}
        place = judges.verdict_of(reply.text, template)
        if place is None:
            return {**said, "absent": "without a verdict"}
        row = {**self._served.settings, **said}
        files.write_whole(path, json.dumps(row, ensure_ascii=False) + "\n")
        return {**said, "verdict": place}


def _kept(path: epath.Path) -> dict[str, Any] | None:
    """Reads what was kept of a verdict; None = nothing, or nothing whole."""
    try:
        found = files.read_json(path)
        return {name: str(found[name]) for name in ("reply", "served")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def openai_complete(
    model: str,
    base_url: str,
    key: str,
    *,
    max_tokens: int,
    seconds: float,
    retries: int,
) -> Complete:
    """Builds what asks a server by the `openai` library, which retries with back-off.

    Args:
      model: that is asked.
      base_url: of the server, with its `/v1`.
      key: of the server; '' = it wants none.
      max_tokens: of a reply.
      seconds: until a request is given up.
      retries: of a request that is refused for now (429), fails (5xx) or is too late.

    Raises:
      ConfigError: if the library is not installed.
    """
    try:
        import openai  # pyright: ignore[reportMissingImports] of an extra
    except ImportError as error:
        raise ConfigError(
            "a judge behind a server needs the library openai; pip install "
            "'dpo_jax[judge]'"
        ) from error
    client = openai.OpenAI(
        base_url=base_url, api_key=key or "none", timeout=seconds, max_retries=retries
    )

    def hidden(text: object) -> str:
        return str(text).replace(key, SECRET) if key else str(text)

    def complete(text: str) -> Reply:
        try:
            got = client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": text}],
                temperature=0.0,
                max_tokens=max_tokens,
            )
            choice = got.choices[0]
            said = choice.message.content or ""
        except openai.APIStatusError as error:
            if error.status_code in REFUSED:
                raise ConfigError(
                    f"the server of judge {model!r} refuses ({error.status_code}): "
                    f"{hidden(error)}; see its key, address and model"
                ) from None
            raise Unanswered(f"refused ({error.status_code})") from None
        except openai.APITimeoutError:
            raise Unanswered("too late") from None
        except openai.APIConnectionError:
            raise Unanswered("not reached") from None
        except (openai.OpenAIError, ValueError, IndexError, TypeError, AttributeError):
            raise Unanswered("not understood") from None
        whole = choice.finish_reason == "stop"
        return Reply(hidden(said), whole, hidden(got.model))

    return complete
