"""What the chips of a topology can do: facts of the vendor's, a row each.

Nothing here asks a device; a topology is a name such as `v4:2x2x4`.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from dpo_jax.errors import ConfigError, unknown

GIB = 2**30
TORUS_2D = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
TORUS_3D = (
    *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4"),
    *("4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16"),
)


class Chip(NamedTuple):
    """A kind of chip; bytes and speeds are those of one.

    Attributes:
      kinds: as jax names its devices, `device_kind`.
      flops: FLOP/s of dense bfloat16 products.
      memory: bytes of its HBM.
      memory_speed: bytes a second to and from it.
      link_speed: bytes a second that it receives over all links to its neighbours.
      slices: shapes that can be booked, the smallest first.
    """

    kinds: tuple[str, ...]
    flops: float
    memory: int
    memory_speed: float
    link_speed: float
    slices: tuple[str, ...]


# Source: cloud.google.com/tpu/docs, the page of each version (peak compute per chip,
# HBM capacity and bandwidth, interconnect). Where a page gives both directions of the
# links together (v5e 400 GB/s, v6e 800 GB/s), half of it is received; v4 and v5p say
# 2400 and 4800 Gbit/s of one direction: 6 links of 50 and 100 GB/s.
CHIPS: dict[str, Chip] = {
    "v4": Chip(("TPU v4",), 275e12, 32 * GIB, 1228e9, 300e9, TORUS_3D),
    "v5p": Chip(("TPU v5", "TPU v5p"), 459e12, 95 * GIB, 2765e9, 600e9, TORUS_3D),
    "v5e": Chip(("TPU v5 lite", "TPU v5e"), 197e12, 16 * GIB, 819e9, 200e9, TORUS_2D),
    "v6e": Chip(("TPU v6 lite", "TPU v6e"), 918e12, 32 * GIB, 1640e9, 400e9, TORUS_2D),
}


def of_kind(device_kind: str) -> Chip | None:
    """Finds a chip by jax's name of its devices; None of any other device."""
    return next((c for c in CHIPS.values() if device_kind in c.kinds), None)


def parse(topology: str) -> tuple[str, tuple[int, ...]]:
    """Splits `v4:2x2x4` into the chip's name and the sides; `cpu:8` into cpu and (8,).

    Raises:
      ConfigError: if it is written in another way, or the kind is not known.
    """
    name, _, sides = topology.partition(":")
    if name not in (*CHIPS, "cpu"):
        raise ConfigError(unknown("--topology", name, (*CHIPS, "cpu")))
    if not re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3}){0,2}", sides):
        raise ConfigError(
            f"--topology={topology!r}: write it as 'v4:2x2x4', 'v5e:4x4' or 'cpu:8'"
        )
    return name, tuple(map(int, sides.split("x")))


def count(sides: Sequence[int]) -> int:
    """Counts the chips of a topology."""
    return math.prod(sides)
