"""Rows with a copy of the prompt for each response: by hand, and against the mask."""

import functools

import forest_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import schema
from dpo_jax.errors import DataError
from dpo_jax.losses import LOSSES
from dpo_jax.models import attention, blockwise, unshared
from dpo_jax.types import Record
from dpo_jax.wiring import checks, objective
from dpo_jax.wiring.data import Data

TOKENS = 21
SHAPES = {"q": (5, TOKENS, 4, 6), "k": (5, TOKENS, 2, 6), "v": (5, TOKENS, 2, 6)}


def cells(*rows):
    return forest_cases.cells(TOKENS, rows)


ROWS = (
    [(6, 4, 5), (2, 1, 1)],  # prefix-shared pairs, the last token a response's
    [(19, 1, 1)],  # full, and nearly all of it prompt: the longer row is 40 of 42
    [(2, 3), (4, 2), (1, 6), (1, 1)],  # packed
    [(2, 3, 1, 4), (7,), (1, 1)],  # three responses that fit; a prompt alone
    [],
)


spread = jax.jit(unshared.spread)


def test_places_by_hand():
    """Prompt a b, responses c and d e; then prompt f, responses g and h; a padding.

    a b c d e f g h · becomes a b c a b d e f g f h · : d, the second of its document,
    stands 2 further, f and g too, h 3 further.
    """
    found = spread(cells([(2, 1, 2), (1, 1, 1)]))
    assert found.sources.shape == (1, 2 * TOKENS)
    assert found.sources[0, :11].tolist() == [0, 1, 2, 0, 1, 3, 4, 5, 6, 5, 7]
    assert found.places[0, :8].tolist() == [0, 1, 2, 5, 6, 7, 8, 10]
    assert found.kept[0].tolist() == [True] * 8 + [False] * (TOKENS - 8)
    docs, _, positions, places = (x[0] for x in found.cells)
    numbers = docs[:11].tolist()
    assert numbers[0] > 0 and (docs[11:] == 0).all()
    assert [n - numbers[0] for n in numbers] == [0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3]
    assert positions[:11].tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 1, 0, 1]
    assert places.tolist() == list(range(2 * TOKENS))
    assert found.fits.tolist() == [True]


def test_packed_rows_stay_as_they_are():
    shown = cells([(2, 3), (4, 2), (1, 6), (1, 1)])
    found = spread(shown)
    assert found.places[0].tolist() == list(range(TOKENS))
    assert found.sources[0, :TOKENS].tolist() == list(range(TOKENS))
    assert found.cells.positions[0, :20].tolist() == shown.positions[0, :20].tolist()
    assert (found.cells.docs[0, :20] > 0).all() and not found.cells.docs[0, 20:].any()


@functools.cache
def inputs():
    draw = np.random.default_rng(0).normal
    return [jnp.asarray(draw(size=shape), jnp.float32) for shape in SHAPES.values()]


SMALL = attention.Backend(  # blocks of 4 tokens, so that a row has several
    attention.IN_BLOCKS.seen,
    lambda q, k, v, seen, scale, softcap: blockwise.attend(
        blockwise.Options(scale, softcap, block=4), q, k, v, *seen
    ),
)


@functools.cache
def graded(name):
    """Compiles (average, its gradients), the window traced."""
    backend = {"unshared": attention.apart(SMALL), "dense": attention.DENSE}[name]
    slopes = jnp.asarray(np.random.default_rng(1).normal(size=SHAPES["q"]), jnp.float32)

    @jax.jit
    def run(q, k, v, cells, window):
        def total(q, k, v):
            out = backend.attend(q, k, v, backend.seen(cells, window), 0.3, 5.0)
            out = jnp.where((cells.docs > 0)[..., None, None], out, 0.0)
            return (out * slopes).sum(), out

        return jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(q, k, v)

    return run


@pytest.mark.parametrize("window", [0, 2, 4])
def test_values_and_gradients_equal_those_under_the_mask(window):
    """With grouped queries and capped logits; padding is 0 and pulls at nothing."""
    args = *inputs(), cells(*ROWS), jnp.int32(window)
    (_, ours), our_grads = graded("unshared")(*args)
    (_, theirs), their_grads = graded("dense")(*args)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    for our, their in zip(our_grads, their_grads, strict=True):
        np.testing.assert_allclose(our, their, atol=1e-5)
        assert np.abs(their).max() > 0.01


def test_a_row_whose_copies_do_not_fit_is_nan_and_no_other():
    """Five responses to a prompt of 15 need 80 places, and there are 42."""
    rows = list(ROWS)
    rows[3] = [(15, 1, 1, 1, 1, 1)]
    (_, out), _ = graded("unshared")(*inputs(), cells(*rows), jnp.int32(0))
    shown = cells(*rows)
    assert np.isnan(out[3][shown.docs[3] > 0]).all()
    rest = np.delete(np.asarray(out), 3, axis=0)
    assert np.isfinite(rest).all()


def test_the_platform_gives_the_kernel_and_unshared_rows_need_no_copies():
    fit = functools.partial(attention.fitting, "unshared", tokens=129)
    assert fit(shared=False, windowed=False) == attention.BACKENDS["xla"]
    tpu = jax.sharding.AbstractDevice("TPU v5 lite", 1, "tpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=tpu)
    with jax.sharding.use_abstract_mesh(mesh):
        assert fit(shared=False, windowed=False) == attention.BY_DOCUMENTS
        assert fit(shared=False, windowed=True) == attention.BACKENDS["splash"]
        shared = fit(shared=True, windowed=False)
    found, longer = shared.seen(cells(*ROWS), 0)  # nothing runs on absent devices
    np.testing.assert_array_equal(longer, found.cells.docs)  # what segments are


def data(*responses):
    tokens = np.zeros(1, np.int32)
    records = [Record(i, tokens, (tokens,) * n) for i, n in enumerate(responses)]
    return Data(None, records, records[:1], {}, "")


def test_documents_of_too_many_responses_are_refused_before_anything_compiles():
    config = schema.base()
    rows = objective.components(config, LOSSES)
    checks.check_data(config, rows, data(2, 3))
    config.model.attention = "unshared"
    checks.check_data(config, rows, data(1, 2))
    with pytest.raises(DataError, match="data.train: row 1 has 3 responses"):
        checks.check_data(config, rows, data(2, 3, 4))
    config.data.layout = "packed"  # each response has its own prompt there
    checks.check_data(config, rows, data(2, 3))


def test_the_response_that_kto_borrows_is_counted():
    config = schema.base()
    config.model.attention, config.loss.name = "unshared", "kto"
    rows = objective.components(config, LOSSES)
    checks.check_data(config, rows, data(1, 1))
    with pytest.raises(DataError, match="room for 1 of a prompt"):
        checks.check_data(config, rows, data(1, 2))
