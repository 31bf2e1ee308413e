"""The mesh: data × fsdp × tensor, over all devices of all processes.

This room knows nothing of models or data.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from dpo_jax.errors import DeviceError

AXES = ("data", "fsdp", "tensor")


def mesh_sizes(data: int, fsdp: int, tensor: int, *, devices: int) -> tuple[int, ...]:
    """Resolves a −1 to the devices that the other axes leave.

    Raises:
      DeviceError: if the sizes do not multiply to `devices`.
    """
    asked = (data, fsdp, tensor)
    named = ", ".join(f"mesh.{axis}={n}" for axis, n in zip(AXES, asked, strict=True))
    if asked.count(-1) > 1 or any(n < 1 and n != -1 for n in asked):
        raise DeviceError(f"{named}: sizes are at least 1; one of them may be -1")
    fixed = math.prod(n for n in asked if n != -1)
    if devices % fixed or (-1 not in asked and fixed != devices):
        raise DeviceError(
            f"{named} asks for a multiple of {fixed} devices, there are {devices}; "
            "the product of the axes must be the number of devices (one may be -1)"
        )
    return tuple(devices // fixed if n == -1 else n for n in asked)


def make_mesh(
    data: int, fsdp: int, tensor: int, devices: Sequence[Any] | None = None
) -> Mesh:
    """Lays devices out as data × fsdp × tensor; −1 stands for the rest.

    Args:
      data: shards of rows.
      fsdp: shards of rows, and of parameters along their input width.
      tensor: shards of heads, hidden units and vocabulary.
      devices: to lay out, such as those of a topology; None = all there are.

    Raises:
      DeviceError: if the sizes do not fit the devices.
    """
    found = jax.devices() if devices is None else devices
    sizes = mesh_sizes(data, fsdp, tensor, devices=len(found))
    auto = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(sizes, AXES, axis_types=auto, devices=devices)


def platform() -> str:
    """Names the kind of the devices in `jax.set_mesh`; without one, of the default's.

    A mesh may hold devices that this machine does not have.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def row_shards(mesh: Mesh) -> int:
    """Counts the shards that rows are spread over: data × fsdp."""
    return mesh.shape["data"] * mesh.shape["fsdp"]
