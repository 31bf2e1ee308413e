"""token_logps and response_logps against NumPy and against themselves."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import logps
from dpo_jax.types import Head

B, T, C, D, V, R = 2, 7, 6, 4, 11, 2


@pytest.fixture
def parts():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(B, T, D)).astype(np.float32)
    kernel = rng.normal(size=(D, V)).astype(np.float32)
    bias = rng.normal(size=V).astype(np.float32)
    parents = rng.integers(0, T, (B, C)).astype(np.int32)
    targets = rng.integers(0, V, (B, C)).astype(np.int32)
    return hidden, kernel, bias, parents, targets


def by_hand(hidden, kernel, bias, parents, targets, softcap=0.0):
    out = np.zeros(parents.shape)
    entropy = np.zeros(parents.shape)
    for b, c in np.ndindex(parents.shape):
        z = hidden[b, parents[b, c]].astype(np.float64) @ kernel + bias
        z = softcap * np.tanh(z / softcap) if softcap else z
        p = np.exp(z) / np.exp(z).sum()
        out[b, c] = np.log(p[targets[b, c]])
        entropy[b, c] = -(p * np.log(p)).sum()
    return out, entropy


@pytest.mark.parametrize("chunk", [1, 4, 6, 100])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_any_chunk_equals_numpy(parts, chunk, softcap):
    hidden, kernel, bias, parents, targets = parts
    head = Head(kernel, bias, softcap)
    got = logps.token_logps(hidden, head, parents, targets, chunk=chunk)
    want, entropy = by_hand(*parts, softcap=softcap)
    np.testing.assert_allclose(got.logps, want, atol=1e-5)
    np.testing.assert_allclose(got.entropy, entropy, atol=1e-5)


@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("biased", [True, False])
def test_columns_are_the_logits_turned(parts, softcap, biased):
    hidden, kernel, bias, *_ = parts
    head = Head(kernel, bias if biased else None, softcap)
    found = logps.logit_columns(hidden[:, 0], head)
    np.testing.assert_allclose(found.T, logps.logits(hidden[:, 0], head), atol=1e-5)


def test_gradient_does_not_depend_on_the_chunk(parts):
    hidden, kernel, bias, parents, targets = parts

    def total(hidden, kernel, chunk):
        head = Head(kernel, bias)
        return logps.token_logps(
            hidden, head, parents, targets, chunk=chunk
        ).logps.sum()

    whole = jax.grad(total, (0, 1))(hidden, kernel, C)
    parts_of_it = jax.grad(total, (0, 1))(hidden, kernel, 4)
    chex.assert_trees_all_close(whole, parts_of_it, atol=1e-5)


def test_never_holds_more_than_one_chunk_of_logits():
    """No intermediate of the gradient's jaxpr has 3·chunk·V elements or more."""
    size, vocab, chunk = 64, 1000, 8
    head = Head(jnp.zeros((D, vocab)), None)
    index = jnp.zeros((1, size), jnp.int32)

    def total(hidden):
        return logps.token_logps(hidden, head, index, index, chunk=chunk).logps.sum()

    def sizes(jaxpr):
        for eqn in jaxpr.eqns:
            yield from (v.aval.size for v in eqn.outvars if hasattr(v.aval, "size"))
            for value in eqn.params.values():
                for sub in jax.tree.leaves(
                    value, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
                ):
                    inner = getattr(sub, "jaxpr", sub)
                    if hasattr(inner, "eqns"):
                        yield from sizes(inner)

    jaxpr = jax.make_jaxpr(jax.grad(total))(jnp.zeros((1, T, D))).jaxpr
    largest = max(sizes(jaxpr))
    assert chunk * vocab <= largest < 3 * chunk * vocab, largest


def test_sums_over_slots_and_ignores_padding():
    """Row 0: slot 0 gets 1 + 2, slot 1 gets 3; NaN at padding does not count."""
    values = np.array([[1.0, 2.0, 3.0, np.nan]], np.float32)
    slots = np.array([[0, 0, 1, R]], np.int32)
    ones = np.ones_like(values)
    got = logps.response_logps(values, ones, slots, R)
    np.testing.assert_array_equal(got, [[3.0, 3.0]])
    halves = logps.response_logps(values, ones / 2, slots, R)
    np.testing.assert_array_equal(halves, [[1.5, 1.5]])
    np.testing.assert_array_equal(logps.response_lengths(slots, R), [[2.0, 1.0]])


def test_refuses_mismatched_shapes():
    with pytest.raises(AssertionError):
        logps.response_logps(np.ones((1, 3)), np.ones((1, 2)), np.zeros((1, 3)), 1)
