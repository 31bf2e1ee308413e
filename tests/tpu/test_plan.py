"""What `plan` takes for granted of topologies, against libtpu; little compiles."""

import math

import pytest

from dpo_jax import booking
from dpo_jax.cli import common
from dpo_jax.sharding import chips
from dpo_jax.wiring import compiling, forecast

pytestmark = pytest.mark.tpu

# topology -> (chips, processes, cores that a chip's device joins, jax's name of it)
KNOWN = {
    "v4:2x2x1": (4, 1, 2, "TPU v4"),
    "v4:2x2x4": (16, 4, 2, "TPU v4"),
    "v5p:2x2x1": (4, 1, 2, "TPU v5"),
    "v5p:4x4x4": (64, 16, 2, "TPU v5"),
    "v5e:2x2": (4, 1, 1, "TPU v5 lite"),
    "v5e:4x4": (16, 4, 1, "TPU v5 lite"),
    "v6e:2x4": (8, 2, 1, "TPU v6 lite"),
    "v6e:4x4": (16, 4, 1, "TPU v6 lite"),
}


@pytest.fixture(autouse=True)
def libtpu():
    pytest.importorskip("libtpu", reason="libtpu is not installed")


@pytest.mark.parametrize("topology", KNOWN)
def test_a_device_is_a_whole_chip(topology):
    """Counted in cores, memory would be half of a chip's on v4."""
    devices = compiling.tpus(topology)
    name, sides = chips.parse(topology)
    count, processes, cores, kind = KNOWN[topology]
    assert len(devices) == count == chips.count(sides)
    assert len({device.process_index for device in devices}) == processes
    assert {device.num_cores for device in devices} == {cores}
    assert {device.device_kind for device in devices} == {kind}
    assert chips.of_kind(kind) is chips.CHIPS[name]


@pytest.mark.parametrize("name", chips.CHIPS)
def test_slices_that_are_looked_at_exist(name):
    sizes = [math.prod(map(int, s.split("x"))) for s in chips.CHIPS[name].slices]
    assert sizes == sorted(sizes)
    for sides, size in zip(chips.CHIPS[name].slices, sizes, strict=True):
        if size <= 64:
            assert len(compiling.tpus(f"{name}:{sides}")) == size


def config(**keys):
    """DPO from scratch with the parameters spread over all chips."""
    made = common.load_config("dpo")
    given = {"model.preset": "tiny", "data.max_tokens": 64, "batch.pairs": 8}
    given |= {"data.train": "sentiment", "data.max_prompt_tokens": 16}
    given |= {"mesh.data": 1, "mesh.fsdp": -1, "model.dtype": "bfloat16"}
    made.update_from_flattened_dict({**given, **keys})
    return made


def test_a_plan_for_a_slice_fits_and_is_bounded():
    """Processes of four chips hold two rows each of eight; the smallest slice does."""
    planned = booking.Planned(config())
    made = booking.plan(planned, "v5e:2x4")
    assert made.limit == 16 * 2**30 and made.fits is True and not made.fake
    held = [row for rows in made.processes.values() for row in rows]
    assert sorted(held) == list(range(made.shape.rows))
    assert made.bound is not None and 0 < made.bound.mfu <= 1
    assert made.bound.compute == pytest.approx(made.counted_flops / (8 * 197e12))
    step = made.programs[-1]
    assert step.memory is not None and step.memory.aliased > 0
    found = booking.smallest(planned, made, compile=False)
    assert [each.topology for each in found] == ["v5e:2x2"]
    assert found[0].reckoned > forecast.reckoned(
        booking.parts_of(planned, compiling.tpus("v5e:2x4")), made
    )
