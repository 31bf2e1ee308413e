"""Who owns a run folder: on a disk its lock, on gs:// the lease of the attempt."""

import contextlib
import logging as std_logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from dpo_jax import files
from dpo_jax.errors import (
    EXIT_INTERNAL,
    EXIT_LEASE_LOST,
    EXIT_PREEMPTED,
    LeaseLostError,
    Preempted,
    RunFolderError,
    UserError,
    one_line,
)
from dpo_jax.folders import Folder, folder_at
from dpo_jax.gcs import Unreachable
from dpo_jax.launch import attempts
from dpo_jax.launch.attempts import HELD, Claims, Lease
from dpo_jax.train import runfolder

SECONDS = 60.0  # of a lease that no worker holds
LOOK = 1.0  # seconds between looks at it
PART = 60.0  # seconds of log.txt in one object


class Owned(NamedTuple):
    """A run folder that this process may write to.

    Attributes:
      attempt: the number of its lease; 0 on a disk.
      successor: the file whose existence says that another has it; '' on a disk.
    """

    attempt: int = 0
    successor: str = ""

    def check(self) -> None:
        """Makes sure that no other attempt has the run.

        Raises:
          LeaseLostError: if one has.
        """
        folder, _, name = self.successor.rpartition("/")
        if self.attempt and folder_at(folder).has(name):
            raise LeaseLostError(f"{self.successor}: another worker has this run")


@contextlib.contextmanager
def owned(
    workdir: files.AnyPath, *, attempt: int, seconds: float = SECONDS
) -> Iterator[Owned]:
    """Owns a run folder, and writes its log.txt meanwhile.

    Args:
      workdir: the run folder.
      attempt: the number of the lease that a worker holds for this process; 0 = none.
      seconds: of a lease that is taken here.

    Raises:
      RunFolderError: if another process has it.
    """
    first = jax.process_index() == 0
    if files.is_local(workdir):
        with runfolder.claim(workdir, first=first):
            yield Owned()
        return
    folder = folder_at(f"{os.fspath(workdir)}/{HELD}")
    with contextlib.ExitStack() as stack:
        if not attempt and first:
            attempt = stack.enter_context(_held(workdir, folder, seconds)).token
        if jax.process_count() > 1:
            shared = multihost_utils.broadcast_one_to_all(np.int32(attempt))
            attempt = int(shared)
        if first:
            stack.enter_context(_logged(workdir, attempt))
        yield Owned(attempt, folder.path(attempts.file_of(attempt + 1)))


@contextlib.contextmanager
def _held(workdir: files.AnyPath, folder: Folder, seconds: float) -> Iterator[Lease]:
    """Takes the lease of a run that no worker started, and beats until its end."""
    lease = _taken(workdir, folder, Claims(runfolder.owner(), seconds), seconds)
    over = threading.Event()

    def beat() -> None:
        while not over.wait(LOOK):
            if not lease.beat():
                line = f"error[{EXIT_LEASE_LOST}]: {lease.successor}: another has it\n"
                os.write(2, line.encode())
                os._exit(EXIT_LEASE_LOST)

    beating = threading.Thread(target=beat, daemon=True)
    beating.start()
    try:
        yield lease
    finally:
        over.set()
        beating.join()
        error = sys.exception()
        with contextlib.suppress(OSError, UserError):  # not what ends a run
            lease.end(*_how(error))


def _how(error: BaseException | None) -> tuple[int, str]:
    """Writes how a run ended: exit code, line."""
    if error is None:
        return 0, ""
    if isinstance(error, Preempted):
        return EXIT_PREEMPTED, str(error)
    code = error.code if isinstance(error, UserError) else EXIT_INTERNAL
    return code, one_line(error)


def _taken(
    workdir: files.AnyPath, folder: Folder, claims: Claims, seconds: float
) -> Lease:
    """Takes a lease; waits for one that may be a dead process's to run out.

    Raises:
      RunFolderError: if its owner lives.
    """
    seen: set[tuple[int, int]] = set()
    until = time.monotonic() + 2 * seconds
    while True:
        with contextlib.suppress(Unreachable):
            taken = claims.take(folder, "")
            if taken is not None:
                if taken[1] is not None:
                    logging.warning("took over stale lease of %s", taken[1].worker)
                return taken[0]
            last = attempts.read_all(folder)[-1]
            if not seen:
                logging.warning("%s: is %s gone? waiting", workdir, last.worker)
            seen.add((last.token, last.beat))
            if len(seen) > 1:
                raise RunFolderError(
                    f"{workdir} is in use by {last.worker}; wait for it, or choose "
                    "another --workdir"
                )
        if time.monotonic() > until:
            raise RunFolderError(f"{workdir}: nobody can say who has it; try again")
        time.sleep(LOOK)


class Uploaded(std_logging.Handler):
    """Keeps log lines and uploads them, a part a minute: an object takes no more."""

    def __init__(self, folder: epath.Path, attempt: int):
        """Begins the log of an attempt.

        Args:
          folder: the run folder.
          attempt: its number.
        """
        super().__init__()
        self._folder, self._attempt, self._part = folder / "log", attempt, 0
        self._lines: list[str] = []

    def emit(self, record: std_logging.LogRecord) -> None:
        """Keeps a line."""
        self._lines.append(self.format(record) + "\n")

    def upload(self) -> None:
        """Uploads what was kept since the last part; a fault is no fault of the run."""
        lines, self._lines = self._lines, []
        if lines:
            self._part += 1
            name = f"{self._attempt:04}-{self._part:04}.txt"
            with contextlib.suppress(OSError, UserError):
                files.write_whole(self._folder / name, "".join(lines))


@contextlib.contextmanager
def _logged(workdir: files.AnyPath, attempt: int) -> Iterator[None]:
    """Keeps the log of a run on gs://."""
    handler, over = Uploaded(epath.Path(workdir), attempt), threading.Event()
    handler.setFormatter(logging.PythonFormatter())
    handler.addFilter(runfolder.is_ours)

    def upload() -> None:
        while not over.wait(PART):
            handler.upload()

    uploading = threading.Thread(target=upload, daemon=True)
    uploading.start()
    logging.get_absl_logger().addHandler(handler)
    try:
        yield
    finally:
        logging.get_absl_logger().removeHandler(handler)
        over.set()
        uploading.join()
        handler.upload()
