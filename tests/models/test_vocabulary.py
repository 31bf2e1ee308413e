"""A padded vocabulary computes what the unpadded one does, and is exported without."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from dpo_jax import heads, logps
from dpo_jax.models import decoder, hf, vocabulary
from dpo_jax.models.spec import preset
from dpo_jax.types import Head

SPEC = preset("tiny", vocab=61, max_positions=16)
PADDED = dataclasses.replace(SPEC, vocab_multiple=64)


def head_of(rng, vocab=0, softcap=0.0):
    """A head of 5 ids, with three rows behind them where `vocab` says so."""
    kernel = rng.standard_normal((4, 5), np.float32)
    bias = rng.standard_normal(5, np.float32)
    if vocab:
        kernel, bias = np.pad(kernel, [(0, 0), (0, 3)]), np.pad(bias, [(0, 3)])
    return Head(jnp.asarray(kernel), jnp.asarray(bias), softcap, vocab)


def scored(hidden, head, ref):
    listed = np.array([[0, 1, 2]]), np.array([[1, 4, 0]])
    stats = logps.token_logps(hidden, head, *listed, chunk=2, ref=ref)
    assert stats.kl is not None
    return stats.logps.sum() + 0.3 * stats.kl.sum(), stats


@pytest.mark.parametrize("softcap", [0.0, 1.5])
def test_scores_and_gradients_are_those_without_padding(softcap):
    """Log-probs, entropy, KL to a reference; 0 for rows behind the vocabulary."""
    hidden = np.random.default_rng(0).standard_normal((1, 3, 4), np.float32)
    found = []
    for vocab in (0, 5):
        rng = np.random.default_rng(1)
        head, ref = (head_of(rng, vocab, softcap) for _ in range(2))

        def loss(hidden, kernel, bias, head=head, ref=ref):
            head = head._replace(kernel=kernel, bias=bias)
            return scored(hidden, head, (jnp.asarray(hidden), ref))

        grad = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
        found.append(grad(hidden, head.kernel, head.bias))
    (plain, stats), (padded, padded_stats) = found
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 1e-6), stats, padded_stats
    )
    np.testing.assert_allclose(padded[0], plain[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(padded[1][:, :5], plain[1], rtol=1e-5, atol=1e-6)
    assert not np.any(padded[1][:, 5:]) and not np.any(padded[2][5:])
    assert np.isfinite(np.asarray(padded_stats.entropy)).all()


def test_ids_behind_the_vocabulary_are_never_drawn():
    """Not even where all others are as unlikely as can be."""
    head = Head(jnp.full((2, 8), -50.0), None, 0.0, 5)
    values = heads.logit_columns(jnp.ones((3, 2)), head)
    assert values.shape == (8, 3) and (values[5:] == heads.NEVER).all()
    keys = jax.random.split(jax.random.key(0), 500)
    drawn = jax.vmap(lambda k: jax.random.categorical(k, values[:, 0]))(keys)
    assert set(np.unique(drawn)) == set(range(5))


def test_drawn_weights_are_those_without_padding():
    key = jax.random.key(3)
    plain, padded = decoder.init_params(SPEC, key), decoder.init_params(PADDED, key)
    table = padded["embed"]["tokens"]
    assert table.shape == (64, SPEC.width) and not np.any(table[61:])
    np.testing.assert_array_equal(table[:61], plain["embed"]["tokens"])
    np.testing.assert_array_equal(
        padded["layers"]["mlp"]["up"]["kernel"], plain["layers"]["mlp"]["up"]["kernel"]
    )


def test_an_export_has_no_row_behind_the_vocabulary_and_loads_again(tmp_path):
    params = decoder.init_params(PADDED, jax.random.key(0))
    hf.save_params(params, PADDED, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors["model.embed_tokens.weight"].shape == (61, SPEC.width)
    assert tensors["lm_head.weight"].shape == (61, SPEC.width)
    hf.check_weights(tmp_path, PADDED)
    mesh = jax.make_mesh((2,), ("tensor",), axis_types=(jax.sharding.AxisType.Auto,))
    place = jax.sharding.NamedSharding(mesh, jax.P())
    places = jax.tree.map(lambda x: place, params)
    places["embed"]["tokens"] = jax.sharding.NamedSharding(mesh, jax.P("tensor"))
    again = hf.load_params(tmp_path, PADDED, places)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert vocabulary.unpadded(PADDED) == SPEC
