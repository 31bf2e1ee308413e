"""Every mesh of the TPUs that libtpu describes, process by process; nothing compiles.

A descriptor says which process holds which chip. So what a pod does at its start is
done here: the mesh, the rows that each process lays out, and the global array of them.
"""

import itertools
import math

import jax
import numpy as np
import pytest
from jax.experimental import topologies

from dpo_jax.data import loader
from dpo_jax.data.loader import Loader, Settings
from dpo_jax.errors import DeviceError
from dpo_jax.sharding import arrays
from dpo_jax.sharding import mesh as mesh_lib
from dpo_jax.types import Record
from dpo_jax.wiring import compiling

pytestmark = pytest.mark.tpu

TOPOLOGIES = ("v4:2x2x4", "v4:4x4x4", "v5e:4x4", "v5e:8x8", "v5p:2x2x4", "v6e:4x4")
SIZES = (-1, 1, 2, 4, 8)
PAIRS = 64


@pytest.fixture(autouse=True)
def libtpu():
    pytest.importorskip("libtpu", reason="libtpu is not installed")


def two_slices(topology):
    """Describes two slices of a topology, joined by a slower network."""
    core = compiling.ONE_CORE.get(topology.partition(":")[0])
    more = {} if core is None else {"chip_config_name": core}
    described = topologies.get_topology_desc(topology, "tpu", num_slices=2, **more)
    return described.devices


def valid(devices):
    """Lists the shapes that a user may ask for, each with what it comes to."""
    for asked in itertools.product(SIZES, repeat=3):
        try:
            yield asked, mesh_lib.mesh_sizes(*asked, devices=devices)
        except DeviceError:
            fixed = math.prod(n for n in asked if n != -1)
            fits = fixed == devices if -1 not in asked else devices % fixed == 0
            assert asked.count(-1) > 1 or not fits


def make_loader(shards, rows_here=range):
    """Plans two steps of 64 rows or more, each row known by its record."""
    records = [
        Record(i, np.full(3, i + 1, np.int32), (ids,) * 2, comparisons=((0, 1),))
        for i, ids in enumerate(np.full(2, i + 1, np.int32) for i in range(PAIRS))
    ]
    settings = Settings(PAIRS, 2, "padded", 8, shards, rows_here=rows_here)
    return Loader(records, loader.eval_steps(PAIRS, pairs=PAIRS), settings)


def processes_of(mesh):
    return sorted({device.process_index for device in mesh.devices.flat})


def laid_out(mesh, monkeypatch):
    """Does in turn what each process does: its rows of a step, as a global array.

    Yields:
      (process, the rows that it filled, shape of the global array, {device: piece}).
      The pieces are asked of the same callback that jax would call.
    """
    place = arrays.row_sharding(mesh, leading=1)
    for process in processes_of(mesh):
        filled = []

        def rows_here(n, filled=filled):
            filled.append(arrays.rows_here(arrays.row_sharding(mesh), n))
            return filled[-1]

        def of_devices(shape, sharding, callback, process=process):
            slices = sharding.devices_indices_map(shape).items()
            here = {d: callback(s) for d, s in slices if d.process_index == process}
            return shape, here

        with monkeypatch.context() as patch:
            patch.setattr(jax, "process_index", lambda process=process: process)
            patch.setattr(jax, "make_array_from_callback", of_devices)
            batch = make_loader(mesh_lib.row_shards(mesh), rows_here).batch_at(0)
            yield process, filled[0].tolist(), *arrays.to_global(batch.tokens, place)


def check(mesh, monkeypatch):
    """Holds all processes' pieces against the batch that one process would make.

    That the rows of a device are those of its place along data and fsdp, is counted
    here from the mesh itself.
    """
    wanted = make_loader(mesh_lib.row_shards(mesh)).batch_at(0).tokens
    found, shards = np.full_like(wanted, -1), mesh_lib.row_shards(mesh)
    grid = mesh.devices.reshape(shards, -1)
    per_shard = wanted.shape[1] // shards
    for process, filled, shape, pieces in laid_out(mesh, monkeypatch):
        mine = [[d.process_index == process for d in shard] for shard in grid]
        held = np.flatnonzero(np.repeat(np.any(mine, axis=1), per_shard))
        assert filled == held.tolist() and shape == wanted.shape
        assert pieces.keys() == set(grid[np.array(mine)])
        for device, piece in pieces.items():
            (shard,) = np.flatnonzero((grid == device).any(axis=1))
            rows = slice(shard * per_shard, (shard + 1) * per_shard)
            np.testing.assert_array_equal(piece, wanted[:, rows])
            found[:, rows] = piece
    np.testing.assert_array_equal(found, wanted)


def told(name, mesh):
    """Writes a line of the table."""
    grid = mesh.devices.reshape(mesh_lib.row_shards(mesh), -1)
    holders = [{device.process_index for device in shard} for shard in grid]
    first = [str(shard) for shard, found in enumerate(holders) if 0 in found]
    return (
        f"{name:12} {'×'.join(map(str, mesh.shape.values())):8} "
        f"{mesh.size:3} chips {len(processes_of(mesh)):3} processes   "
        f"each shard of rows on {len(holders[0])}; process 0 holds {' '.join(first)}"
    )


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_each_process_lays_out_the_rows_that_it_holds(name, table, monkeypatch):
    devices, seen = compiling.tpus(name), {}
    for asked, sizes in valid(len(devices)):
        mesh = mesh_lib.make_mesh(*asked, devices)
        assert tuple(mesh.shape.values()) == sizes
        assert set(mesh.devices.flat) == set(devices)
        if sizes not in seen:
            seen[sizes] = mesh
            check(mesh, monkeypatch)
            table.append(told(name, mesh))
        assert (mesh.devices == seen[sizes].devices).all()
    assert len(seen) >= 10


@pytest.mark.parametrize("name", ["v4:2x2x4", "v5e:4x4"])
def test_slices_lie_along_data(name, table, monkeypatch):
    """A slower network joins two slices: only gradients are summed over it."""
    devices = two_slices(name)
    assert {device.slice_index for device in devices} == {0, 1}
    for asked in ((2, -1, 1), (4, -1, 2), (-1, 2, 4), (1, -1, 1), (1, 8, -1)):
        mesh = mesh_lib.make_mesh(*asked, devices)
        assert set(mesh.devices.flat) == set(devices)
        slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
        over = 0 if mesh.shape["data"] > 1 else 1  # the axis that both slices share
        halves = np.split(slices, 2, over)
        assert [set(half.flat) for half in halves] == [{0}, {1}]
        check(mesh, monkeypatch)
        table.append(told(f"2 × {name}", mesh))
