"""token_logps and response_logps against NumPy, plain autodiff and themselves."""

import contextlib
import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dpo_jax import heads, logps
from dpo_jax.sharding.arrays import ROW_AXES
from dpo_jax.sharding.mesh import AXES
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
    found = heads.logit_columns(hidden[:, 0], head)
    np.testing.assert_allclose(found.T, heads.logits(hidden[:, 0], head), atol=1e-5)


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


def drawn(vocab, dtype, seed=0):
    """Draws (hidden, kernel, bias, reference's states, kernel, bias), and a list."""
    rng = np.random.default_rng(seed)
    shapes = [(B, T, D), (D, vocab), (vocab,), (B, C, D + 1), (D + 1, vocab), (vocab,)]
    weights = [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]
    index = [rng.integers(0, high, (B, C)).astype(np.int32) for high in (T, vocab)]
    return weights, index


def with_head(weights, index, *, softcap, bias, ref, tied, chunk):
    hidden, kernel, head_bias, ref_states, ref_kernel, ref_bias = weights
    kernel = kernel.T if tied else kernel
    other = (ref_states, Head(ref_kernel, ref_bias, 2 * softcap)) if ref else None
    head = Head(kernel, head_bias if bias else None, softcap)
    return logps.token_logps(hidden, head, *index, chunk=chunk, ref=other)


def plain(weights, index, *, softcap, bias, ref, tied, chunk):
    """Returns the statistics by their definitions, from all logits at once."""
    hidden, kernel, head_bias, ref_states, ref_kernel, ref_bias = weights
    parents, targets = index

    def log_probs(states, kernel, bias, softcap):
        z = states @ kernel + bias
        return jax.nn.log_softmax(softcap * jnp.tanh(z / softcap) if softcap else z)

    states = hidden[np.arange(B)[:, None], parents]
    kernel = kernel.T if tied else kernel
    logp = log_probs(states, kernel, head_bias if bias else 0.0, softcap)
    p = jax.lax.stop_gradient(jnp.exp(logp))
    kl = None
    if ref:
        ref_logp = log_probs(ref_states, ref_kernel, ref_bias, 2 * softcap)
        ref_logp = jax.lax.stop_gradient(ref_logp)
        kl = (jnp.exp(ref_logp) * (ref_logp - logp)).sum(-1)
    return logps.TokenStats(
        logps=jnp.take_along_axis(logp, targets[..., None], -1)[..., 0],
        entropy=-(p * jnp.log(p)).sum(-1),
        correct=(p.argmax(-1) == targets).astype(p.dtype),
        collision=jnp.log((p**2).sum(-1)),
        kl=kl,
    )


CASES = {  # vocab, options; the chunk divides the list's 6 entries or does not
    "ref": (7, {"softcap": 0.0, "bias": True, "ref": True, "tied": False, "chunk": 4}),
    "cap": (50, {"softcap": 2.0, "bias": True, "ref": True, "tied": True, "chunk": 3}),
    "bare": (
        257,
        {"softcap": 0.0, "bias": False, "ref": False, "tied": True, "chunk": 5},
    ),
}


@pytest.mark.usefixtures("quick_compilations")
@pytest.mark.parametrize("dtype, atol", [("float64", 1e-10), ("float32", 1e-5)])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_equal_the_plain_formula(case, dtype, atol):
    """Every statistic gets a cotangent: only logps and kl may pass it on.

    Nothing flows into the reference, whose arrays are among those differentiated.
    """
    vocab, options = CASES[case]
    with jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext():
        weights, index = drawn(vocab, dtype)
        if options["tied"]:
            weights[1] = weights[1].T
        slopes = jnp.asarray(np.random.default_rng(1).normal(size=(5, B, C)), dtype)

        def pulled(stats_of, weights, slopes):
            run = functools.partial(stats_of, index=index, **options)
            stats, pull = jax.vjp(run, weights)
            leaves, tree = jax.tree.flatten(stats)
            return stats, pull(jax.tree.unflatten(tree, list(slopes[: len(leaves)])))[0]

        both = jax.jit(lambda *args: [pulled(f, *args) for f in (with_head, plain)])
        (got, grads), (want, wanted) = both(weights, slopes)
        assert (got.kl is None) == (not options["ref"])
        assert {str(leaf.dtype) for leaf in jax.tree.leaves((got, grads))} == {dtype}
        chex.assert_trees_all_close(got, want, atol=atol, rtol=atol)
        chex.assert_trees_all_close(grads, wanted, atol=atol, rtol=atol)
        assert all(np.abs(leaf).max() > 1e-3 for leaf in grads[:2])
        assert all(np.abs(leaf).max() == 0 for leaf in grads[3:])


def test_bfloat16_operands_and_float32_sums():
    """512 entries share one parent; a sum of equal terms in bfloat16 stalls at 256.

    Products of bfloat16 are exact in float32, so the values are those of the plain
    formula to 1e-5; gradients are right to bfloat16's own eps of 1/128.
    """
    size = 512
    (hidden, kernel, *_), _ = drawn(50, jnp.bfloat16)
    index = jnp.zeros((B, size), jnp.int32)

    def total(hidden, kernel, chunk):
        stats = logps.token_logps(hidden, Head(kernel, None), index, index, chunk=chunk)
        return stats.logps.sum(), stats.logps

    def by_formula(hidden, kernel):
        z = hidden[:, 0].astype(jnp.float32) @ kernel.astype(jnp.float32)
        values = jax.nn.log_softmax(z)[:, 0]
        return size * values.sum(), values

    run = jax.jit(jax.grad(total, (0, 1), has_aux=True), static_argnums=2)
    grads, values = run(hidden, kernel, 1)
    wanted, wanted_values = jax.grad(by_formula, (0, 1), has_aux=True)(hidden, kernel)
    np.testing.assert_allclose(
        values, np.repeat(wanted_values[:, None], size, 1), atol=1e-5
    )
    for got, want in zip(grads, wanted, strict=True):
        assert got.dtype == jnp.bfloat16
        got, want = (np.asarray(leaf, np.float32) for leaf in (got, want))
        np.testing.assert_allclose(got, want, atol=np.abs(want).max() / 128)


def test_padding_gets_no_gradient_and_a_tie_goes_to_the_first():
    """A list with garbage behind it, cotangent 0, has the gradient of the list alone.

    With a kernel of zeros all ids are equally likely: only id 0 counts as correct,
    the entropy is ln V, the collision −ln V.
    """
    (hidden, kernel, *_), (parents, targets) = drawn(V, jnp.float32)

    def total(weights, keep):
        head = Head(weights[1], None)
        stats = logps.token_logps(
            weights[0], head, parents[:, :keep], targets[:, :keep], chunk=4
        )
        return stats.logps[:, :3].sum()

    grads = jax.jit(jax.grad(total), static_argnums=1)
    chex.assert_trees_all_close(
        grads((hidden, kernel), C), grads((hidden, kernel), 3), atol=1e-6
    )
    even = logps.token_logps(hidden, Head(kernel * 0, None), parents, targets, chunk=4)
    np.testing.assert_array_equal(even.correct, targets == 0)
    np.testing.assert_allclose(even.entropy, np.log(V), rtol=1e-6)
    np.testing.assert_allclose(even.collision, -np.log(V), rtol=1e-6)


@pytest.mark.parametrize("chunk", [2, 4])
def test_only_chunks_that_hold_something_are_run(chunk):
    """9 of 5·6 entries lie in 1 or 2 of the chunks, in the order of the list.

    What the mask leaves out says 0, and nothing of it reaches a gradient, although its
    parents point at NaN.
    """
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(5, T, D)).astype(np.float32)
    kernel = rng.normal(size=(D, V)).astype(np.float32)
    mask = np.zeros((5, C), bool)
    mask[[0, 0, 1, 1, 1, 3, 3, 4, 4], [0, 5, 1, 2, 4, 0, 3, 2, 5]] = True
    parents = np.where(mask, rng.integers(0, T - 1, (5, C)), T - 1).astype(np.int32)
    targets = rng.integers(0, V, (5, C)).astype(np.int32)
    listed = logps.Listed(*map(jnp.asarray, (parents, targets, mask)), None)
    found = logps.chunks(listed, T, chunk)
    size = 5 * chunk if chunk == 2 else 5 * 3  # two even chunks of 6 entries, not 4 + 2
    assert found.entries.shape == (6 * 5 // size, size)
    assert found.count == 1
    np.testing.assert_array_equal(found.entries[0, :9], np.flatnonzero(mask))
    assert (found.entries.reshape(-1)[9:] == mask.size).all()

    def total(hidden, kernel):
        stats = logps.token_logps(
            hidden, Head(kernel, None), parents, targets, chunk=chunk, scored_mask=mask
        )
        return (stats.logps * slopes).sum(), stats

    def plainly(hidden, kernel):
        rows, _ = np.nonzero(mask)
        z = jax.nn.log_softmax(hidden[rows, parents[mask]] @ kernel)
        return (z[np.arange(9), targets[mask]] * slopes[mask]).sum()

    slopes = rng.normal(size=mask.shape).astype(np.float32)
    hidden[:, T - 1] = np.nan
    got, stats = jax.jit(jax.grad(total, (0, 1), has_aux=True))(hidden, kernel)
    want = jax.grad(plainly, (0, 1))(hidden, kernel)
    chex.assert_trees_all_close(got, want, atol=1e-5)
    assert all((leaf[~mask] == 0).all() for leaf in jax.tree.leaves(stats))
    assert np.isfinite(stats.logps).all() and (stats.logps[mask] < 0).all()


def over_a_mesh(rows, size, width, vocab):
    """Compiles values and gradients for 2×2×2 devices: (compiled, its arguments)."""
    mesh = jax.make_mesh((2, 2, 2), AXES, axis_types=(AxisType.Auto,) * 3)
    rng = np.random.default_rng(0)
    spread, head = P(ROW_AXES), P("fsdp", "tensor")
    specs = (spread, head, P("tensor"), spread, spread, spread)
    shapes = ((rows, 9, width), (width, vocab), (vocab,), (rows, size, width))
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    arrays += [rng.integers(0, n, (rows, size)).astype(np.int32) for n in (9, vocab)]
    places = [NamedSharding(mesh, spec) for spec in specs]

    def total(linear, states, parents, targets):
        hidden, kernel, bias = linear
        head = Head(kernel, bias)
        stats = logps.token_logps(
            hidden, head, parents, targets, chunk=3, ref=(states, Head(kernel, None))
        )
        return (stats.logps + 0.5 * stats.kl).sum(), stats

    run = jax.value_and_grad(total, has_aux=True)
    arguments = (tuple(arrays[:3]), *arrays[3:])
    want = jax.jit(run)(*arguments)
    arguments = (
        tuple(map(jax.device_put, arrays[:3], places)),
        *map(jax.device_put, arrays[3:], places[3:]),
    )
    with jax.set_mesh(mesh):
        grads = tuple(places[:3])
        compiled = jax.jit(run, out_shardings=(None, grads)).lower(*arguments).compile()
    return compiled.as_text(), compiled(*arguments), want


@functools.cache
def meshed():
    return over_a_mesh(8, 8, 6, 2 * 509)


def test_a_mesh_of_eight_equals_one_device():
    _, got, want = meshed()
    chex.assert_trees_all_close(jax.device_get(got), want, atol=2e-5, rtol=1e-5)


def test_the_vocabulary_stays_where_it_lies():
    """Inside the scans no device sends anything of the vocabulary's size.

    Outside, the kernel's part is gathered over `fsdp` and its gradient summed, once;
    nowhere does the whole vocabulary come together. 509, a prime, marks its half.
    """
    text = meshed()[0]
    names = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    sent, room = {}, ""
    for line in text.splitlines():
        if line.endswith("{") and "=" not in line.split("(")[0]:
            room = "entry" if line.startswith("ENTRY") else "inside"
        if match := re.search(rf"= (.*) ({names})(-start)?\(", line):
            sent.setdefault(room, []).append(match.group(1))
    assert sent["entry"] and sent["inside"]
    assert not [what for what in sent["inside"] if "509" in what or "1018" in what]
    assert not [what for what in sent["entry"] if "1018" in what]
    assert " ".join(sent["entry"]).count("[6,509]") == 2, sent["entry"]


@pytest.mark.parametrize(
    "small, large", [((1_000, 128), (64_000, 128)), ((32_000, 1024), (256_000, 128))]
)
def test_memory_grows_by_one_chunk_and_one_gradient(small, large):
    """At 2,048 tokens, (V, chunk) to (V, chunk): the growth of V·(chunk + D)·4 bytes.

    And 1 %. All logits would be 16 times those of a chunk of 128. In the second case a
    chunk's logits take the same, and what grows is the table and its gradient alone.
    """
    size, width = 2048, 64

    def temporaries(vocab, chunk):
        def total(hidden, kernel, index):
            head = Head(kernel, None)
            return logps.token_logps(
                hidden, head, index, index, chunk=chunk
            ).logps.sum()

        shaped = jax.ShapeDtypeStruct
        hidden = shaped((1, size, width), jnp.float32)
        kernel = shaped((width, vocab), jnp.float32)
        run = jax.jit(jax.value_and_grad(total, (0, 1)))
        lowered = run.lower(hidden, kernel, shaped((1, size), jnp.int32))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    grown = temporaries(*large) - temporaries(*small)
    needed = [4 * vocab * (chunk + width) for vocab, chunk in (small, large)]
    assert grown <= 1.01 * (needed[1] - needed[0]), grown


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
