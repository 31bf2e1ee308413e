"""The command line, with an exception on one rank: `faulty.py WHERE RANK VERB …`."""

import os
import sys
from unittest import mock

from dpo_jax import cli
from dpo_jax.cli import train
from dpo_jax.data.loader import Loader
from dpo_jax.train.checkpoint import Checkpoints

STEP = 7  # the one behind the first that is saved


def hook(self, step, last, values):
    if step == STEP:
        raise KeyError("nobody has it")


def save(self, step, *arguments):
    raise RuntimeError("no save today")


def loader(self, step):
    if step == STEP:
        raise OSError("disk gone")
    return batch_at(self, step)


batch_at = Loader.batch_at
FAULTS = {
    "hook": (train.Progress, "__call__", hook),
    "save": (Checkpoints, "save", save),
    "loader": (Loader, "batch_at", loader),
}

if __name__ == "__main__":
    where, rank, *arguments = sys.argv[1:]
    if os.environ["DPO_JAX_DISTRIBUTED"].endswith(f",{rank}"):
        place, name, raises = FAULTS[where]
        mock.patch.object(place, name, raises).start()
    sys.exit(cli.main(["dpo_jax", *arguments]))
