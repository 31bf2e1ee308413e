"""Attempts at a trial, and the lease that keeps two workers from the same one.

A trial has a folder with one file an attempt, `N.json`, whose number is the attempt's
token. Who creates N+1 owns the trial; creating a file that must not exist has one
winner, so tokens rise and are never used twice. Only the owner writes its file: beats
while it works, and how it ended. Nothing that two attempts share is ever written, so
there is nothing for a late one to spoil; it has lost as soon as N+1 exists.

An attempt without end is stale once its reader has seen the same beat for the time of
a lease, by the reader's own clock (what clocks of other hosts say is never compared),
or at once where its worker was a process of the reader's host that has ended.
"""

import contextlib
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from dpo_jax import files
from dpo_jax.errors import WriteError
from dpo_jax.launch import processes

Seen = tuple[int, int]  # token, beat


class Attempt(NamedTuple):
    """What is written of an attempt.

    Attributes:
      token: its number, from 1.
      id: of the trial as it was then.
      worker: who makes it, for people.
      mark: of the worker's process; see `processes.mark`.
      beat: rises while its worker lives.
      process: the mark of the process that runs the trial.
      code: exit code; None while it goes on.
      line: the error line, of one that failed.
      seconds: it took.
    """

    token: int
    id: str
    worker: str
    mark: str = ""
    beat: int = 0
    process: str = ""
    code: int | None = None
    line: str = ""
    seconds: float = 0.0


def read_all(folder: Path) -> list[Attempt]:
    """Reads the attempts at a trial, by token.

    One whose file cannot be read is one of which nothing is known but that it began.
    """
    names = os.listdir(folder) if folder.is_dir() else []
    tokens = sorted(int(m[1]) for n in names if (m := re.fullmatch(r"(\d+)\.json", n)))
    return [_read(folder, token) for token in tokens]


def file_of(folder: Path, token: int) -> Path:
    """Names the file of an attempt."""
    return folder / f"{token:04}.json"


def _read(folder: Path, token: int) -> Attempt:
    unknown = Attempt(token, "", "")
    try:
        value = files.read_json(file_of(folder, token))
        return unknown._replace(**{k: value[k] for k in Attempt._fields[1:]})
    except (OSError, ValueError, TypeError, KeyError):  # it is being created
        return unknown


class Lease:
    """The ownership of a trial, for one attempt."""

    def __init__(self, folder: Path, attempt: Attempt, seconds: float):
        """Is made by `Claims.take` alone.

        Args:
          folder: of the attempts at the trial.
          attempt: of the owner.
          seconds: without a beat after which others take the trial.
        """
        self._folder, self._attempt, self._seconds = folder, attempt, seconds
        self._began = self._beaten = time.monotonic()
        self.lost = False

    @property
    def token(self) -> int:
        """The number of the attempt."""
        return self._attempt.token

    @property
    def log(self) -> Path:
        """Where what the trial prints is kept."""
        return file_of(self._folder, self.token).with_suffix(".log")

    @property
    def successor(self) -> Path:
        """The file whose existence says that another worker has the trial."""
        return file_of(self._folder, self.token + 1)

    def beat(self, process: str = "") -> bool:
        """Shows that the worker lives; False if the trial is another's now.

        A disk that fails is tried again, until two thirds of the lease are over: by
        then this worker must have stopped.

        Args:
          process: that runs the trial.
        """
        now = time.monotonic()
        late = now - self._beaten > self._seconds * 2 / 3
        if self.lost or self.successor.exists():
            self.lost = True
        elif late or now - self._beaten > self._seconds / 6 or process:
            beat = self._attempt.beat + 1
            kept = process or self._attempt.process
            try:
                self._write(self._attempt._replace(beat=beat, process=kept))
                self._beaten = now
            except WriteError:
                self.lost = late
        return not self.lost

    def end(self, code: int, line: str) -> None:
        """Writes how the attempt ended, unless the trial is another's.

        Raises:
          WriteError: if it cannot be written.
        """
        if self.beat():
            seconds = round(time.monotonic() - self._began, 1)
            self._write(self._attempt._replace(code=code, line=line, seconds=seconds))

    def _write(self, attempt: Attempt) -> None:
        files.write_whole(file_of(self._folder, self.token), _text(attempt))
        self._attempt = attempt


class Claims:
    """What a worker has seen of others' attempts, and since when, by its own clock."""

    def __init__(
        self, worker: str, seconds: float, clock: Callable[[], float] = time.monotonic
    ):
        """Has seen nothing.

        Args:
          worker: its name, for people.
          seconds: without a beat after which an attempt is stale.
          clock: seconds, of this process.
        """
        self._worker, self._seconds, self._clock = worker, seconds, clock
        self._since: dict[Path, tuple[Seen, float]] = {}

    def take(self, folder: Path, trial_id: str) -> tuple[Lease, Attempt | None] | None:
        """Takes a trial that nobody has.

        Args:
          folder: of the attempts at it.
          trial_id: of the trial.

        Returns:
          The lease, and the stale attempt that it was taken from, if any; None while
          another worker has the trial.

        Raises:
          WriteError: if nothing can be written there.
        """
        attempts = read_all(folder)
        last = attempts[-1] if attempts else None
        goes_on = last is not None and last.code is None
        if last is not None and goes_on and not self._is_stale(folder, last):
            return None
        token, mark = last.token + 1 if last else 1, processes.mark(os.getpid())
        attempt = Attempt(token, trial_id, self._worker, mark)
        if not _create(folder, attempt):
            return None
        return Lease(folder, attempt, self._seconds), last if goes_on else None

    def _is_stale(self, folder: Path, attempt: Attempt) -> bool:
        if processes.is_gone(attempt.mark):
            return True
        seen, now = (attempt.token, attempt.beat), self._clock()
        before, since = self._since.get(folder, (None, now))
        if before != seen:
            self._since[folder] = seen, now
            return False
        return now - since > self._seconds


def _create(folder: Path, attempt: Attempt) -> bool:
    """Creates the file of an attempt; False if another worker was first."""
    path, text = file_of(folder, attempt.token), _text(attempt)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    except OSError as error:
        raise files.unwritable(path, error, len(text)) from error
    with contextlib.suppress(OSError):  # of a file system that syncs no folders
        files.sync(folder)
    return True


def _text(attempt: Attempt) -> str:
    about: dict[str, Any] = attempt._asdict()
    return json.dumps(about, indent=1) + "\n"
