"""Which checkpoints of a run on gs:// count: one object, changed on condition.

An attempt writes `checkpoints/attempt-N/STEP` and nothing of others; a step counts once
`published.json` names it. That object holds the number of the attempt that last took
it over, and is replaced on condition of its generation: an attempt that lost its lease
publishes nothing more, and what it still uploads is garbage. Imports no jax.
"""

import json
import re
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import NamedTuple, NoReturn

from absl import logging
from etils import epath

from dpo_jax import files
from dpo_jax.errors import LeaseLostError
from dpo_jax.folders import Folder, folder_at

POINTER = "published.json"
APART = 1.0  # seconds between two changes
ATTEMPT = re.compile(r"attempt-(\d+)")


class Published(NamedTuple):
    """What the pointer says.

    Attributes:
      attempt: the number of the one that may change it.
      steps: step -> its folder, relative to the checkpoints.
    """

    attempt: int
    steps: dict[int, str]


def read(folder: epath.Path) -> Published:
    """Reads the pointer of a folder of checkpoints, copied to a disk or not.

    Raises:
      ValueError: if it is damaged.
    """
    try:
        found = folder_at(folder).read(POINTER)
    except NotADirectoryError:
        found = None
    return Published(0, {}) if found is None else _parsed(found.data)


def _parsed(data: bytes) -> Published:
    value = files.parse_json(data)
    try:
        steps = {int(step): str(place) for step, place in value["steps"].items()}
        return Published(int(value["attempt"]), steps)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("it does not say which steps count") from error


def name_of(attempt: int) -> str:
    """Names the folder of an attempt."""
    return f"attempt-{attempt:04}"


class Pointer:
    """The pointer, as the attempt that owns the run changes it."""

    def __init__(self, folder: epath.Path, attempt: int):
        """Asks nothing."""
        self._folder: Folder = folder_at(folder)
        self._attempt, self._writer = attempt, uuid.uuid4().hex
        self._generation, self._written = 0, 0.0
        self._steps: dict[int, str] = {}

    def take(self) -> None:
        """Makes sure that no earlier attempt publishes any more.

        Raises:
          LeaseLostError: if a later attempt has.
        """
        while not self._generation:
            found = self._folder.read(POINTER)
            data, mark = self._text({}), self._writer.encode()
            if found is None:
                self._generation = self._folder.create(POINTER, data, mark) or 0
                continue
            held = _parsed(found.data)
            if held.attempt > self._attempt:
                self._lose(held.attempt)
            data, self._steps = self._text(held.steps), held.steps
            kept = self._folder.replace(POINTER, data, found.generation, mark)
            self._generation = kept or 0
        self._written = self._written or time.monotonic()

    def change(
        self, add: Mapping[int, str] | None = None, drop: Iterable[int] = ()
    ) -> None:
        """Adds and drops steps.

        Raises:
          LeaseLostError: if a later attempt took it over.
        """
        self.take()
        gone = set(drop)
        steps = {s: p for s, p in self._steps.items() if s not in gone}
        steps |= add or {}
        if steps == self._steps:
            return
        data, mark = self._text(steps), self._writer.encode()
        apart = min(APART, self._folder.rest)  # on gs:// an object takes no more
        time.sleep(max(0.0, self._written + apart - time.monotonic()))
        kept = self._folder.replace(POINTER, data, self._generation, mark)
        self._written = time.monotonic()
        if kept is None:
            found = self._folder.read(POINTER)
            self._lose(_parsed(found.data).attempt if found else 0)
        self._generation, self._steps = kept, steps

    def _text(self, steps: Mapping[int, str]) -> bytes:
        about = {"attempt": self._attempt, "writer": self._writer, "steps": steps}
        return (json.dumps(about, indent=1) + "\n").encode()

    def _lose(self, other: int) -> NoReturn:
        raise LeaseLostError(
            f"{self._folder.path(POINTER)}: attempt {other} has this run, which was "
            f"attempt {self._attempt}'s; nothing more is published"
        )


def clear(folder: epath.Path, attempt: int) -> None:
    """Deletes what earlier attempts uploaded and never published.

    Args:
      folder: of the checkpoints.
      attempt: that has taken the pointer over.
    """
    places = set(read(folder).steps.values())
    for child in folder.iterdir() if folder.exists() else ():
        named = ATTEMPT.fullmatch(child.name)
        if not named or int(named[1]) >= attempt:
            continue
        for step in child.iterdir():
            if f"{child.name}/{step.name}" not in places:
                logging.warning("removing %s: it was never published", step)
                step.rmtree(missing_ok=True)
