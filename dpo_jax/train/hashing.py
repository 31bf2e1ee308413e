"""The hashes of a step's files, each made by the process that wrote it."""

import json
import re

import jax
from etils import epath

from dpo_jax.errors import WriteError
from dpo_jax.sharding.agree import exchange
from dpo_jax.train.manifest import files_of, hash_files

SECONDS = 1800.0  # that the slowest process may take to read what it wrote


def hashed(path: epath.Path, step: int, saves: int) -> dict[str, dict]:
    """Hashes the files of a step; all processes call it.

    Args:
      path: of the step.
      step: its number.
      saves: how many were asked for, the same on all processes.

    Raises:
      WriteError: if a process cannot read what it wrote.
    """
    if jax.process_count() == 1:
        return hash_files(path)
    me = jax.process_index()
    mine = [name for name in files_of(path) if _writer(name) == me]
    try:
        text = json.dumps(hash_files(path, mine))
    except OSError as error:
        text = json.dumps({"failed": str(error)})
    what = f"files of step {step}, save {saves}"
    hashes: dict[str, dict] = {}
    for rank, said in enumerate(exchange(what, text, seconds=SECONDS)):
        hashes |= json.loads(said)
        if "failed" in hashes:
            raise WriteError(f"rank {rank} cannot read {path}: {hashes['failed']}")
    return hashes


def _writer(name: str) -> int:
    """Tells which process wrote a file of a step: orbax names the others' folders."""
    named = re.search(r"(?:^|/)ocdbt\.process_(\d+)/", name)
    return int(named[1]) if named else 0
