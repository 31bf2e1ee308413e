"""What a step costs in model FLOPs, and what the devices could do in a second.

`mfu` in metrics.jsonl is their ratio. Counted are the matrix products that the step
needs, multiply and add apart: kernels, head and attention of the policy forward and
backward, and forward of a reference that runs. Not counted is what an implementation
does beside: masked scores, padding, recomputation. The devices' peak stands in a table,
or is measured at the start of the run. This room knows no model: it is given sizes.
"""

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

MEASURING_SECONDS = 0.8

# FLOP/s of dense bfloat16 products, of one device as jax counts and names them.
# TPU: Google Cloud's page of each version, "peak compute per chip (bf16)".
# A100, H100, H200: NVIDIA's datasheets; half of the figures "with sparsity".
PEAKS: dict[str, float] = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,  # v5e
    "TPU v5e": 197e12,
    "TPU v5": 459e12,  # v5p
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,  # v6e
    "TPU v6e": 918e12,
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
    devices that the table does not know. Call it while the devices are idle.
    """
    device = jax.devices()[0]
    kind, count = device.device_kind, jax.device_count()
    listed = PEAKS.get(kind) if dtype == "bfloat16" else None
    if listed is not None:
        return Peak(
            listed * count, f"{count} × {kind}, bfloat16, of the vendor's sheet"
        )
    on_cpu = device.platform == "cpu"
    found = matmul_flops_per_second(dtype, size=2048 if on_cpu else 8192)
    # a CPU's fake devices share its cores; its processes measure at the same time
    shares = jax.process_count() if on_cpu else count
    return Peak(found * shares, f"{shares} × {kind}, {dtype} matmul as measured")


def matmul_flops_per_second(dtype: str, *, size: int) -> float:
    """Measures the best of many square matrix products on one device, FLOP/s.

    One of this process's, whatever mesh is set: fake devices share the cores of a CPU,
    and processes need not run equally many.
    """
    with jax.set_mesh(jax.make_mesh((1,), ("alone",), devices=jax.local_devices()[:1])):
        return _best_product(dtype, size)


def _best_product(dtype: str, size: int) -> float:
    # not of ones: chips that run into their power limit are faster on those
    left = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(jnp.matmul)
    run = lambda: product(left, left).block_until_ready()  # noqa: E731
    run()  # compiles
    end = time.perf_counter() + MEASURING_SECONDS
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


def step_flops(policy: float, reference: float = 0.0) -> float:
    """Counts FLOPs of a step.

    Args:
      policy: of its forward pass; the backward pass takes twice as many.
      reference: of its forward pass; 0 where none runs.
    """
    return 3.0 * policy + reference
