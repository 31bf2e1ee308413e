"""Meshes, rules and arrays on eight fake devices."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from dpo_jax.errors import DeviceError
from dpo_jax.models.decoder import abstract_params
from dpo_jax.models.spec import preset
from dpo_jax.sharding import arrays, rules
from dpo_jax.sharding import mesh as mesh_lib
from dpo_jax.train import optimizer, step


def test_the_rest_of_the_devices():
    assert mesh_lib.mesh_sizes(-1, 2, 2, devices=8) == (2, 2, 2)
    assert mesh_lib.mesh_sizes(2, -1, 1, devices=8) == (2, 4, 1)
    assert mesh_lib.mesh_sizes(8, 1, 1, devices=8) == (8, 1, 1)


@pytest.mark.parametrize(
    "sizes, message",
    [
        ((-1, -1, 1), "mesh.data=-1, mesh.fsdp=-1.*one of them may be -1"),
        ((0, 1, 1), "mesh.data=0.*at least 1"),
        ((-2, 1, 1), "mesh.data=-2.*at least 1"),
        ((16, 1, 1), "of 16 devices, there are 8; use .* tensor = 8×1×1$"),
        ((2, 2, 1), "of 4 devices, there are 8; use .* = 2×2×2 or 2×4×1 or 4×2×1$"),
        ((-1, 3, 1), "of 3 devices, .* = 1×8×1 or 2×4×1 or 4×2×1 or 8×1×1$"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(DeviceError, match=message):
        mesh_lib.mesh_sizes(*sizes, devices=8)


@dataclasses.dataclass(frozen=True)
class Chip:
    """As much of a TPU as a mesh is made of."""

    id: int
    coords: tuple[int, int, int]
    slice_index: int
    process_index: int
    platform: str = "tpu"
    device_kind: str = "TPU v4"
    core_on_chip: int = 0


def slices(number, sizes=(2, 2, 2)):
    """Invents slices of 2 × 2 × 2 chips, four to a process."""
    corners = [c[::-1] for c in itertools.product(*map(range, reversed(sizes)))]
    chips = itertools.product(range(number), corners)
    return [Chip(i, c, slice_, i // 4) for i, (slice_, c) in enumerate(chips)]


@pytest.mark.parametrize(
    "asked, over",
    [((2, -1, 1), (2, 1, 1)), ((1, -1, 2), (1, 2, 1)), ((1, 1, -1), (1, 1, 2))],
)
def test_several_slices_lie_along_data_then_fsdp_then_tensor(asked, over, caplog):
    """The mesh, cut in two along one axis, is one slice beside the other."""
    with caplog.at_level("WARNING", logger="absl"):
        mesh = mesh_lib.make_mesh(*asked, slices(2))
    halves = np.split(mesh.devices, 2, axis=over.index(2))
    assert [{d.slice_index for d in half.flat} for half in halves] == [{0}, {1}]
    assert {chip.id for chip in mesh.devices.flat} == set(range(16))
    assert ("mesh.tensor=16 spans 2 slices" in caplog.text) == (over[2] > 1)


def test_four_slices_may_lie_along_two_axes():
    assert mesh_lib.slices_over((2, 8, 1), 4) == (2, 2, 1)
    assert mesh_lib.slices_over((8, 2, 1), 4) == (4, 1, 1)
    assert mesh_lib.slices_over((6, 1, 4), 4) == (2, 1, 2)


@pytest.mark.parametrize("missing", [0, 15])
def test_devices_that_form_no_whole_slices_are_refused(missing):
    """One chip of two slices is gone, and another that makes up for the number."""
    chips = slices(2)
    del chips[missing]
    with pytest.raises(DeviceError, match="15 devices in 2 slices make no mesh"):
        mesh_lib.make_mesh(1, -1, 1, chips)
    hole = [c for c in slices(1, (2, 2, 4)) if c.id not in (1, 6)]
    with pytest.raises(DeviceError, match="14 devices in 1 slices make no mesh"):
        mesh_lib.make_mesh(1, -1, 1, hole)


def test_rows_lie_over_data_and_fsdp():
    mesh = mesh_lib.make_mesh(2, 2, -1)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert list(mesh.devices.flat) == jax.devices()
    assert mesh_lib.row_shards(mesh) == 4
    assert arrays.row_sharding(mesh, leading=1).spec == P(None, ("data", "fsdp"))
    place = arrays.row_sharding(mesh, leading=1)
    assert arrays.rows_here(place, 8).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_global_arrays_hold_the_rows_in_order_and_come_back():
    mesh = mesh_lib.make_mesh(4, 1, 2)
    rows = np.arange(24).reshape(1, 8, 3)
    whole = arrays.to_global({"x": rows}, arrays.row_sharding(mesh, leading=1))["x"]
    assert {shard.data.shape for shard in whole.addressable_shards} == {(1, 2, 3)}
    np.testing.assert_array_equal(whole, rows)
    np.testing.assert_array_equal(arrays.to_every_host(whole), rows)
    out = jax.jit(jnp.sum, out_shardings=arrays.replicated(mesh))(whole)
    assert jax.device_get(out) == rows.sum()


def test_activations_stay_spread_by_rows():
    mesh = mesh_lib.make_mesh(2, 4, 1)
    with jax.set_mesh(mesh):
        out = jax.jit(arrays.constrain_rows)(jnp.ones((8, 2)))
    assert out.sharding.spec[0] == ("data", "fsdp")


OPTIONS = {"b1": 0.9, "b2": 0.99, "eps": 1e-8, "decay": 0.9, "weight_decay": 0.0}
STATE = {
    "tiny": preset("tiny", vocab=64, max_positions=16),
    "tiny_gpt2": preset("tiny_gpt2", vocab=64, max_positions=16),
}


@pytest.mark.parametrize("name", STATE)
@pytest.mark.parametrize("optimizer_name", sorted(optimizer.OPTIMIZERS))
def test_every_leaf_of_a_state_has_a_place(name, optimizer_name):
    """The moments of a parameter lie where it lies; counts lie everywhere."""
    tx = optimizer.direction(optimizer_name, OPTIONS)
    make = lambda params: step.init_state(params, tx, seed=0)  # noqa: E731
    abstract = jax.eval_shape(make, abstract_params(STATE[name]))
    places = rules.shardings(abstract, mesh_lib.make_mesh(2, 2, 2), rules.STATE_RULES)
    leaves = jax.tree.leaves_with_path(places)
    assert len(leaves) == len(jax.tree.leaves(abstract))
    specs = {rules.path_name(path): place.spec for path, place in leaves}
    assert specs["params/layers/attn/q/kernel"] == P(None, "fsdp", "tensor")
    assert specs["params/layers/mlp/down/kernel"] == P(None, "tensor", "fsdp")
    assert specs["step"] == P()
    if optimizer_name == "adamw":
        moments = [n for n in specs if n.endswith("/mu/layers/attn/q/kernel")]
        assert [specs[n] for n in moments] == [P(None, "fsdp", "tensor")]


def test_odd_sizes_are_replicated():
    mesh = mesh_lib.make_mesh(1, 4, 2)
    assert rules.fitting(P("tensor", "fsdp"), (6, 8), mesh) == P("tensor", "fsdp")
    assert rules.fitting(P("tensor", "fsdp"), (7, 8), mesh) == P(None, "fsdp")
    assert rules.fitting(P("tensor", "fsdp"), (8, 6), mesh) == P("tensor", None)
    assert rules.fitting(P("tensor", "fsdp"), (8,), mesh) == P()


def test_an_axis_that_a_rule_loses_is_logged_once(caplog):
    """GPT-2's 50257 tokens over two devices: the table is whole on each, said once."""
    rules._tell_dropped.cache_clear()
    spec, mesh = (
        preset("tiny_gpt2", vocab=50257, max_positions=8),
        mesh_lib.make_mesh(1, 4, 2),
    )
    params = abstract_params(spec)
    tx = optimizer.direction("adamw", OPTIONS)
    state = jax.eval_shape(lambda p: step.init_state(p, tx, seed=0), params)
    with caplog.at_level("WARNING", logger="absl"):
        places = rules.shardings(state, mesh, rules.STATE_RULES)
        rules.shardings(params, mesh, rules.PARAM_RULES)
    assert places.params["embed"]["tokens"].spec == P(None, "fsdp")
    said = [line for line in caplog.messages if "sharding: " in line]
    assert len(said) == 1
    assert "tensor does not divide the 50257 of embed/tokens" in said[0]


def test_the_first_rule_wins_and_an_unmatched_leaf_is_an_error():
    table = ((r"kernel$", P("fsdp")), (r"q/kernel$", P("tensor")))
    assert rules.rule_of("attn/q/kernel", table) == ("kernel", P("fsdp"))
    with pytest.raises(DeviceError, match="no sharding rule matches 'odd/leaf'"):
        rules.shardings(
            {"odd": {"leaf": jnp.ones(3)}}, mesh_lib.make_mesh(8, 1, 1), table
        )


def test_abstract_leaves_carry_their_places():
    mesh = mesh_lib.make_mesh(8, 1, 1)
    abstract = {"embed": {"tokens": jax.ShapeDtypeStruct((16, 8), jnp.float32)}}
    places = rules.shardings(abstract, mesh, rules.PARAM_RULES)
    leaf = rules.with_shardings(abstract, places)["embed"]["tokens"]
    assert leaf.shape == (16, 8) and leaf.sharding == places["embed"]["tokens"]
