"""Host rows to global arrays, and back."""

from typing import Any

import jax
import numpy as np
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


def constrain_rows(values: Array) -> Array:
    """Keeps activations [B, …] spread by rows; needs `jax.set_mesh` around the jit."""
    return jax.lax.with_sharding_constraint(values, P(ROW_AXES))
