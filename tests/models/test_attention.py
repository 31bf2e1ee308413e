"""Who sees whom, derived by hand, and the backends against a NumPy softmax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import errors
from dpo_jax.models import attention as lib
from dpo_jax.models import forest
from dpo_jax.models import spec as spec_lib

SPEC = spec_lib.preset("tiny", vocab=50, max_positions=16)


def row(*values):
    return jnp.array([values], jnp.int32)


# index      0  1  2  3  4  5  6  7
DOCS = row(1, 1, 1, 1, 1, 2, 2, 0)
BRANCHES = row(0, 0, 1, 1, 2, 0, 1, 0)
POSITIONS = row(0, 1, 2, 3, 2, 0, 1, 0)
CELLS = forest.cells_of(DOCS, BRANCHES, POSITIONS)
mask_of = functools.partial(lib.DENSE.seen, CELLS)


def test_forest_mask_equals_a_table_by_hand():
    """Document 1: prompt 0 1, response one 2 3, response two 4; document 2: 5, then 6.

    Token 4 sees the prompt and itself but not the other response; 6 sees 5 and itself;
    the padding 7 sees nothing and is seen by nobody.
    """
    expected = np.array(
        [
            [1, 0, 0, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0, 0, 0],
            [1, 1, 1, 1, 0, 0, 0, 0],
            [1, 1, 0, 0, 1, 0, 0, 0],
            [0, 0, 0, 0, 0, 1, 0, 0],
            [0, 0, 0, 0, 0, 1, 1, 0],
            [0, 0, 0, 0, 0, 0, 0, 0],
        ],
        bool,
    )
    mask = mask_of(0)
    assert mask.shape == (1, 1, 8, 8)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask[0, 0], expected)


def test_window_is_one_of_positions():
    """With W = 2 a query at position p sees p and p − 1.

    Token 4 lies at position 2, so it sees token 1 (position 1) though three rows away,
    and no longer token 0; token 3 (position 3) sees token 2 only.
    """
    mask = np.asarray(mask_of(2))[0, 0]
    seen = {q: list(np.flatnonzero(mask[q])) for q in (1, 2, 3, 4, 6)}
    assert seen == {1: [0, 1], 2: [1, 2], 3: [2, 3], 4: [1, 4], 6: [5, 6]}


def test_a_traced_window_means_what_a_static_one_does():
    narrow = jax.jit(lambda w: mask_of(w))
    for window in (0, 1, 2, 3):
        expected = mask_of(window)
        np.testing.assert_array_equal(narrow(window), expected)


def numpy_attention(q, k, v, mask, scale, softcap=np.inf):
    """Averages in float64, one head at a time."""
    out = np.zeros(q.shape)
    group = q.shape[2] // k.shape[2]
    for h in range(q.shape[2]):
        logits = scale * np.einsum("bte,bse->bts", q[:, :, h], k[:, :, h // group])
        if np.isfinite(softcap):
            logits = softcap * np.tanh(logits / softcap)
        weights = np.exp(np.where(mask[:, 0], logits, -np.inf))
        weights /= weights.sum(-1, keepdims=True)
        out[:, :, h] = np.einsum("bts,bse->bte", weights, v[:, :, h // group])
    return out


def inputs(dtype=np.float32):
    draw = np.random.default_rng(0).normal
    q = draw(size=(1, 8, 4, 6)).astype(dtype)
    k, v = (draw(size=(1, 8, 2, 6)).astype(dtype) for _ in range(2))
    return q, k, v


def test_grouped_queries_agree_with_numpy():
    q, k, v = inputs()
    mask = np.asarray(mask_of(0))
    ours = lib.attention(q, k, v, mask, scale=0.3, backend=lib.DENSE)
    real = slice(0, 7)  # the last token is padding and sees nothing
    theirs = numpy_attention(q[:, real], k[:, real], v[:, real], mask[..., :7, :7], 0.3)
    np.testing.assert_allclose(ours[:, real], theirs, atol=1e-6)


def test_capped_logits_agree_with_numpy():
    q, k, v = inputs()
    mask = np.asarray(mask_of(0))
    ours = lib.attention(q, k, v, mask, scale=2.0, softcap=1.5, backend=lib.DENSE)
    free = lib.attention(q, k, v, mask, scale=2.0, backend=lib.DENSE)
    real = slice(0, 7)
    q, k, v, mask = q[:, real], k[:, real], v[:, real], mask[..., :7, :7]
    theirs = numpy_attention(q, k, v, mask, 2.0, softcap=1.5)
    np.testing.assert_allclose(ours[:, real], theirs, atol=1e-6)
    assert np.abs(ours - free).max() > 0.1


@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_query_that_sees_nothing_is_finite_and_so_is_its_gradient(dtype, softcap):
    q, k, v = (jnp.asarray(x, dtype) for x in inputs())
    mask = jnp.zeros((1, 1, 8, 8), bool)

    def total(q, k, v):
        out = lib.attention(
            q, k, v, mask, scale=0.3, softcap=softcap, backend=lib.DENSE
        )
        return jnp.square(out.astype(jnp.float32)).sum()

    value, grads = jax.value_and_grad(total, argnums=(0, 1, 2))(q, k, v)
    assert np.isfinite(value)
    assert all(bool(jnp.isfinite(g).all()) for g in grads)


def test_what_auto_picks_is_told_once(caplog):
    lib._picked.cache_clear()
    with caplog.at_level("INFO", logger="absl"):
        found = {lib.resolve("auto", dtype="float32") for _ in range(2)}
    assert found == {"xla"}
    told = [r.getMessage() for r in caplog.records if "auto" in r.getMessage()]
    assert told == ["model.attention=auto picks 'xla' on cpu"]


@pytest.mark.parametrize(
    ("name", "platform", "given", "message"),
    [
        ("splash", "cpu", {}, "TPUs, and these devices are cpu; use 'auto'"),
        ("cudnn", "cpu", {}, "NVIDIA GPUs, and these devices are cpu; use"),
        ("cudnn", "gpu", {"dtype": "float32"}, "bfloat16 or float16, and not in float"),
        ("cudnn", "gpu", {"softcap": 50.0}, "does not cap .* does, at 50"),
        ("cudnn", "gpu", {"head_dim": 20}, "takes heads of 8, .* have 20"),
        ("cudnn", "gpu", {"head_dim": 264}, "takes heads of 8, .* have 264"),
    ],
)
def test_a_kernel_is_refused_where_it_cannot_run(name, platform, given, message):
    fine = {"dtype": "bfloat16", "head_dim": 256}
    with pytest.raises(errors.ConfigError, match=message):
        lib.check(name, platform, **(fine | given))
    home = {"splash": "tpu", "cudnn": "gpu"}[name]
    lib.check(name, home, **fine)
    lib.check("xla", platform, **(fine | given))


def test_float16_is_refused_on_cpus():
    """jax has no product of float16 there that sums in float32."""
    with pytest.raises(errors.ConfigError, match="dtype='float16' .* use 'bfloat16'"):
        lib.check("auto", "cpu", dtype="float16", head_dim=8)
    lib.check("auto", "gpu", dtype="float16", head_dim=8)
    lib.check("auto", "cpu", dtype="bfloat16", head_dim=8)


@pytest.mark.parametrize(
    ("platform", "dtype", "softcap", "expected"),
    [
        ("cpu", "bfloat16", 0.0, "xla"),
        ("gpu", "bfloat16", 0.0, "cudnn"),
        ("gpu", "float16", 0.0, "cudnn"),
        ("gpu", "float32", 0.0, "xla"),
        ("gpu", "bfloat16", 50.0, "xla"),
        ("tpu", "float32", 50.0, "splash"),
    ],
)
def test_auto_picks_what_can_run(platform, dtype, softcap, expected, monkeypatch):
    monkeypatch.setattr(lib.mesh, "platform", lambda: platform)
    assert lib.resolve("auto", dtype=dtype, softcap=softcap) == expected
    given = {"dtype": dtype, "softcap": softcap, "shared": False, "windowed": True}
    found = [lib.fitting("auto", tokens=tokens, **given) for tokens in (128, 129)]
    assert found == [lib.DENSE, lib.BACKENDS[expected]]


def test_the_backend_fits_the_rows():
    """XLA computes short rows at once; only plain rows are told by documents.

    A kernel that is asked for by name is what runs, however short the rows are.
    """
    fitting = {
        (name, tokens, plain): lib.fitting(
            name, tokens=tokens, shared=not plain, windowed=False
        )
        for name in ("cudnn", "dense", "splash", "xla")
        for tokens in (32, 128, 129)
        for plain in (False, True)
    }
    expected = {key: lib.BACKENDS[key[0]] for key in fitting}
    for tokens in (32, 128, 129):
        expected["splash", tokens, True] = lib.BY_DOCUMENTS
    for tokens in (32, 128):
        expected |= dict.fromkeys(
            (("xla", tokens, p) for p in (False, True)), lib.DENSE
        )
    assert fitting == expected
