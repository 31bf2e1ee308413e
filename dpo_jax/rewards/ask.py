"""Asks reward functions about samples, and refuses what is no verdict.

A function is code of a user: it may fail, hang, or say nonsense. Then the error names
the reward, the prompt and the rule, and nothing has been trained on. What is absent
stays absent: it is never a 0 among the others.
"""

import asyncio
import contextvars
import copy
import inspect
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dpo_jax.data.columns import Text
from dpo_jax.errors import DataError

# (prompts=…, completions=…, completion_ids=…, **columns) -> one value a sample
Function = Callable[..., Any]
Given = dict[str, list[Any]]

SHOWN = 80  # characters of a prompt that an error quotes
LARGEST = float(np.finfo(np.float32).max)


class Reward(NamedTuple):
    """A function that judges, and its part in the sum.

    Attributes:
      name: under which it is logged.
      function: see `dpo_jax.rewards`.
      weight: of its values; 0 = it is logged only.
    """

    name: str
    function: Function
    weight: float = 1.0


class Verdicts(NamedTuple):
    """What rewards say of N samples; NaN = no verdict.

    Attributes:
      total: f64[N] weighted sums. A reward that judges no sample of a prompt does not
        concern that prompt; one that judges some of them leaves the others without.
      by_name: f64[N] of each reward, unweighted.
    """

    total: np.ndarray
    by_name: dict[str, np.ndarray]

    @property
    def judged(self) -> np.ndarray:
        """bool[N], which samples have a verdict; the others weigh nothing."""
        return ~np.isnan(self.total)


class _TooLate(Exception):
    """A call has not come back in time."""


def ask(
    rewards: Sequence[Reward],
    prompts: Sequence[Text],
    completions: Sequence[str],
    *,
    completion_ids: Sequence[Sequence[int]],
    ids: Sequence[tuple[int, int]],
    columns: Mapping[str, Sequence[Any]],
    seconds: float,
) -> Verdicts:
    """Asks each reward once about all samples.

    Args:
      rewards: with names of their own.
      prompts: N ≥ 1 texts or chats, one a sample.
      completions: N texts; of a chat, those of its answers.
      completion_ids: N lists of token ids.
      ids: N pairs (prompt id, sample number), all different. Functions see the samples
        in their order, whatever the order here; verdicts are in the order here.
      columns: of the data, N values each.
      seconds: for all rewards together.

    Raises:
      DataError: naming the reward, the prompt and the rule.
    """
    assert 0 < len(set(ids)) == len(ids) == len(prompts) == len(completions)
    order = sorted(range(len(ids)), key=lambda i: ids[i])
    given = {
        **columns,
        "prompts": prompts,
        "completions": [*map(_as_given, prompts, completions)],
        "completion_ids": [list(sample) for sample in completion_ids],
    }
    given = {name: [values[i] for i in order] for name, values in given.items()}
    numbers, by_name = [ids[i][0] for i in order], {}
    until = time.monotonic() + seconds
    for reward in rewards:
        call = _Call(reward, given, numbers, until, seconds)
        by_name[reward.name] = np.empty(len(ids))
        by_name[reward.name][order] = _checked(call, _values(call))
    groups = np.array([prompt for prompt, _ in ids])
    return Verdicts(_total(rewards, by_name, groups), by_name)


def means(verdicts: Verdicts) -> dict[str, float]:
    """Returns means over what has a verdict, and how many have none, as metrics.

    A mean of nothing is left out.
    """
    columns = {
        "reward": verdicts.total,
        **{f"rewards/{name}/mean": each for name, each in verdicts.by_name.items()},
    }
    kept = {name: values[~np.isnan(values)] for name, values in columns.items()}
    found = {name: float(values.mean()) for name, values in kept.items() if len(values)}
    return found | {"absent_rewards": float((~verdicts.judged).sum())}


def _as_given(prompt: Text, completion: str) -> Text:
    """Gives the answer to a chat as the list of its one message."""
    if isinstance(prompt, str):
        return completion
    return [{"role": "assistant", "content": completion}]


class _Call(NamedTuple):
    """One reward and all that it is asked.

    Attributes:
      reward: who is asked.
      given: arguments by name, a list of one entry a sample each.
      numbers: id of the prompt of each sample.
      until: when it has to be back, of the monotonic clock.
      seconds: that all rewards had together.
    """

    reward: Reward
    given: Given
    numbers: list[int]
    until: float
    seconds: float

    def only(self, i: int) -> "_Call":
        """The same of one sample."""
        given = {name: values[i : i + 1] for name, values in self.given.items()}
        return self._replace(given=given, numbers=self.numbers[i : i + 1])

    def error(self, what: str, i: int = 0) -> DataError:
        """Says what is wrong at a sample."""
        prompt = self.given["prompts"][i]
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        return DataError(
            f"reward {self.reward.name!r} {what}, at prompt {self.numbers[i]} "
            f"({text[:SHOWN]!r}); it must return one finite number, or None for no "
            "verdict, for each sample"
        )


def _values(call: _Call) -> list[Any]:
    """Calls the function; returns one value a sample, not yet looked at."""
    count = len(call.numbers)
    try:
        found = _come_back(call)
    except _TooLate as error:
        what = f"did not judge {count} samples within {call.seconds:g} s"
        raise call.error(what) from error
    except DataError:
        raise
    except Exception as error:  # whatever a user's function may raise
        at = _culprit(call)
        raise call.error(f"raised {type(error).__name__}: {error}", at) from error
    try:
        if isinstance(found, str | bytes | Mapping):
            raise TypeError
        values = list(found)
    except TypeError as error:
        raise call.error(f"returned {_kind(found)}, not a list") from error
    if len(values) != count:
        what = f"returned {len(values)} values for {count} samples"
        raise call.error(what, min(len(values), count - 1))
    return values


def _come_back(call: _Call) -> Any:
    """Calls the function in a thread of its own, which is left behind if it hangs.

    Raises:
      _TooLate: if it is not back in time.
      Exception: whatever the function raises.
    """
    given = copy.deepcopy(_accepted(call))  # what it does to them stays its own
    context, back = contextvars.copy_context(), queue.SimpleQueue()

    def work() -> None:
        try:
            found = call.reward.function(**given)
            if isinstance(found, Awaitable):
                found = asyncio.run(_result(found))
            back.put((found, None))
        except BaseException as error:
            back.put((None, error))

    threading.Thread(target=context.run, args=(work,), daemon=True).start()
    try:
        found, error = back.get(timeout=max(call.until - time.monotonic(), 0.001))
    except queue.Empty as error:
        raise _TooLate from error
    if isinstance(error, Exception):
        raise error
    if error is not None:  # an exit, of the thread alone
        raise RuntimeError(repr(error)) from error
    return found


async def _result(promised: Awaitable) -> Any:
    """Waits for what an async function promised."""
    return await promised


def _accepted(call: _Call) -> Given:
    """Picks the arguments that the function takes.

    Raises:
      DataError: if it needs one that there is not.
    """
    try:
        parameters = inspect.signature(call.reward.function).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return call.given
    kinds = {parameter.kind for parameter in parameters.values()}
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        and name not in call.given
    ]
    if missing:
        raise DataError(
            f"reward {call.reward.name!r} needs {', '.join(map(repr, missing))}, which "
            f"is no column of the data; there are {', '.join(sorted(call.given))}"
        )
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return call.given
    return {name: call.given[name] for name in parameters if name in call.given}


def _culprit(call: _Call) -> int:
    """Finds the first sample on which a function that raised raises alone; else 0."""
    for i in range(len(call.numbers)):
        try:
            _come_back(call.only(i))
        except _TooLate:
            return 0
        except Exception:
            return i
    return 0


def _checked(call: _Call, values: Sequence[Any]) -> np.ndarray:
    """Turns what a function returned into f64[N], NaN = None.

    Raises:
      DataError: at the first value that is no finite number.
    """
    found = np.full(len(values), np.nan)
    for i, value in enumerate(values):
        if value is None:
            continue
        try:
            if isinstance(value, str | bytes):
                raise TypeError
            found[i] = float(value)
        except (TypeError, ValueError) as error:
            raise call.error(f"returned {_kind(value)}", i) from error
        if not abs(found[i]) <= LARGEST:  # NaN is not, either
            raise call.error(f"returned {value}", i)
    return found


def _kind(value: Any) -> str:
    """Names a value and its type, shortly."""
    return f"{repr(value)[:SHOWN]} ({type(value).__name__})"


def _total(
    rewards: Sequence[Reward], by_name: Mapping[str, np.ndarray], groups: np.ndarray
) -> np.ndarray:
    """Sums values by weight: f64[N], NaN where a sample lacks a verdict.

    Args:
      rewards: with their weights.
      by_name: f64[N] of each, NaN = absent.
      groups: i64[N] id of each sample's prompt.
    """
    total = np.zeros(len(groups))
    judged, lacks = np.zeros((2, len(groups)), bool)
    for reward in rewards:
        if not reward.weight:
            continue
        values = by_name[reward.name]
        there = ~np.isnan(values)
        total += reward.weight * np.where(there, values, 0.0)
        judged |= there
        lacks |= ~there & np.isin(groups, groups[there])
    return np.where(judged & ~lacks, total, np.nan)
