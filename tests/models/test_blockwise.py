"""The blockwise backend equals the dense one and computes no block in vain."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.models import attention, blockwise, forest

TOKENS, BLOCK = 21, 4  # rows that are not whole blocks
SHAPES = {"q": (4, TOKENS, 4, 6), "k": (4, TOKENS, 2, 6), "v": (4, TOKENS, 2, 6)}


def row(*documents):
    """Lays out (prompt, *responses) lengths, then padding: [3, TOKENS]."""
    cells = []
    for doc, (prompt, *responses) in enumerate(documents, start=1):
        cells += [(doc, 0, p) for p in range(prompt)]
        for branch, length in enumerate(responses, start=1):
            cells += [(doc, branch, prompt + p) for p in range(length)]
    return np.array(cells + [(0, 0, 0)] * (TOKENS - len(cells)), np.int32).T


ROWS = [
    row((3, 5)),  # padded
    row((2, 3), (4, 2), (1, 6), (1, 1)),  # packed
    row((6, 4, 5), (2, 1, 1)),  # prefix-shared
    row(),
]
CELLS = forest.cells_of(*map(jnp.asarray, np.stack(ROWS, axis=1)))


@functools.cache
def inputs(dtype=jnp.float32):
    draw = np.random.default_rng(0).normal
    return [jnp.asarray(draw(size=shape), dtype) for shape in SHAPES.values()]


@functools.cache
def both(softcap):
    """Compiles value and gradients by (blockwise, dense), the window traced."""
    slopes = jnp.asarray(np.random.default_rng(1).normal(size=SHAPES["q"]), jnp.float32)
    slopes = slopes * (CELLS.docs > 0)[..., None, None]  # nothing reads padding
    options = blockwise.Blocking(0.3, softcap, block=BLOCK, group=3)

    def blocks(q, k, v, window):
        return blockwise.attend(options, q, k, v, CELLS, window)

    def dense(q, k, v, window):
        mask = attention.BACKENDS["dense"].seen(CELLS, window)
        return attention.BACKENDS["dense"].attend(q, k, v, mask, 0.3, softcap)

    def graded(run):
        def total(*args):
            out = run(*args)
            return (out.astype(jnp.float32) * slopes).sum(), out

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))

    return graded(blocks), graded(dense)


@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize("window", [0, 2, 3, 7])
def test_values_and_gradients_equal_those_of_the_dense_backend(window, softcap):
    """With grouped queries, in every layout, in rows that are not whole blocks."""
    (_, out), grads = both(softcap)[0](*inputs(), window)
    (_, dense), dense_grads = both(softcap)[1](*inputs(), window)
    real = np.asarray(CELLS.docs > 0)
    np.testing.assert_allclose(out[real], dense[real], atol=1e-5)
    for ours, theirs in zip(grads, dense_grads, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        assert np.abs(theirs).max() > 0.1


def test_half_precision_stays_as_near_as_the_dense_backend():
    """Both keep logits and sums in float32, and round weights and results."""
    (_, exact), exact_grads = both(0.0)[1](*inputs(), 0)
    (_, out), grads = both(0.0)[0](*inputs(jnp.bfloat16), 0)
    assert out.dtype == grads[1].dtype == jnp.bfloat16
    real = np.asarray(CELLS.docs > 0)
    np.testing.assert_allclose(out[real].astype(np.float32), exact[real], atol=0.03)
    for ours, theirs in zip(grads, exact_grads, strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours.astype(np.float32), theirs, atol=0.03 * scale)


def test_a_query_that_sees_nothing_gives_0_and_so_does_its_gradient():
    def total(q, k, v):
        options = blockwise.Blocking(0.3, 0.0, block=BLOCK, group=3)
        out = blockwise.attend(options, q, k, v, CELLS, jnp.int32(0))
        return jnp.square(out + 1).sum(), out  # padding has slopes here, unlike above

    (_, out), grads = jax.jit(
        jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)
    )(*inputs())
    nothing = np.asarray(CELLS.docs == 0)
    for values in (out, *grads):
        np.testing.assert_array_equal(values[nothing], 0)
        assert np.isfinite(values).all()


def test_only_blocks_that_hold_a_visible_key_are_planned():
    """Rows of 24 in blocks of 4, by hand.

    Padded, 8 tokens: blocks 0 and 1 need 1 and 2. Packed, documents at [0, 5), [5, 11),
    [11, 18), [18, 20): block 1 holds tokens of the first, so it needs 2; block 2 begins
    in the second, at 5 in block 1: 2; block 3 begins at 12 in the third, at 11 in block
    2: 2; block 4 likewise, back to block 2: 3. Shared, [0, 15), [15, 19): 1, 2, 3, 4,
    and block 4 begins in the second document, at 15 in block 3: 2. Padding needs none.
    """
    cells = jax.tree.map(lambda x: blockwise.padded(x, BLOCK), CELLS)
    plan = blockwise.plan_of(cells, jnp.int32(0), BLOCK)
    needs = np.zeros(len(plan.order), int)
    needs[plan.order] = plan.needs
    assert needs.reshape(4, 6).tolist() == [
        [1, 2, 0, 0, 0, 0],
        [1, 2, 2, 2, 3, 0],
        [1, 2, 3, 4, 2, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    assert list(plan.needs) == sorted(needs, reverse=True)


@pytest.mark.parametrize("window", [1, 2, 5, 9])
def test_a_window_cuts_the_plan_but_never_what_is_visible(window):
    mask = np.asarray(attention.BACKENDS["dense"].seen(CELLS, window))[:, 0]
    first = np.asarray(forest.first_seen(CELLS, window))
    real = np.asarray(CELLS.docs > 0)
    assert (first <= mask.argmax(-1))[real].all()
    assert (first == TOKENS)[~real].all()
    whole = np.asarray(forest.first_seen(CELLS, 0))
    assert (first >= whole).all()
    assert (first > whole).any()


def test_rows_on_a_mesh_equal_rows_on_one_device():
    """Rows over (data, fsdp), heads over tensor; no shard waits for another's rows."""
    if len(jax.devices()) < 8:
        pytest.skip("needs 8 devices")
    (_, out), grads = both(0.0)[0](*inputs(), 0)
    mesh = jax.make_mesh(
        (2, 2, 2),
        ("data", "fsdp", "tensor"),
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
    )
    place = jax.NamedSharding(mesh, jax.P(("data", "fsdp"), None, "tensor"))
    with jax.set_mesh(mesh):
        split = [jax.device_put(x, place) for x in inputs()]
        both.cache_clear()
        step = both(0.0)[0]
        (_, out_split), grads_split = step(*split, 0)
        text = step.lower(*split, 0).compile().as_text()
    both.cache_clear()
    np.testing.assert_allclose(out_split, out, atol=1e-6)
    for ours, theirs in zip(grads_split, grads, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    for name in ("all-gather(", "all-to-all(", "collective-permute("):
        assert name not in text, name
