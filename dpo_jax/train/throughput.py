"""What a step costs in model FLOPs, and what the hardware reaches on a plain matmul.

`mfu` in metrics.jsonl is their ratio: FLOPs of the model's matrix products (attention
scores and recomputation left out) over a matmul measured at the start of the same run,
so it means the same on any device and no table of peaks is trusted.
"""

import functools
import time

import jax
import jax.numpy as jnp


@functools.cache
def matmul_flops_per_second(dtype: str) -> float:
    """Measures a large matmul on this machine's devices, FLOP/s over all of them."""
    on_cpu = jax.devices()[0].platform == "cpu"
    size = 1024 if on_cpu else 8192
    left = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    product(left, left).block_until_ready()
    best = min(_seconds(product, left) for _ in range(3))
    devices = 1 if on_cpu else jax.device_count()  # fake CPU devices share the cores
    return 2 * size**3 / best * devices


def _seconds(product: object, left: jax.Array) -> float:
    start = time.perf_counter()
    product(left, left).block_until_ready()  # pyright: ignore
    return time.perf_counter() - start


def model_flops(
    *, trunk: int, head: int, tokens: float, scored: float, reference: bool
) -> float:
    """Counts FLOPs of a step's matrix products.

    Args:
      trunk: parameters of the layers' kernels.
      head: parameters of the head's kernel, D·V.
      tokens: tokens that run through the trunk.
      scored: tokens that run through the head.
      reference: whether a reference is run forward as well.

    Returns:
      6 per parameter and token for the policy (2 forward, 4 backward), 2 for the
      reference.
    """
    passes = 8 if reference else 6
    return float(passes) * (trunk * tokens + head * scored)
