"""One run at a time makes what the runs of a sweep share; the others wait for it.

This saves work, and nothing else depends on it: what is made appears whole, under the
digest of its bytes, so two that make it make the same files.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

from absl import logging
from etils import epath

from dpo_jax.folders import folder_at
from dpo_jax.gcs import Unreachable
from dpo_jax.launch.attempts import Claims, Lease, read_all
from dpo_jax.sharding.agree import agreed
from dpo_jax.train import runfolder

FOLDER = "making"
SECONDS = 300.0  # without a beat, after which its maker is taken for dead
LOOK = 1.0  # seconds between looks at it
TOLD = 60.0  # seconds between lines that say who is waited for


@contextlib.contextmanager
def alone(
    folder: epath.Path, is_whole: Callable[[], bool]
) -> Iterator[Callable[[], object]]:
    """Waits until all is made, or nobody makes it; then others wait for this run.

    Every process of the run calls it; process 0 asks.

    Args:
      folder: of what is made.
      is_whole: looks whether all of it is there.

    Yields:
      What is called as the making goes on: each call shows the others that it does. A
      maker that is gone from this host is noticed at once, another after `SECONDS`.

    Raises:
      WriteError: if nothing can be written there.
    """
    waiting = Waiting(folder)
    while not agreed(lambda: is_whole() or waiting.is_over()):
        time.sleep(LOOK)
    lease = waiting.lease
    if lease is None:
        yield lambda: None
        return
    try:
        yield lease.beat
    finally:
        with contextlib.suppress(OSError):
            lease.end(0, "")


class Waiting:
    """Asks for the lease of a maker, until it is had.

    Attributes:
      lease: of this run; None where another has it.
    """

    def __init__(self, folder: epath.Path):
        """Asks nothing yet."""
        self._folder = folder_at(folder / FOLDER)
        self._claims = Claims(runfolder.owner(), SECONDS)
        self._told = -TOLD
        self.lease: Lease | None = None

    def is_over(self) -> bool:
        """Tells whether this run is to make what is missing."""
        try:
            taken = self._claims.take(self._folder, "")
            other = "" if taken else read_all(self._folder)[-1].worker
        except Unreachable as error:
            logging.warning("%s: not waited for any other run", error)
            return True
        if taken is not None:
            self.lease = taken[0]
            return True
        if time.monotonic() - self._told > TOLD:
            self._told = time.monotonic()
            logging.info("%s: waiting for %s", self._folder.path(""), other)
        return False
