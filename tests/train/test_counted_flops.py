"""FLOPs of traced programs against numbers counted by hand."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from dpo_jax.train import flops


def count(function, *shapes, trips=1):
    arrays = [jnp.ones(shape) for shape in shapes]
    traced = jax.make_jaxpr(function)(*arrays)
    return flops.counted(traced, trips=lambda eqn: trips).products


def layers(x, weights):
    """Five products of [8, 16] and [16, 16]."""
    return jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, weights)[0].sum()


ONE = 2 * 8 * 16 * 16


def test_a_scan_counts_as_often_as_it_runs():
    assert count(layers, (8, 16), (5, 16, 16)) == 5 * ONE


def test_the_backward_pass_takes_twice_the_forward_pass():
    """And once more where activations are computed again."""
    grad = jax.grad(layers, argnums=(0, 1))
    assert count(grad, (8, 16), (5, 16, 16)) == 15 * ONE
    again = jax.grad(lambda x, w: jax.checkpoint(layers)(x, w), argnums=(0, 1))
    assert count(again, (8, 16), (5, 16, 16)) == 20 * ONE


def test_a_loop_of_unknown_length_counts_as_told():
    def loop(x, w, n):
        return jax.lax.fori_loop(0, n.astype(int)[0], lambda i, c: c @ w, x)

    assert count(loop, (8, 16), (16, 16), (1,), trips=7) == 7 * ONE


def test_the_dearer_branch_counts():
    def either(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)

    assert count(either, (8, 16), (16, 16)) == 2 * ONE


def test_a_kernel_counts_by_what_it_is_given_however_vmap_calls_it():
    """Three rows of [8, 16] in five layers; the products in it are left to others."""

    def double(given, out):
        out[...] = given[...] @ jnp.ones((16, 16))

    shape = jax.ShapeDtypeStruct((8, 16), jnp.float32)
    kernel = pallas.pallas_call(double, out_shape=shape, name="fwd")
    grid = lambda x: jax.lax.scan(  # noqa: E731
        lambda c, _: (jax.vmap(kernel)(c), None), x, length=5
    )
    loop = lambda x: jax.lax.scan(  # noqa: E731
        lambda c, _: (jax.lax.map(kernel, c), None), x, length=5
    )
    for layers in (grid, loop):
        traced = jax.make_jaxpr(layers)(jnp.ones((3, 8, 16)))
        found = flops.counted(traced, trips=lambda eqn: 1)
        assert found == (0.0, {"fwd": 5 * 3 * 8 * 16})


def test_batched_products():
    of_batch = lambda x, y: jnp.einsum("bij,bjk->bik", x, y)  # noqa: E731
    assert count(of_batch, (3, 8, 16), (3, 16, 16)) == 3 * ONE


def test_what_each_device_does_alone_counts_on_all_of_them():
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(AxisType.Auto,))
    rows, whole = P("rows"), P()
    alone = jax.shard_map(
        lambda x, w: x @ w, mesh=mesh, in_specs=(rows, whole), out_specs=rows
    )
    assert count(alone, (32, 16), (16, 16)) == 4 * ONE
