"""Attention and log-probs on a GPU against exact ones; for `make gpu`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import logps
from dpo_jax.models import attention, decoder
from dpo_jax.models.spec import preset
from dpo_jax.types import Batch
from tests.models.forest_cases import cells

pytestmark = pytest.mark.gpu

TOKENS = 512
ROWS = [
    [(40, 100, 60), (7, 130, 20), (100, 1, 30)],  # prefix-shared, then padding
    [(100, 50), (200, 150), (2, 10)],  # packed
    [(200, 150, 162)],  # full
    [],  # padding alone
]
CELLS = cells(TOKENS, ROWS)
REAL = np.asarray(CELLS.docs > 0)


@pytest.fixture(autouse=True)
def gpu():
    if jax.default_backend() != "gpu":
        pytest.skip("there is no GPU")


@functools.cache
def inputs(heads, features):
    """Draws q, k, v with two kv heads, and the slopes of a sum; float32, host."""
    draw = np.random.default_rng(0).normal
    q, slopes = (draw(size=(len(ROWS), TOKENS, heads, features)) for _ in range(2))
    k, v = (draw(size=(len(ROWS), TOKENS, 2, features)) for _ in range(2))
    return [q, k, v], slopes * REAL[..., None, None]


def graded(backend, heads, features, window, dtype):
    """Returns the averages and the gradients of their weighted sum."""
    arrays, slopes = inputs(heads, features)

    def total(q, k, v, slopes, shown):  # as arguments, or the compiler folds them
        seen = backend.seen(shown, window)
        out = attention.attention(
            q, k, v, seen, scale=features**-0.5, backend=backend
        ).astype(jnp.float32)
        return (out * slopes).sum(), out

    run = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))
    given = [jnp.asarray(x, dtype) for x in arrays]
    (_, out), grads = run(*given, jnp.asarray(slopes, jnp.float32), CELLS)
    return [np.asarray(out)[REAL], *(np.asarray(g, np.float32) for g in grads)]


@functools.cache
def exact(heads, features, window):
    """Computes in float32, products included."""
    with jax.default_matmul_precision("highest"):
        return graded(attention.DENSE, heads, features, window, jnp.float32)


@pytest.mark.parametrize("name", ["cudnn", "xla"])
@pytest.mark.parametrize("window", [0, 33])
@pytest.mark.parametrize(("heads", "features"), [(4, 64), (2, 80), (4, 128), (2, 256)])
def test_a_backend_in_bfloat16_is_as_near_as_rounding_allows(
    name, window, heads, features
):
    """Inputs and weights carry 8 bits: 2⁻⁹ relative each, summed over a row."""
    half = jnp.bfloat16
    backend = attention.fitting(
        name, tokens=TOKENS, shared=True, windowed=bool(window), dtype=half
    )
    found = graded(backend, heads, features, window, half)
    dense = graded(attention.DENSE, heads, features, window, half)
    for ours, plain, theirs in zip(
        found, dense, exact(heads, features, window), strict=True
    ):
        assert np.isfinite(ours).all()
        scale = np.linalg.norm(theirs)
        apart = np.linalg.norm(ours - theirs) / scale
        assert apart < 1e-2
        assert apart < 1.5 * np.linalg.norm(plain - theirs) / scale


def test_auto_runs_cudnn():
    assert attention.resolve("auto", dtype="bfloat16") == "cudnn"
    assert attention.resolve("auto", dtype="float32") == "xla"


@functools.cache
def scored(dtype, backend, device):
    """Returns each token's log-prob after the one before it, by a small decoder."""
    spec = preset("tiny", vocab=1003, max_positions=TOKENS)
    tokens = np.random.default_rng(1).integers(1003, size=REAL.shape).astype(np.int32)
    parents = np.broadcast_to(np.arange(TOKENS - 1, dtype=np.int32), REAL[:, 1:].shape)
    rows = dict.fromkeys(Batch._fields[4:10])
    docs, branches, positions, _ = map(np.asarray, CELLS)
    batch = Batch(
        tokens=tokens, positions=positions, docs=docs, branches=branches, **rows
    )
    precision = "highest" if dtype == "float32" else "default"
    with jax.default_device(device), jax.default_matmul_precision(precision):
        module = decoder.Decoder(spec, dtype=jnp.dtype(dtype), attention=backend)
        params = decoder.init_params(spec, jax.random.key(0))
        # sharper than fresh ones, so that attention and logits matter
        params = jax.tree.map(lambda x: 3 * x if x.ndim > 2 else x, params)

        def run(params, batch):
            hidden, head = module.apply({"params": params}, batch)
            targets = batch.tokens[:, 1:]
            return logps.token_logps(hidden, head, parents, targets, chunk=128).logps

        return np.asarray(jax.jit(run)(params, batch))[REAL[:, 1:]]


def test_float32_log_probs_are_those_of_the_cpu():
    """Products of float32 must not be rounded to tf32, which would show as 1e-3."""
    ours = scored("float32", "auto", jax.devices()[0])
    theirs = scored("float32", "dense", jax.devices("cpu")[0])
    assert np.std(theirs) > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_bfloat16_log_probs_are_near_the_exact_ones_with_every_backend():
    exactly = scored("float32", "dense", jax.devices("cpu")[0])
    dense = scored("bfloat16", "dense", jax.devices()[0])
    for backend in ("cudnn", "xla"):
        ours = scored("bfloat16", backend, jax.devices()[0])
        apart = np.abs(ours - exactly).mean()
        assert apart < 1.2 * np.abs(dense - exactly).mean()
        assert apart < 2e-2
