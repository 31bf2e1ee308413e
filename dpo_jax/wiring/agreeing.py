"""What the processes of a run say of themselves, to be compared."""

import os
from collections.abc import Mapping
from typing import Any

from dpo_jax.data.tokens import fingerprint
from dpo_jax.sharding import agree
from dpo_jax.wiring.data import Data

READING_SECONDS = 3600.0  # for the slowest process: others may have its tokens on disk


def agree_on_start(
    keys: Mapping[str, Any], workdir: os.PathLike | str, seconds: float
) -> None:
    """Compares configurations, code and run folders.

    Args:
      keys: of the flat configuration; none may differ by process.
      workdir: the run folder.
      seconds: to wait for the slowest process.

    Raises:
      DeviceError: on all processes, if they differ.
    """
    mine = {**keys, **agree.code(), "--workdir": os.fspath(workdir)}
    agree.agree("start", mine, seconds=seconds)


def agree_on_rows(data: Data) -> None:
    """Compares what was read: a path may hold other bytes on another host.

    Raises:
      DeviceError: on all processes, if they differ.
    """
    mine = {
        "content of data.train": data.fingerprint,
        "content of data.eval": fingerprint(data.eval),
    }
    agree.agree("rows", mine, seconds=READING_SECONDS)
