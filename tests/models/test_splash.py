"""The TPU kernel, imitated on CPU, equals the dense backend."""

import forest_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.models import attention, splash

TOKENS, HEADS, KV_HEADS, WIDTH = 200, 4, 2, 16  # padded to 256


def cells(*rows):
    return forest_cases.cells(TOKENS, rows)


PACKED = cells([(60, 20), (40, 50)], [(150, 30)])
SHARED = cells([(60, 20, 30), (40, 20, 10)], [(100, 30, 40)])


def inputs():
    draw = np.random.default_rng(0).normal
    heads = (HEADS, KV_HEADS, KV_HEADS, HEADS)
    return [jnp.asarray(draw(size=(2, TOKENS, n, WIDTH)), jnp.float32) for n in heads]


def graded(run, cells):
    """Compiles `run` and its gradient, slopes where tokens are real."""
    q, k, v, slopes = inputs()
    slopes = slopes * (cells.docs > 0)[..., None, None]

    def total(q, k, v):
        out = run(q, k, v)
        return (out * slopes).sum(), out * (cells.docs > 0)[..., None, None]

    step = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)
    (_, out), grads = jax.jit(step)(q, k, v)
    return out, *grads


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "shown", "window", "softcap"),
    [
        ("by_documents", PACKED, 0, 0.0),
        ("by_documents", PACKED, 0, 5.0),
        ("by_mask", SHARED, 0, 0.0),
        ("by_mask", SHARED, 33, 5.0),
    ],
)
def test_values_and_gradients_equal_those_of_the_dense_backend(
    name, shown, window, softcap
):
    """With grouped queries, under jit, in rows that are not whole blocks."""
    mask = attention.BACKENDS["dense"].seen(shown, window)

    def kernel(q, k, v):
        seen = shown.docs if name == "by_documents" else mask
        run = getattr(splash, name)
        return run(q, k, v, seen, 0.3, softcap, interpret=True)

    def dense(q, k, v):
        return attention.BACKENDS["dense"].attend(q, k, v, mask, 0.3, softcap)

    for ours, theirs in zip(graded(kernel, shown), graded(dense, shown), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
        assert np.abs(theirs).max() > 0.1
