"""Ends the process where the loop makes no progress: a collective whose peer is stuck.

Whatever the loop waits for calls `beat` as it goes: steps, batches of an evaluation,
parts of a save. No exception can reach a thread that waits in XLA, so another thread
shows where all threads stand, and ends the process.
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax import monitoring

from dpo_jax.errors import EXIT_WATCHDOG
from dpo_jax.files import is_local
from dpo_jax.train.clock import COMPILING

COMPILE_SECONDS = 3600.0  # a program may take as long, if it is more than the limit
STACKS = "errors/stacks{}.txt"
FILE_SECONDS = 5.0  # to write them: a disk may be what hangs

_running: list["Watchdog"] = []


def beat(step: int | None = None) -> None:
    """Tells the watchdogs of this process that the run goes on.

    Args:
      step: that begins; None = a part of one, or of something else.
    """
    for watchdog in _running:
        watchdog.beat(step)


class Watchdog:
    """A thread that ends the process when the beats stop; no thread for 0 seconds."""

    def __init__(
        self,
        seconds: float,
        folder: os.PathLike | str,
        *,
        leave: Callable[[int], Any] = os._exit,
    ):
        """Starts nothing yet.

        Args:
          seconds: without a beat that are too many; 0 = off.
          folder: of the run, where stacks are left if it is on this machine.
          leave: ends the process.
        """
        self._seconds, self._folder, self._leave = seconds, os.fspath(folder), leave
        self._step = self._compiling = 0
        self._last = time.monotonic()
        self._over = threading.Event()

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            self.beat()
            _running.append(self)
            monitoring.register_scalar_listener(self._compiles)
            monitoring.register_event_duration_secs_listener(self._compiled)
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._seconds:
            self._over.set()
            monitoring.unregister_scalar_listener(self._compiles)
            monitoring.unregister_event_duration_listener(self._compiled)
            _running.remove(self)

    def beat(self, step: int | None = None) -> None:
        """Notes that the run goes on."""
        self._step = self._step if step is None else step
        self._last = time.monotonic()

    def _compiles(self, event: str, value: float, **_: object) -> None:
        del value
        if event in COMPILING:
            self._compiling += 1

    def _compiled(self, event: str, duration_secs: float, **_: object) -> None:
        del duration_secs
        if event in COMPILING:
            self._compiling = max(self._compiling - 1, 0)  # one may have begun before
            self.beat()

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._seconds / 4)):
            longer = COMPILE_SECONDS if self._compiling else 0.0
            limit = max(self._seconds, longer)
            if time.monotonic() - self._last > limit:
                self._end(limit)
                return

    def _end(self, limit: float) -> None:
        """Says where all threads stand, then ends the process."""
        threading.Timer(FILE_SECONDS, self._leave, (EXIT_WATCHDOG,)).start()
        where = ""
        if is_local(self._folder):
            path = Path(self._folder) / STACKS.format(jax.process_index())
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError), path.open("w") as file:
                faulthandler.dump_traceback(file)
                where = f"; stacks: {path}"
        faulthandler.dump_traceback(sys.__stderr__ or 2)
        sys.stderr.write(
            f"error[{EXIT_WATCHDOG}]: no progress since step {self._step} for "
            f"{limit:g} s (train.watchdog_seconds={self._seconds:g}){where}; relaunch "
            "to go on\n"
        )
        sys.stderr.flush()
        self._leave(EXIT_WATCHDOG)
