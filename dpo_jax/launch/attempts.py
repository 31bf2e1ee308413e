"""Attempts at a trial, and the lease that keeps two workers from the same one.

A trial has a folder with one file an attempt, `N.json`, whose number is the attempt's
token. Who creates N+1 owns the trial; creating a file that must not exist has one
winner, so tokens rise and are never used twice. Only the owner writes its file: beats
while it works, and how it ended. Nothing that two attempts share is ever written, so
there is nothing for a late one to spoil; it has lost as soon as N+1 exists. On gs://
each write is on condition of the file's generation, and who takes over a stale attempt
changes its file first, so that no later beat of it can succeed.

An attempt without end is stale once its reader has seen the same beat for the time of
a lease, by the reader's own clock (what clocks of other hosts say is never compared),
or at once where its worker was a process of the reader's host that has ended.
"""

import json
import os
import random
import re
import time
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

from dpo_jax import files
from dpo_jax.errors import UserError
from dpo_jax.folders import Folder, folder_at
from dpo_jax.gcs import Unreachable
from dpo_jax.launch import processes

HELD = "lease"  # the folder of attempts in a run folder of gs://
APART = 1.0  # seconds between two changes of an object, which a store demands

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
      nonce: of the worker, which no other has; on gs:// it tells one's own writes.
      progress: rises while the trial goes on.
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
    nonce: str = ""
    progress: int = 0


def read_all(folder: Folder) -> list[Attempt]:
    """Reads the attempts at a trial, by token.

    One whose file cannot be read is one of which nothing is known but that it began.
    """
    named = (re.fullmatch(r"(\d+)\.json", name) for name in folder.names())
    tokens = sorted(int(match[1]) for match in named if match)
    return [_read(folder, token)[0] for token in tokens]


def folder_of(out: str, name: str) -> Folder:
    """Opens the folder of the attempts at a trial.

    On gs:// it lies in the run folder: the lease is what keeps others from the run,
    whether a worker trains it or somebody by hand.

    Args:
      out: the folder of the sweep.
      name: of the trial.
    """
    local = files.is_local(out)
    return folder_at(f"{out}/.sweep/{name}" if local else f"{out}/{name}/{HELD}")


def file_of(token: int) -> str:
    """Names the file of an attempt."""
    return f"{token:04}.json"


def _read(folder: Folder, token: int) -> tuple[Attempt, int]:
    """Reads an attempt, and the generation of its file."""
    unknown, found = Attempt(token, "", ""), None
    try:
        found = folder.read(file_of(token))
        value = files.parse_json(found.data) if found else {}
        known = {k: value[k] for k in Attempt._fields[1:] if k in value}
        return unknown._replace(**known), found.generation if found else 0
    except Unreachable:
        raise
    except (OSError, ValueError, TypeError):  # it is being created
        return unknown, found.generation if found else 0


class Lease:
    """The ownership of a trial, for one attempt."""

    def __init__(
        self, folder: Folder, attempt: Attempt, generation: int, seconds: float
    ):
        """Is made by `Claims.take` alone.

        Args:
          folder: of the attempts at the trial.
          attempt: of the owner.
          generation: of its file.
          seconds: without a beat after which others take the trial.
        """
        self._folder, self._attempt, self._seconds = folder, attempt, seconds
        self._generation = generation
        self._began = self._beaten = self._tried = self._written = time.monotonic()
        self._pause = 0.0  # before the next look at the successor
        self.lost = False

    @property
    def token(self) -> int:
        """The number of the attempt."""
        return self._attempt.token

    @property
    def successor(self) -> str:
        """Names the file whose existence says that another worker has the trial."""
        return self._folder.path(file_of(self.token + 1))

    def beat(self, process: str = "", progress: int = 0) -> bool:
        """Shows that the worker lives; False if the trial is another's now.

        Is called as often as one likes. A store that fails is tried again, until two
        thirds of the lease are over: by then this worker must have stopped.

        Args:
          process: that runs the trial.
          progress: what rises while the trial goes on; 0 = as before.
        """
        now = time.monotonic()
        late = now - self._beaten > self._seconds * 2 / 3
        due = now - self._tried >= self._pause or late or bool(process)
        if due and not self.lost:
            self._tried = now
            self._pause = self._folder.rest * (1 + random.random() / 4)
            self._renew(now, process, progress, late)
        return not self.lost

    def _renew(self, now: float, process: str, progress: int, late: bool) -> None:
        """Looks for a successor; writes a beat where the last is old."""
        attempt = self._attempt
        old = now - self._beaten >= self._seconds / 6
        try:
            if self._folder.has(file_of(self.token + 1)):
                self.lost = True
            elif old or late or process:
                self._write(
                    attempt._replace(
                        beat=attempt.beat + 1,
                        process=process or attempt.process,
                        progress=progress or attempt.progress,
                    )
                )
                self._beaten = now
        except (UserError, OSError):
            self.lost = late

    def end(self, code: int, line: str) -> None:
        """Writes how the attempt ended, unless the trial is another's.

        Raises:
          WriteError: if it cannot be written.
        """
        if not self.beat():
            return
        seconds = round(time.monotonic() - self._began, 1)
        ended = self._attempt._replace(code=code, line=line, seconds=seconds)
        until = self._beaten + self._seconds * 2 / 3
        while True:
            try:
                self._write(ended)
                return
            except Unreachable as error:
                if time.monotonic() > until:
                    path = self._folder.path(file_of(self.token))
                    raise files.unwritable(path, error, len(line)) from error

    def _write(self, attempt: Attempt) -> None:
        text, mark = _text(attempt), attempt.nonce.encode()
        name, apart = file_of(self.token), min(self._folder.rest, APART)
        time.sleep(max(0.0, self._written + apart - time.monotonic()))
        generation = self._folder.replace(name, text, self._generation, mark)
        if generation is None:
            self.lost = True
        else:
            self._attempt, self._generation = attempt, generation
        self._written = time.monotonic()


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
        self._nonce = uuid.uuid4().hex
        self._since: dict[str, tuple[Seen, float]] = {}

    def take(
        self, folder: Folder, trial_id: str
    ) -> tuple[Lease, Attempt | None] | None:
        """Takes a trial that nobody has.

        Args:
          folder: of the attempts at it.
          trial_id: of the trial.

        Returns:
          The lease, and the stale attempt that it was taken from, if any; None while
          another worker has the trial.

        Raises:
          WriteError: if nothing can be written there.
          Unreachable: if the store does not say how it ended; a later call finds out.
        """
        attempts = read_all(folder)
        last = attempts[-1] if attempts else None
        goes_on = last is not None and last.code is None
        if last is not None and goes_on and last.nonce == self._nonce:
            return self._adopt(folder, last.token)
        if last is not None and goes_on and not self._is_stale(folder, last):
            return None
        if last is not None and goes_on and not self._fence(folder, last):
            return None
        token, mark = last.token + 1 if last else 1, processes.mark(os.getpid())
        attempt = Attempt(token, trial_id, self._worker, mark, nonce=self._nonce)
        text, nonce = _text(attempt), self._nonce.encode()
        generation = folder.create(file_of(token), text, nonce)
        if generation is None:
            return None
        lease = Lease(folder, attempt, generation, self._seconds)
        return lease, last if goes_on else None

    def _fence(self, folder: Folder, stale: Attempt) -> bool:
        """Makes sure that no later beat of a stale attempt succeeds; not on disks.

        Returns:
          False if it has beaten since it was judged, or another worker is faster.
        """
        if not folder.rest:
            return True
        found, generation = _read(folder, stale.token)
        fenced = _text(stale._replace(nonce=f"after it {self._nonce}"))
        mark, name = self._nonce.encode(), file_of(stale.token)
        free = found == stale
        return free and folder.replace(name, fenced, generation, mark) is not None

    def _adopt(self, folder: Folder, token: int) -> tuple[Lease, None] | None:
        """Takes an attempt of one's own whose creation was never answered."""
        attempt, generation = _read(folder, token)
        if attempt.nonce != self._nonce:
            return None
        return Lease(folder, attempt, generation, self._seconds), None

    def _is_stale(self, folder: Folder, attempt: Attempt) -> bool:
        if processes.is_gone(attempt.mark):
            return True
        seen, now = (attempt.token, attempt.beat), self._clock()
        place = folder.path("")
        before, since = self._since.get(place, (None, now))
        if before != seen:
            self._since[place] = seen, now
            return False
        return now - since > self._seconds


def _text(attempt: Attempt) -> bytes:
    about: dict[str, Any] = attempt._asdict()
    return (json.dumps(about, indent=1) + "\n").encode()
