"""What the processes of a run must have in common, compared before anything compiles.

A global array takes other values from each process without a word. So facts are
exchanged as text, through jax's key-value store, which needs no device and has
timeouts; every process finds the same differences, and stops.
"""

import contextlib
import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dpo_jax.errors import DeviceError, ModelError, collected

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
SHOWN = 8  # differing fields that an error names


def agree(what: str, mine: Mapping[str, Any], *, seconds: float) -> None:
    """Compares facts of all processes.

    Args:
      what: name of the exchange, the same on all processes, once a run.
      mine: JSON values by field.
      seconds: to wait for the slowest process.

    Raises:
      DeviceError: on all processes, naming fields, ranks and values; or naming the
        ranks that said nothing in time.
    """
    if jax.process_count() == 1:
        return
    texts = exchange(what, json.dumps(dict(mine), sort_keys=True), seconds=seconds)
    differing = differences([json.loads(text) for text in texts])
    if differing:
        left = len(differing) - SHOWN
        more = f" · {left} more" if left > 0 else ""
        raise DeviceError(
            f"processes disagree: {' · '.join(differing[:SHOWN])}{more}; start all "
            "with the same command line, code and files"
        )


def exchange(what: str, text: str, *, seconds: float) -> list[str]:
    """Returns the texts of all processes, by rank.

    Raises:
      DeviceError: naming the ranks whose text did not come in time.
    """
    from jax._src import distributed  # jax has no other door to its store

    client = distributed.global_state.client
    assert client is not None, "several processes have a store"
    client.key_value_set(f"dpo_jax/{what}/{jax.process_index()}", text)
    texts, left = [], int(seconds * 1000)
    with collected(DeviceError) as complaints:
        for rank in range(jax.process_count()):
            try:
                texts.append(
                    client.blocking_key_value_get(f"dpo_jax/{what}/{rank}", left)
                )
            except jax.errors.JaxRuntimeError as error:
                complaints.append(
                    f"rank {rank} did not say its {what} within {seconds:g} s ({error})"
                )
                left = 1  # the others had as long
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            # Rank 0 holds the store: it may go only when all have read.
            client.wait_at_barrier(f"dpo_jax/{what}/read", left)
    return texts


def of_first(what: str, text: str, *, seconds: float) -> str:
    """Returns the text of the first process; errors are those of `exchange`."""
    one = jax.process_count() == 1
    return text if one else exchange(what, text, seconds=seconds)[0]


def differences(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Says per field which ranks hold which value, where not all hold the same."""
    differing = []
    for field in sorted({key for rank in facts for key in rank}):
        holders: dict[str, list[int]] = {}
        for rank, values in enumerate(facts):
            holders.setdefault(repr(values.get(field)), []).append(rank)
        if len(holders) > 1:
            said = [f"{value} on {_ranks(ranks)}" for value, ranks in holders.items()]
            differing.append(f"{field} is {', '.join(said)}")
    return differing


def _ranks(ranks: Sequence[int]) -> str:
    few = ", ".join(map(str, ranks[:4])) + (", …" if len(ranks) > 4 else "")
    return f"rank{'s' * (len(ranks) > 1)} {few}"


def code() -> dict[str, str]:
    """Returns what the numbers of a run depend on besides its configuration and data.

    Returns:
      A digest of this package's sources, and the versions of Python and the libraries.
    """
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return {"code of dpo_jax": digest.hexdigest()[:16], **versions()}


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that numbers depend on."""
    libraries = {name: metadata.version(name) for name in LIBRARIES}
    return {"Python": platform.python_version(), **libraries}


def agreed(compute: Callable[[], Any]) -> Any:
    """Runs `compute() -> int | None` on process 0 and tells the others its answer.

    Raises:
      ModelError: on the others, where it failed.
    """
    if jax.process_count() == 1:
        return compute()
    answer, failure = None, None
    if jax.process_index() == 0:
        try:
            answer = compute()
        except Exception as error:  # the others must not wait for ever
            failure = error
    code = -2 if failure else -1 if answer is None else int(answer)
    code = int(multihost_utils.broadcast_one_to_all(np.int32(code)))
    if failure:
        raise failure
    if code == -2:
        raise ModelError("process 0 cannot go on; see its message")
    return None if code == -1 else code
