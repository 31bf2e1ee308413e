"""Adapters beside kernels: where they start, their gradients, dtypes, decoding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_cases import CONFIGS, LENGTH, compiled, drawn, forests, sequences

from dpo_jax import heads, roles
from dpo_jax.models import decode, decoder, hf, lora
from dpo_jax.models import sites as sites_lib
from dpo_jax.train.leaves import flat

GIVEN = {"rank": 3, "alpha": 6, "rslora": False, "targets": (), "init": "b_zero"}


def made(case, **given):
    """A spec with random weights, and adapters that have not started."""
    spec = hf.spec_of(CONFIGS[case])
    base = jax.tree.map(lambda x: 0.2 * x, drawn(spec))
    return spec, base, sites_lib.fresh(spec, **(GIVEN | given))


def random_tree(adapters):
    normal = np.random.default_rng(1).normal
    tree = lora.abstract(adapters)
    return jax.tree.map(lambda x: 0.3 * normal(size=x.shape).astype(np.float32), tree)


def logits(spec, params, scales=(), **more):
    module = decoder.Decoder(spec, length=LENGTH, scales=scales, **more)
    hidden, head, *_ = module.forward(params, forests()[0], keep=lambda kept: None)
    return heads.logits(hidden, head)


@pytest.mark.parametrize("init", lora.INITS)
def test_fresh_adapters_change_nothing_and_one_factor_is_drawn(init):
    """A in ±1/√D, of Llama's queries; B in ±1/√r; drawn by key and path alone."""
    spec, base, adapters = made("llama", init=init)
    tree = lora.draw(adapters, jax.random.key(3))
    for path, value in flat(tree).items():
        assert value.shape == adapters.shapes[path]
        zero = path.endswith(f"/{init[0]}")
        assert (value == 0).all() if zero else (value.std((1, 2)) > 0).all(), path
    bound = {"b_zero": ("a", 32), "a_zero": ("b", 3)}[init]
    kernel = np.asarray(tree["attn"]["q"][bound[0]])
    assert 0.9 < np.abs(kernel).max() * bound[1] ** 0.5 <= 1

    def both(tree):
        whole = roles.whole({"lora": tree}, {"base": base})
        return logits(spec, whole, adapters.scales), logits(spec, base)

    beside, plain = compiled(both, tree)
    np.testing.assert_array_equal(beside, plain)
    few = dataclasses.replace(adapters, sites=adapters.sites[:1])
    again = lora.draw(few, jax.random.key(3))["attn"]["q"]
    np.testing.assert_array_equal(again["a"], tree["attn"]["q"]["a"])


@pytest.mark.parametrize("case", ["llama", "phi3", "gpt_neox"])
def test_an_adapter_of_full_rank_has_the_gradient_of_the_weights(case):
    """With A = 1, B = 0 and s = 1, W + A·B is W + B: ∂/∂B is ∂/∂W.

    Of fused maps, of all parts side by side.
    """
    spec, base, adapters = made(case)
    sites = [
        dataclasses.replace(s, rank=s.fan_in, alpha=s.fan_in) for s in adapters.sites
    ]
    adapters = dataclasses.replace(adapters, sites=tuple(sites))
    ones = jax.tree.map(lambda x: jnp.zeros(x.shape), lora.abstract(adapters))
    for site in sites:
        room, name = site.name.split("/")
        eye = jnp.broadcast_to(jnp.eye(site.rank), ones[room][name]["a"].shape)
        ones[room][name]["a"] = eye

    def loss(params, scales=()):
        picked = heads.measured(
            logits(spec, params, scales)[:2, : LENGTH - 1], sequences()[:, 1:], None
        )[0]
        return -picked.logps.mean()

    def gradients(tree, base):
        beside = lambda tree: loss(  # noqa: E731
            roles.whole({"lora": tree}, {"base": base}), adapters.scales
        )
        return jax.grad(beside)(tree), jax.grad(loss)(base)

    ours, full = map(flat, compiled(gradients, ones, base))
    for site in sites:
        want = [full[f"layers/{part}/kernel"] for part in site.parts]
        want = np.concatenate(want, axis=-1)
        assert np.abs(want).max() > 1e-6
        np.testing.assert_allclose(ours[f"{site.name}/b"], want, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("remat", ["none", "elementwise", "block"])
def test_adapters_have_the_same_gradients_whatever_is_computed_again(remat):
    """Each factor of each layer has one, under every remat."""
    spec, base, adapters = made("qwen3")
    tree = random_tree(adapters)

    def loss(tree, remat):
        whole = roles.whole({"lora": tree}, {"base": base})
        return jnp.square(logits(spec, whole, adapters.scales, remat=remat)).mean()

    ours = flat(compiled(jax.grad(lambda tree: loss(tree, remat)), tree))
    for path, value in ours.items():
        assert (jnp.abs(value).max((1, 2)) > 0).all(), path
    if remat != "none":
        plain = flat(compiled(jax.grad(lambda tree: loss(tree, "none")), tree))
        for path, value in ours.items():
            np.testing.assert_allclose(value, plain[path], rtol=1e-4, atol=1e-6)


def test_float32_factors_leave_the_activations_as_they_are():
    """The residual stream of a bfloat16 decoder stays bfloat16 in every block."""
    spec, base, adapters = made("llama")
    seen = []
    module = decoder.Decoder(
        spec,
        dtype=jnp.bfloat16,
        scales=adapters.scales,
        constrain=lambda x: (seen.append(x.dtype), x)[1],
    )
    whole = roles.whole({"lora": random_tree(adapters)}, {"base": base})
    batch = forests()[0]
    jax.eval_shape(lambda p: module.forward(p, batch, keep=lambda kept: kept), whole)
    assert len(seen) > 2 and set(seen) == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("case", ["llama", "phi3"])
def test_decoding_reads_adapters_as_training_does(case):
    """Token by token: the logits of the whole text, to 1e-4."""
    spec, base, adapters = made(case)
    whole = roles.whole({"lora": random_tree(adapters)}, {"base": base})
    module = decoder.Decoder(spec, length=LENGTH, scales=adapters.scales)
    tokens, first = sequences(), 6
    plain = logits(spec, whole, adapters.scales)[:2, first - 1 : LENGTH - 1]

    def steps(whole):
        batch = jax.tree.map(lambda x: x[:2, :first], forests()[0])
        lengths = jnp.full(2, first)
        hidden, head, kept = decode.prefill(
            module, whole, batch, lengths, tokens=LENGTH
        )
        said, ready = [heads.logits(hidden, head)], decode.ready(module, whole)
        for at in range(first, LENGTH - 1):
            hidden, head, kept = decode.step(
                module, ready, tokens[:, at], jnp.full(2, at), kept
            )
            said.append(heads.logits(hidden, head))
        return jnp.stack(said, axis=1)

    np.testing.assert_allclose(compiled(steps, whole), plain, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_a_merge_is_the_sum_rounded_once(dtype):
    """W + s·A·B in float64, of kernels in the dtype of the result."""
    spec, base, adapters = made("phi3")
    base = jax.tree.map(lambda x: jnp.asarray(x, dtype), base)
    tree = random_tree(adapters)
    whole = roles.whole({"lora": tree}, {"base": base})
    merged = flat(lora.merge(whole, adapters))
    assert merged.keys() == flat(base).keys()
    tree, was = flat(tree), flat(base)
    scales = dict(adapters.scales)
    for site in adapters.sites:
        a, b = (tree[f"{site.name}/{leaf}"].astype(np.float64) for leaf in "ab")
        delta, start = scales[site.name] * (a @ b), 0
        for part, width in zip(site.parts, site.fan_outs, strict=True):
            path = f"layers/{part}/kernel"
            own = delta[..., start : start + width]
            exact = np.asarray(was[path], np.float64) + own
            got, near = np.asarray(merged[path], np.float64), exact.astype(dtype)
            if dtype is np.float32:
                np.testing.assert_allclose(got, exact, atol=1e-5)
            else:
                assert (got == near.astype(np.float64)).mean() > 0.999
            start += width
