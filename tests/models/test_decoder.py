"""The decoder: layouts agree, options change nothing, parameters start as said."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_cases import CONFIGS

from dpo_jax import errors
from dpo_jax.models import decoder as lib
from dpo_jax.models import hf
from dpo_jax.models import spec as spec_lib
from dpo_jax.train.leaves import flat
from dpo_jax.types import Batch

SPECS = {
    name: spec_lib.preset(name, vocab=50, max_positions=16)
    for name in ("tiny", "tiny_gpt2")
}
SPECS["gemma3"] = hf.spec_of(CONFIGS["gemma3_text"])  # its layers differ
PROMPT, FIRST, SECOND, OTHER = [3, 1, 4], [1, 5], [9, 2, 6], [5, 3, 5, 8]


def rows_batch(rows):
    """Fills a Batch with rows of (token, position, doc, branch)."""
    fields = np.array(rows, np.int32).transpose(2, 0, 1)
    none = np.zeros((len(rows), 0), np.int32)
    return Batch(*fields, *[none] * 6)


def row(*pieces, pad=0):
    """Lays out (tokens, first position, doc, branch) pieces, then padding."""
    cells = [
        (token, first + n, doc, branch)
        for tokens, first, doc, branch in pieces
        for n, token in enumerate(tokens)
    ]
    return cells + [(0, 0, 0, 0)] * pad


def straight(tokens, pad=0):
    """Lays out one plain sequence."""
    return row((tokens, 0, 1, 0), pad=pad)


@functools.cache
def random_params(name):
    """Draws parameters with random biases and norms: ones and zeros hide errors."""
    params = lib.init_params(SPECS[name], jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [
        leaf + 0.1 * jax.random.normal(key, leaf.shape)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, noisy)


@functools.cache
def forward(name):
    decoder = lib.Decoder(SPECS[name])
    return jax.jit(lambda params, batch: decoder.apply({"params": params}, batch)[0])


def hidden(name, rows):
    return np.asarray(forward(name)(random_params(name), rows_batch(rows)))


@pytest.mark.parametrize("name", SPECS)
def test_padded_packed_and_prefix_shared_rows_agree_with_the_separate_sequences(name):
    """Row 0 is one sequence alone; in the second batch rows are padded to 13 tokens.

    There, row 0 is padded, 1 packed, 2 shares a prefix; 3 and 4 are sequences alone.
    """
    first = hidden(name, [straight(PROMPT + FIRST)])[0]
    doc_1, doc_2 = (PROMPT + FIRST, 0, 1, 0), (OTHER, 0, 2, 0)
    shared = (PROMPT, 0, 1, 0), (FIRST, 3, 1, 1), (SECOND, 3, 1, 2), doc_2
    rows = [
        straight(PROMPT + FIRST, pad=8),
        row(doc_1, doc_2, pad=4),
        row(*shared, pad=1),
        straight(PROMPT + SECOND, pad=7),
        straight(OTHER, pad=9),
    ]
    padded, packed, shared, second, other = hidden(name, rows)
    np.testing.assert_allclose(padded[:5], first, atol=1e-4)
    np.testing.assert_allclose(packed[:5], first, atol=1e-4)
    np.testing.assert_allclose(packed[5:9], other[:4], atol=1e-4)
    np.testing.assert_allclose(shared[:5], first, atol=1e-4)
    np.testing.assert_allclose(shared[5:8], second[3:6], atol=1e-4)
    np.testing.assert_allclose(shared[8:12], other[:4], atol=1e-4)


@pytest.mark.parametrize("name", SPECS)
def test_a_later_token_changes_nothing_before_it(name):
    one = hidden(name, [straight([3, 1, 4, 1, 5])])[0]
    two = hidden(name, [straight([3, 1, 4, 7, 5])])[0]
    np.testing.assert_array_equal(one[:3], two[:3])
    assert np.abs(one[3] - two[3]).max() > 1e-3


@functools.cache
def loss_of(name, remat="none"):
    decoder = lib.Decoder(SPECS[name], remat=remat)
    batch = rows_batch([straight(PROMPT + FIRST, pad=2)])

    def loss(params):
        hidden, head = decoder.apply({"params": params}, batch)
        logits = hidden[:, :5].astype(jnp.float32) @ head.kernel.astype(jnp.float32)
        return jnp.square(logits).mean()

    return jax.jit(jax.value_and_grad(loss))(random_params(name))


@pytest.mark.parametrize("name", SPECS)
def test_remat_changes_neither_the_loss_nor_its_gradient(name):
    plain = loss_of(name)
    for remat in ("block", "elementwise"):
        again = loss_of(name, remat=remat)
        np.testing.assert_allclose(plain[0], again[0], rtol=1e-6)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5),
            plain[1],
            again[1],
        )


def kept_by(remat):
    """Returns the shapes of what the layers keep for the backward pass, in a jit."""
    spec = SPECS["tiny"]
    decoder = lib.Decoder(spec, remat=remat)
    batch = rows_batch([straight(PROMPT, pad=140 - len(PROMPT))])  # blockwise attention

    def total(params):
        return decoder.apply({"params": params}, batch)[0].sum()

    pull = jax.eval_shape(lambda p: jax.vjp(total, p)[1], random_params("tiny"))
    leaves = jax.tree.leaves(pull)
    return [x.shape for x in leaves if x.shape[:3] == (spec.layers, 1, 140)]


def test_elementwise_keeps_products_and_attention_alone():
    """Of each layer: its input, seven products, what attention says.

    Of the last product nothing is needed. The MLP's hidden units are kept before the
    activation, and not after it.
    """
    spec = SPECS["tiny"]
    shape = (spec.layers, 1, 140)
    kept = kept_by("elementwise")
    assert sorted(kept) == sorted(
        [(*shape, spec.width)] * 3  # input, queries, attention's output product
        + [(*shape, spec.kv_heads * spec.head_dim)] * 2
        + [(*shape, spec.ff)] * 2
        + [(*shape, spec.heads, spec.head_dim)]
    )
    assert kept_by("block") == [(*shape, spec.width)]
    assert len(kept_by("none")) > len(kept) + 3


def test_gradients_are_finite_and_reach_every_leaf():
    """Padding (two tokens of the row) sees nothing and must not poison anything."""
    for name in SPECS:
        for path, grad in flat(loss_of(name)[1]).items():
            assert np.isfinite(grad).all(), path
            if path != "layers/attn/k/bias":  # it moves all logits of a query alike
                assert np.abs(grad).max() > 1e-6, path


def test_layers_that_differ_are_one_compiled_layer():
    spec, batch = SPECS["gemma3"], rows_batch([straight(PROMPT)])
    run = lambda p: lib.Decoder(spec).apply({"params": p}, batch)[0]  # noqa: E731
    equations = jax.make_jaxpr(run)(lib.abstract_params(spec)).eqns
    scans = [e.params["length"] for e in equations if e.primitive.name == "scan"]
    assert scans == [7]
    assert len({*spec.windows}) == 2
    products = [e for e in equations if e.primitive.name == "dot_general"]
    assert not products  # all of them lie in the scanned layer


def test_compute_dtype_and_the_constraint_reach_what_is_returned():
    seen = []

    def constrain(x):
        seen.append((x.shape, x.dtype))
        return x

    spec = SPECS["tiny"]
    decoder = lib.Decoder(spec, dtype=jnp.bfloat16, constrain=constrain)
    batch = rows_batch([straight(PROMPT)])
    run = lambda p: decoder.apply({"params": p}, batch)  # noqa: E731
    out, head = jax.eval_shape(run, lib.abstract_params(spec))
    assert (out.shape, out.dtype) == ((1, 3, 64), jnp.bfloat16)
    assert (head.kernel.shape, head.kernel.dtype) == ((64, 50), jnp.bfloat16)
    assert head.bias is None
    assert set(seen) == {((1, 3, 64), jnp.dtype(jnp.bfloat16))}
    assert len(seen) >= 4  # the embeddings, both branches of a block, the final norm


def test_bfloat16_stays_near_float32():
    for name in SPECS:
        decoder = lib.Decoder(SPECS[name], dtype=jnp.bfloat16)
        batch = rows_batch([straight(PROMPT + SECOND)])
        run = jax.jit(lambda p, b, d=decoder: d.apply({"params": p}, b)[0])
        low = np.asarray(run(random_params(name), batch), np.float32)
        high = hidden(name, [straight(PROMPT + SECOND)])
        assert 0 < np.abs(low - high).mean() < 0.03 * np.abs(high).mean()


def test_long_rows_in_blocks_equal_those_computed_at_once():
    """Rows of 140 tokens, longer than `SHORT_ROW`; the second layer has a window."""
    spec = dataclasses.replace(SPECS["tiny"], windows=(0, 33))
    prompt, first, second = ([n % 50 for n in range(k)] for k in (40, 50, 30))
    shared = (prompt, 0, 1, 0), (first, 40, 1, 1), (second, 40, 1, 2)
    rows = [row(*shared, (OTHER, 0, 2, 0), pad=16), straight(prompt, pad=100)]
    batch, params = rows_batch(rows), random_params("tiny")

    def run(attention):
        decoder = lib.Decoder(spec, attention=attention)

        def total(params):
            hidden = decoder.apply({"params": params}, batch)[0]
            hidden = hidden * (batch.docs > 0)[..., None]
            return jnp.square(hidden[..., :7]).sum(), hidden

        return jax.jit(jax.grad(total, has_aux=True))(params)

    (grads, hidden), (theirs, dense) = run("xla"), run("dense")
    np.testing.assert_allclose(hidden, dense, atol=1e-4)
    for ours, grad in zip(*map(jax.tree.leaves, (grads, theirs)), strict=True):
        scale = np.abs(grad).max() + 1e-3
        np.testing.assert_allclose(ours, grad, atol=1e-5 * scale)


def test_init_is_the_documented_tree_with_the_documented_scales():
    spec = spec_lib.preset("tiny_gpt2", vocab=500, max_positions=100)
    params = jax.jit(lib.init_params, static_argnums=0)(spec, jax.random.key(0))
    leaves = flat(params)
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    assert shapes["layers/attn/q/kernel"] == (2, 64, 64)
    assert shapes["layers/mlp/up/bias"] == (2, 256)
    assert "head/kernel" not in leaves
    assert "layers/mlp/gate/kernel" not in leaves
    assert np.std(leaves["layers/attn/q/kernel"]) == pytest.approx(0.02, rel=0.05)
    # two layers with two branches each: 0.02 / √4
    assert np.std(leaves["layers/mlp/down/kernel"]) == pytest.approx(0.01, rel=0.05)
    np.testing.assert_array_equal(leaves["layers/norm1/scale"], 1)
    np.testing.assert_array_equal(leaves["layers/attn/o/bias"], 0)
    abstract = lib.abstract_params(spec)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), abstract
    )
    module = lib.Decoder(spec)
    own = jax.eval_shape(module.init, jax.random.key(0), rows_batch([straight(PROMPT)]))
    assert jax.tree.structure(own["params"]) == jax.tree.structure(params)


def test_two_leaves_of_one_shape_start_apart():
    params = lib.init_params(SPECS["tiny"], jax.random.key(0))
    k, v = (params["layers"]["attn"][name]["kernel"] for name in "kv")
    assert np.abs(k - v).max() > 0.01
    assert np.abs(k[0] - k[1]).max() > 0.01


@pytest.mark.parametrize(
    ("name", "low", "high"), [("tiny", 0, 2e5), ("small", 2.5e7, 3.6e7)]
)
def test_presets_have_the_size_they_claim(name, low, high):
    spec = spec_lib.preset(name, vocab=40000, max_positions=512)
    sizes = {path: np.prod(leaf.shape) for path, leaf in lib.leaves(spec).items()}
    blocks = sum(size for path, size in sizes.items() if path.startswith("layers"))
    total = blocks if name == "tiny" else sum(sizes.values())
    assert low < total < high


def test_presets_refuse_unknown_names_and_empty_vocabularies():
    with pytest.raises(errors.ConfigError, match=r"did you mean 'tiny'\?.*small"):
        spec_lib.preset("tinny", vocab=5, max_positions=5)
    with pytest.raises(errors.ConfigError, match="vocab=0 .*max_positions=-1"):
        spec_lib.preset("tiny", vocab=0, max_positions=-1)


def test_specs_are_hashable_and_their_faults_are_named():
    spec = SPECS["tiny"]
    assert hash(spec) == hash(spec_lib.preset("tiny", vocab=50, max_positions=16))
    bad = spec.__class__(**{**vars(spec), "kv_heads": 3, "head_dim": 5, "norm": "rmz"})
    text = " ".join(spec_lib.faults(bad))
    assert "kv_heads=3 must divide heads=4" in text
    assert "head_dim=5 must be even" in text
    assert "norm='rmz'" in text
    assert spec_lib.faults(spec) == []
