"""The command `dpo_jax` on a mesh whose devices go round the processes in turn.

On a TPU the wires decide which chips are neighbours in a mesh, and these belong to
several processes. CPUs come in the order of their processes; here they are dealt out
anew before the mesh is made.
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.experimental import mesh_utils

from dpo_jax import cli


def dealt(sizes: Sequence[int], devices: Sequence[Any], **_: bool) -> np.ndarray:
    """Lays out the first device of each process, then the second of each, and so on."""
    numbers: dict[int, int] = {}
    order = []
    for device in devices:
        number = numbers.setdefault(device.process_index, 0)
        numbers[device.process_index] += 1
        order.append((number, device.process_index, device))
    mesh = [device for *_, device in sorted(order)]
    sys.stderr.write(f"processes: {[device.process_index for device in mesh]}\n")
    return np.array(mesh).reshape(sizes)


if __name__ == "__main__":
    mesh_utils.create_device_mesh = dealt
    sys.exit(cli.main(["dpo_jax", *sys.argv[1:]]))
