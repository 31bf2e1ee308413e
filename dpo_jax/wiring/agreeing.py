"""What the processes of a run say of themselves, to be compared."""

import os

from dpo_jax.config import Config, flat
from dpo_jax.data.tokens import fingerprint
from dpo_jax.sharding import agree
from dpo_jax.wiring.data import Data

READING_SECONDS = 3600.0  # for the slowest process: others may have its tokens on disk


def agree_on_start(config: Config, workdir: os.PathLike | str) -> None:
    """Compares configurations, code and run folders. No key may differ by process.

    Raises:
      DeviceError: on all processes, if they differ.
    """
    mine = {**flat(config), **agree.code(), "--workdir": os.fspath(workdir)}
    agree.agree("start", mine, seconds=config.distributed.timeout_seconds)


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
