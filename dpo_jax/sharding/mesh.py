"""The mesh: data × fsdp × tensor, over all devices of all processes.

This room knows nothing of models or data.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
from absl import logging
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from dpo_jax.errors import DeviceError

AXES = ("data", "fsdp", "tensor")


def mesh_sizes(data: int, fsdp: int, tensor: int, *, devices: int) -> tuple[int, ...]:
    """Resolves a −1 to the devices that the other axes leave.

    Raises:
      DeviceError: if the sizes do not multiply to `devices`, with those that do.
    """
    sizes = (data, fsdp, tensor)
    named = ", ".join(f"mesh.{axis}={n}" for axis, n in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(n < 1 and n != -1 for n in sizes):
        raise DeviceError(f"{named}: sizes are at least 1; one of them may be -1")
    fixed = math.prod(n for n in sizes if n != -1)
    if devices % fixed or (-1 not in sizes and fixed != devices):
        raise DeviceError(
            f"{named} asks for a multiple of {fixed} devices, there are {devices}; "
            f"use {' × '.join(AXES)} = {' or '.join(nearest(sizes, devices))}"
        )
    return tuple(devices // fixed if n == -1 else n for n in sizes)


def nearest(wanted: Sequence[int], devices: int) -> list[str]:
    """Lists the shapes of so many devices that keep most of the sizes asked for."""
    sizes = [n for n in range(1, devices + 1) if devices % n == 0]
    shapes = [s for s in itertools.product(sizes, repeat=3) if math.prod(s) == devices]
    kept = [sum(map(int.__eq__, wanted, shape)) for shape in shapes]
    best = [s for s, n in zip(shapes, kept, strict=True) if n == max(kept)]
    return ["×".join(map(str, shape)) for shape in best]


def make_mesh(
    data: int, fsdp: int, tensor: int, devices: Sequence[Any] | None = None
) -> Mesh:
    """Lays devices out as data × fsdp × tensor; −1 stands for the rest.

    Neighbours in the mesh are neighbours by wire: `tensor` first, then `fsdp`. Several
    slices, which a slower network joins, lie along `data` as far as that goes.

    Args:
      data: shards of rows.
      fsdp: shards of rows, and of parameters along their input width.
      tensor: shards of heads, hidden units and vocabulary.
      devices: to lay out, such as those of a topology; None = all there are.

    Raises:
      DeviceError: if the sizes do not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(data, fsdp, tensor, devices=len(devices))
    # only some platforms have slices
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    over = slices_over(sizes, slices)
    if over[2] > 1:
        logging.warning("mesh.tensor=%d spans %d slices: slow", sizes[2], over[2])
    inside = tuple(n // m for n, m in zip(sizes, over, strict=True))
    try:
        if slices > 1:
            grid = mesh_utils.create_hybrid_device_mesh(
                inside, over, devices, allow_split_physical_axes=True
            )
        else:
            grid = mesh_utils.create_device_mesh(
                inside, devices, allow_split_physical_axes=True
            )
    except (AssertionError, NotImplementedError, ValueError) as error:
        raise DeviceError(
            f"the {len(devices)} devices in {slices} slices make no mesh ({error}); "
            "use whole slices of one size"
        ) from error
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def slices_over(sizes: Sequence[int], slices: int) -> tuple[int, ...]:
    """Says over how many slices each axis of a mesh goes: `data` first."""
    over = []
    for size in sizes:
        over.append(math.gcd(size, slices))
        slices //= over[-1]
    return tuple(over)


def platform() -> str:
    """Names the kind of the devices in `jax.set_mesh`; without one, of the default's.

    A mesh may hold devices that this machine does not have.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def row_shards(mesh: Mesh | AbstractMesh) -> int:
    """Counts the shards that rows are spread over: data × fsdp."""
    return mesh.shape["data"] * mesh.shape["fsdp"]
