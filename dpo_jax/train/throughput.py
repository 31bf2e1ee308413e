"""What a step costs in model FLOPs, and what the devices could do in a second.

`mfu` in metrics.jsonl is their ratio. Counted are the matrix products that the step
needs, multiply and add apart: kernels, head and attention of the policy forward and
backward, and forward of a reference that runs. Not counted is what an implementation
does beside: masked scores, padding, recomputation. The devices' peak stands in a table,
or is the most that this host has reached so far, at the start of this run or another.
This room knows no model: it is given sizes.
"""

import functools
import os
import platform
import re
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from dpo_jax.sharding.chips import CHIPS

FIRST_SECONDS, AGAIN_SECONDS = 0.8, 0.2  # to measure on a host that is new, or known
DRAWN = 2048  # rows and columns of random numbers; a larger matrix repeats them

# FLOP/s of dense bfloat16 products, of one device as jax counts and names them.
# TPU: `sharding.chips`.
# A100, H100, H200: NVIDIA's datasheets; half of the figures "with sparsity".
PEAKS: dict[str, float] = {
    **{kind: chip.flops for chip in CHIPS.values() for kind in chip.kinds},
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989.5e12,
    "NVIDIA H100 PCIe": 756.5e12,
    "NVIDIA H100 NVL": 835.5e12,
    "NVIDIA H200": 989.5e12,
    "NVIDIA H200 NVL": 835.5e12,
}


class Peak(NamedTuple):
    """What `mfu` is a share of.

    Attributes:
      flops_per_second: of all devices of the run together.
      source: where the number comes from.
    """

    flops_per_second: float
    source: str


@functools.cache
def peak(dtype: str) -> Peak:
    """Finds the peak of this run's devices for matrix products in `dtype`.

    It is measured where the table has none: on CPUs, in other dtypes than bfloat16, on
    devices that the table does not know. Call it while the devices are idle. Beside the
    compilation cache, if there is one, the best that a host ever reached is kept: what
    else runs there at the moment must not make a run look fast.
    """
    device = jax.devices()[0]
    kind, count = device.device_kind, jax.device_count()
    listed = PEAKS.get(kind) if dtype == "bfloat16" else None
    if listed is not None:
        return Peak(
            listed * count, f"{count} × {kind}, bfloat16, of the vendor's sheet"
        )
    on_cpu = device.platform == "cpu"
    folder = jax.config.values["jax_compilation_cache_dir"]
    names = platform.node(), kind, os.cpu_count(), dtype
    name = re.sub(r"[^\w.-]+", "-", "-".join(map(str, ("matmul", *names))))
    best = best_so_far(
        lambda seconds: matmul_flops_per_second(
            dtype, size=2048 if on_cpu else 8192, seconds=seconds
        ),
        epath.Path(folder) / name if folder else None,
    )
    # a CPU's fake devices share its cores; its processes measure at the same time
    shares = jax.process_count() if on_cpu else count
    return Peak(best * shares, f"{shares} × {kind}, {dtype} matmul as measured")


def best_so_far(measure: Callable[[float], float], file: epath.Path | None) -> float:
    """Measures again, and keeps the largest of all measurements in a file.

    Args:
      measure: seconds to spend -> FLOP/s.
      file: of this host and kind of devices; None = nothing is kept. One that cannot be
        read or written is told and measured without.
    """
    before = 0.0
    try:
        before = float(file.read_text()) if file is not None and file.exists() else 0.0
    except (OSError, ValueError) as error:
        logging.warning("%s is not read: %s", file, error)
    best = max(before, measure(AGAIN_SECONDS if before else FIRST_SECONDS))
    try:
        if file is not None and best > before:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(repr(best))
    except OSError as error:
        logging.warning("%s is not written: %s", file, error)
    return best


def matmul_flops_per_second(dtype: str, *, size: int, seconds: float) -> float:
    """Measures the best of many square matrix products on one device, FLOP/s.

    One of this process's, whatever mesh is set: fake devices share the cores of a CPU,
    and processes need not run equally many.
    """
    with jax.set_mesh(jax.make_mesh((1,), ("alone",), devices=jax.local_devices()[:1])):
        return _best_product(dtype, size, seconds)


def _best_product(dtype: str, size: int, seconds: float) -> float:
    # not of ones: chips that run into their power limit are faster on those
    drawn = np.random.default_rng(0).standard_normal(
        2 * (min(size, DRAWN),), np.float32
    )
    left = jnp.tile(jnp.asarray(drawn, dtype), 2 * (size // len(drawn),))
    product = jax.jit(jnp.matmul)
    run = lambda: product(left, left).block_until_ready()  # noqa: E731
    run()  # compiles
    end = time.perf_counter() + seconds
    best = seconds_of(run)
    while time.perf_counter() < end:
        best = min(best, seconds_of(run))
    return 2 * size**3 / best


def seconds_of(run: Callable[[], object]) -> float:
    """Times a call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


class Sizes(NamedTuple):
    """What the FLOPs of a model depend on.

    Attributes:
      trunk: parameters of the layers' kernels.
      head: parameters of the head's kernel, D·V.
      queries: features of all query heads of a layer, H·E.
    """

    trunk: int
    head: int
    queries: int


def forward_flops(
    sizes: Sizes, *, tokens: float, scored: float, visible: float
) -> float:
    """Counts FLOPs of the matrix products of a forward pass.

    Args:
      sizes: of the model.
      tokens: that run through the trunk.
      scored: tokens that run through the head.
      visible: (query, key) pairs that see each other, summed over the layers.

    Returns:
      2 per parameter and token; 4·E per visible pair and query head: 2 for the score
      and 2 for the weighted sum of values.

    Source: arXiv:2204.02311 appendix B, with visible pairs in place of all.
    """
    kernels = sizes.trunk * tokens + sizes.head * scored
    return 2.0 * kernels + 4.0 * sizes.queries * visible
