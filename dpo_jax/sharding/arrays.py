"""Host rows to global arrays, and back; and what each shard of rows does alone."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dpo_jax.types import Array

ROW_AXES = ("data", "fsdp")


def row_sharding(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """Spreads rows over (data, fsdp), behind `leading` unsharded axes."""
    return NamedSharding(mesh, P(*(None,) * leading, ROW_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Puts the whole array on every device."""
    return NamedSharding(mesh, P())


def host_part(mesh: Mesh) -> tuple[float, float]:
    """Tells this process's rows as a fraction (start, stop) of all rows.

    A row's shard is held by all devices along `tensor`, and a process's devices hold
    neighbouring shards.
    """
    shards = mesh.devices.reshape(mesh.shape["data"] * mesh.shape["fsdp"], -1)
    me = jax.process_index()
    mine = [i for i, devices in enumerate(shards) if devices[0].process_index == me]
    assert mine and mine == list(range(mine[0], mine[-1] + 1)), mine
    return mine[0] / len(shards), (mine[-1] + 1) / len(shards)


def to_global(local: Any, sharding: NamedSharding) -> Any:
    """Makes global arrays of this process's rows, for each leaf of a tree."""
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), local
    )


def to_host(tree: Any) -> Any:
    """Copies replicated device values to NumPy."""
    return jax.tree.map(np.asarray, jax.device_get(tree))


def to_every_host(values: Any) -> np.ndarray:
    """Copies an array, however it is spread, to NumPy on every process."""
    if isinstance(values, jax.Array) and not values.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(values, tiled=True))
    return np.asarray(values)


def constrain_rows(values: Array) -> Array:
    """Keeps activations [B, …] spread by rows; needs `jax.set_mesh` around the jit."""
    return jax.lax.with_sharding_constraint(values, P(ROW_AXES))


def on_each_shard(run: Callable, rows: int, *, ins: tuple, outs: tuple) -> Callable:
    """Lets every shard of rows run through its chunks alone.

    Left to the compiler, the kernel's gradient would be summed over the mesh once a
    chunk. The axis `tensor`, and with it the vocabulary, does stay with the compiler.

    Args:
      run: a function of arrays.
      rows: B, over the whole mesh.
      ins: the axis along which each argument is split over rows; None = not split.
      outs: the same for what `run` returns.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in ROW_AXES if axis in mesh.axis_names)
    shards = math.prod(mesh.shape[axis] for axis in axes)
    if shards == 1 or rows % shards:
        return run
    ins, outs = (
        tuple(P() if i is None else P(*(None,) * i, axes) for i in places)
        for places in (ins, outs)
    )
    return jax.shard_map(
        run, in_specs=ins, out_specs=outs, axis_names=set(axes), check_vma=False
    )
