"""Whether a step fits the devices, and in how many parts it is run."""

import functools
import math
from collections.abc import Callable

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from dpo_jax.data.loader import Loader
from dpo_jax.errors import DeviceError
from dpo_jax.models import memory
from dpo_jax.models.lora import Adapters
from dpo_jax.models.spec import DecoderSpec
from dpo_jax.sharding import chips
from dpo_jax.sharding import mesh as mesh_lib

MORE_PLACES = 1.05  # of tokens, that microbatches may need without a limit of memory
LITTLE = 3 * 2**28  # bytes of activations that are worth no further microbatch


def check(mesh: Mesh, pairs: int, microbatches: int) -> None:
    """Checks that the batch fits the devices.

    Raises:
      DeviceError: with the numbers and the nearest that fit.
    """
    shards = mesh_lib.row_shards(mesh)
    if pairs % shards:
        near = f"{pairs - pairs % shards} or " if pairs > shards else ""
        raise DeviceError(
            f"batch.pairs={pairs} is not a multiple of the {shards} data shards; use "
            f"{near}{pairs - pairs % shards + shards}"
        )
    if microbatches > pairs:
        raise DeviceError(
            f"batch.microbatches={microbatches} exceeds batch.pairs={pairs}; use at "
            f"most {pairs}"
        )


def choose(
    spec: DecoderSpec,
    plan: Callable[[int], Loader],
    mesh: Mesh,
    *,
    pairs: int,
    remat: str,
    dtype: str,
    chunk: int,
    adapters: Adapters | None = None,
) -> Loader:
    """Finds a number of microbatches that keeps activations small.

    Where the device does not say what memory it has, no more than lay the steps out in
    hardly more places: a microbatch of few pairs fills its rows badly.

    Args:
      spec: of the policy.
      plan: number of microbatches -> what lays the steps out.
      mesh: of the run.
      pairs: of a step.
      remat: as `Decoder` has it.
      dtype: of the computation.
      chunk: scored tokens per row whose logits are held at a time.
      adapters: that alone are trained; None = all weights are.

    Returns:
      The plan of the same number on every process: what process 0 finds.
    """
    shards, whole = mesh_lib.row_shards(mesh), plan(1)
    parts = pairs // shards
    number = fewest_that_fit(
        spec,
        mesh,
        rows=whole.buckets[-1] // shards,
        parts=parts,
        tokens=whole.row_tokens,
        remat=remat,
        dtype=dtype,
        chunk=chunk,
        adapters=adapters,
    )
    while memory_of(mesh) is None and plan(number).places > MORE_PLACES * whole.places:
        number = max(n for n in range(1, number) if parts % n == 0)
    logging.info("batch.microbatches=0 becomes %d", number)
    return plan(of_first(number))


def of_first(number: int) -> int:
    """Returns what process 0 found, on every process."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def fewest_that_fit(
    spec: DecoderSpec,
    mesh: Mesh,
    *,
    rows: int,
    parts: int,
    tokens: int,
    remat: str,
    dtype: str,
    chunk: int,
    beside: DecoderSpec | None = None,
    adapters: Adapters | None = None,
) -> int:
    """Finds the fewest microbatches whose activations a device holds.

    Args:
      spec: of the policy.
      mesh: of the run.
      rows: as `fewest` has it.
      parts: likewise.
      tokens: of a row.
      remat: as `Decoder` has it.
      dtype: of the computation.
      chunk: scored tokens per row whose logits are held at a time.
      beside: of a critic that is trained with the policy.
      adapters: that alone are trained of the policy; None = all its weights are.
    """
    specs = [spec] if beside is None else [spec, beside]
    activations = functools.partial(
        memory.activation_bytes, tokens=tokens, remat=remat, dtype=dtype, chunk=chunk
    )
    state = memory.state_bytes(spec, adapters, dtype)
    state += memory.state_bytes(beside) if beside is not None else 0
    state /= mesh.shape["fsdp"] * mesh.shape["tensor"]
    return fewest(
        lambda rows: sum(activations(each, rows=rows) for each in specs),
        rows=rows,
        parts=parts,
        budget=budget_of(state, memory_of(mesh)),
    )


def fewest(
    activations: Callable[[int], float], *, rows: int, parts: int, budget: float
) -> int:
    """Finds the fewest microbatches whose activations keep to a budget.

    Args:
      activations: rows of a device -> their bytes.
      rows: of a device that a step needs in one microbatch.
      parts: pairs of a device in a step; the number divides it.
      budget: bytes.

    Returns:
      The number; `parts` if none keeps to the budget.
    """
    even = (number for number in range(1, parts + 1) if parts % number == 0)
    fits = (n for n in even if activations(math.ceil(rows / n)) <= budget)
    return next(fits, parts)


def budget_of(state: float, limit: float | None) -> float:
    """Says how many bytes of a device activations may take.

    Where the device says what memory it has, half of what weights and optimizer leave
    of it. Else as much as these take, or `LITTLE`: then activations are never most of
    what the run needs, and a CPU is no slower with less.

    Args:
      state: bytes of weights, gradient and optimizer on the device.
      limit: bytes that the device has; None = it does not say.
    """
    if limit is None:
        return max(state, LITTLE)
    return max((limit - state) / 2, limit / 16)


def memory_of(mesh: Mesh) -> float | None:
    """Says what memory a device has: it is asked, or is of a kind that is known.

    A CPU does not say; a device of a topology is not there to be asked.
    """
    device = next(iter(mesh.local_devices or mesh.devices.flat))
    try:
        return (device.memory_stats() or {}).get("bytes_limit")
    except jax.errors.JaxRuntimeError:
        chip = chips.of_kind(device.device_kind)
        return None if chip is None else chip.memory
