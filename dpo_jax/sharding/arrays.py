"""Host rows to global arrays, and back; and what each shard of rows does alone."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dpo_jax.sharding.mesh import row_shards
from dpo_jax.types import Array

ROW_AXES = ("data", "fsdp")


def row_sharding(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """Spreads rows over (data, fsdp), behind `leading` unsharded axes."""
    return NamedSharding(mesh, P(*(None,) * leading, ROW_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Puts the whole array on every device."""
    return NamedSharding(mesh, P())


def shaped(shape: Sequence[int], dtype: Any, place: Any) -> jax.ShapeDtypeStruct:
    """Describes an array that lies somewhere."""
    return jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=place)


def rows_here(sharding: NamedSharding, n: int) -> np.ndarray:
    """Lists which of n rows the devices of this process hold: i64[…], ascending.

    They need not be neighbours, because a mesh follows the wires between chips; where
    `tensor` crosses processes, several of them hold the same rows.

    Args:
      sharding: from `row_sharding`.
      n: rows over the whole mesh, a multiple of its row shards.
    """
    me, axis = jax.process_index(), row_axis(sharding)
    slices = sharding.devices_indices_map((1,) * axis + (n,))
    held = {s[axis].indices(n) for d, s in slices.items() if d.process_index == me}
    return np.concatenate([np.arange(*bounds) for bounds in sorted(held)])


def row_axis(sharding: NamedSharding) -> int:
    """Counts the unsharded axes before the rows; see `row_sharding`."""
    return len(sharding.spec) - 1


def to_global(local: Any, sharding: NamedSharding) -> Any:
    """Makes global arrays, for each leaf of a tree.

    Args:
      local: NumPy arrays [leading axes, rows of `rows_here`, …].
      sharding: from `row_sharding`.
    """
    axis, shards = row_axis(sharding), row_shards(sharding.mesh)
    held = rows_here(sharding, shards)

    def one(leaf: np.ndarray) -> jax.Array:
        size = leaf.shape[axis] // len(held)  # rows of a shard
        shape = (*leaf.shape[:axis], size * shards, *leaf.shape[axis + 1 :])

        def shard(index: Any) -> np.ndarray:
            number = (index[axis].start or 0) // size
            at = size * int(np.searchsorted(held, number))
            return leaf[(*index[:axis], slice(at, at + size))]

        return jax.make_array_from_callback(shape, sharding, shard)

    return jax.tree.map(one, local)


def spread(whole: Any, sharding: NamedSharding) -> Any:
    """Makes global arrays of NumPy arrays that every process holds whole."""

    def one(leaf: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__)

    return jax.tree.map(one, whole)


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
