"""Whether a run's programs are those that were planned.

A digest is that of a lowered program: arithmetic, shapes, shardings and donations.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath

from dpo_jax import files
from dpo_jax.files import AnyPath
from dpo_jax.sharding import agree

PLAN = "plan.json"  # of a run folder


def digest_of(lowered: Any) -> str:
    """Returns 16 hex digits of a lowered program: its text, shardings and all."""
    return hashlib.sha256(lowered.as_text().encode()).hexdigest()[:16]


def told(name: str, step: Any, workdir: AnyPath) -> Callable[..., Any]:
    """Makes a step say the digest of each of its programs, before it first runs.

    Where the run folder holds a plan of this shape, the two are compared.

    Args:
      name: of the program.
      step: jitted, `(state, frozen, batch, hyper) -> (state, metrics)`.
      workdir: the run folder.
    """
    seen: set[tuple[int, ...]] = set()

    def take(state: Any, frozen: Any, batch: Any, hyper: Any) -> Any:
        shape = tuple(jax.tree.leaves(batch)[0].shape)
        if shape not in seen:
            seen.add(shape)
            digest = digest_of(step.lower(state, frozen, batch, hyper))
            logging.info("%s of %s tokens: digest %s", name, list(shape), digest)
            for fault in mismatches(workdir, name, shape, digest):
                logging.warning("%s", fault)
        return step(state, frozen, batch, hyper)

    return take


def mismatches(
    workdir: AnyPath, name: str, shape: Sequence[int], digest: str
) -> list[str]:
    """Compares a program with that of the plan in a run folder, if one is there.

    Args:
      workdir: the run folder, perhaps with a `plan.json`.
      name: of the program.
      shape: [microbatches, B, T] of its batch; a plan of another says nothing of it.
      digest: of the program.
    """
    file = epath.Path(workdir) / PLAN
    if not file.exists():
        return []
    said = files.read_json(file)
    planned = (said["microbatches"], said["shape"]["rows"], said["shape"]["tokens"])
    known = said["identity"]["programs"].get(name)
    if planned != tuple(shape) or known in (None, digest):
        return []
    here = agree.versions()
    before = said["identity"]["versions"]
    other = [f"{k} {v} → {here.get(k)}" for k, v in before.items() if here.get(k) != v]
    why = ", ".join(other) or "configuration, flags or code changed"
    return [
        f"{name} has digest {digest}, and {file} planned {known} ({why}): its bytes "
        "and bounds are of another program; run plan again"
    ]
