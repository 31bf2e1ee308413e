"""Mixtures of experts: routing, the balance loss, layouts, devices, what is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_cases import CONFIGS, LENGTH, compiled, drawn, forests, sequences

from dpo_jax import errors
from dpo_jax.models import decoder, forest, hf, moe, sites
from dpo_jax.sharding import arrays, rules
from dpo_jax.sharding.mesh import make_mesh
from dpo_jax.train.leaves import flat

SPEC = hf.spec_of(CONFIGS["qwen3_moe"])
WIDE = (6, 3, 4)  # experts, of a token, features


def drawn_reports(params, batch, spec=SPEC):
    module = decoder.Decoder(spec, length=LENGTH)
    return module.forward(params, batch, keep=lambda kept: None)[3]


def mixed(shape=(2, 5), width=8):
    """A router and experts of one layer, and tokens."""
    count, _, ff = WIDE
    normal = np.random.default_rng(0).normal
    sizes = {"gate": (width, ff), "up": (width, ff), "down": (ff, width)}
    w = {n: {"kernel": jnp.float32(normal(size=(count, *s)))} for n, s in sizes.items()}
    router = {"kernel": jnp.float32(normal(size=(width, count)))}
    return router, w, jnp.float32(normal(size=(*shape, width)))


def plain(router, w, x, normed):
    """Expert by expert in NumPy, as the paper writes it."""
    k, out = WIDE[1], np.zeros_like(x)
    logits = x @ router["kernel"]
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for at in np.ndindex(x.shape[:2]):
        best = np.argsort(-probs[at])[:k]
        total = probs[at][best].sum() if normed else 1.0
        for e in best:
            gate, up, down = (w[n]["kernel"][e] for n in ("gate", "up", "down"))
            gated = x[at] @ gate
            said = (gated / (1 + np.exp(-gated)) * (x[at] @ up)) @ down
            out[at] += probs[at][e] / total * said
    return out


def applied(router, w, x, normed=True):
    spec = SPEC.__class__(**{**vars(SPEC), "norm_expert_weights": normed})
    routed = moe.route(spec, router, x)
    return moe.experts(w, x, routed, jax.nn.silu), routed


@pytest.mark.parametrize("normed", [False, True])
def test_tokens_go_through_the_likeliest_experts_weighted(normed):
    router, w, x = mixed()
    y, routed = applied(router, w, x, normed)
    expected = plain(*jax.tree.map(np.asarray, (router, w, x)), normed)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    sums = routed.weights.sum(-1)
    assert (abs(sums - 1) < 1e-6).all() if normed else (sums < 1).all()


def test_no_token_depends_on_another_and_an_idle_expert_stands_still():
    """Rows permuted and others beside them: the same bits; no token, no gradient."""
    router, w, x = mixed((6, 5))
    whole = applied(router, w, x)[0]
    order = np.array([3, 0, 5])
    np.testing.assert_array_equal(applied(router, w, x[order])[0], whole[order])
    x, away = jnp.abs(x), {"kernel": jnp.abs(router["kernel"]).at[:, 2].set(-9)}
    busy = np.isin(np.arange(6), applied(away, w, x)[1].experts)
    assert not busy[2] and busy.sum() >= 4
    loss = lambda w: jnp.square(applied(away, w, x)[0]).sum()  # noqa: E731
    for name, grad in flat(jax.grad(loss)(w)).items():
        assert np.isfinite(grad).all(), name
        np.testing.assert_array_equal(jnp.abs(grad).max((1, 2)) > 0, busy)


def test_near_equal_scores_pick_the_same_experts_in_bfloat16():
    """1e-3 apart, which bfloat16 products lose: the router computes in float32."""
    router, w, x = mixed((1, 64), width=16)
    kernel = router["kernel"].at[:, 1:].set(router["kernel"][:, :1])
    kernel = kernel + 1e-3 * np.arange(6) * jnp.sign(kernel)
    x = x.astype(jnp.bfloat16)
    scores = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    best = np.sort(np.argsort(-scores)[..., : WIDE[1]])
    picked = moe.route(SPEC, {"kernel": kernel}, x).experts
    np.testing.assert_array_equal(np.sort(picked), best)


def test_balance_by_hand_and_of_an_even_router():
    """X·Σ f·p over both layers; where all are alike f = p·k = k/X: the loss is k."""
    loads = jnp.array([[2.0, 0, 0, 2], [1, 1, 1, 1]])
    probs = jnp.array([[0.8, 0.2, 0.2, 0.8], [0.5, 0.5, 0.5, 0.5]])
    told = {moe.LOADS: loads, moe.PROBS: probs, moe.TOKENS: jnp.float32(2)}
    f, p = np.array([3, 1, 1, 3]) / 4, np.array([1.3, 0.7, 0.7, 1.3]) / 4
    np.testing.assert_allclose(moe.balance(told), 4 * (f * p).sum(), rtol=1e-6)
    assert moe.largest_load(told) == 2
    even = {moe.LOADS: jnp.full((3, 4), 10.0), moe.PROBS: jnp.full((3, 4), 5.0)}
    assert moe.balance(even | {moe.TOKENS: jnp.float32(20)}) == 2


def test_a_prompt_counts_once_for_each_of_its_responses():
    """Two branches: 2 each, one or none: 1; padding 0."""
    docs = jnp.array([[1, 1, 1, 1, 2, 2, 3, 0]])
    branches = jnp.array([[0, 1, 2, 2, 0, 1, 0, 0]])
    expected = [[2, 1, 1, 1, 1, 1, 1, 0]]
    np.testing.assert_array_equal(forest.times_read(docs, branches), expected)


def test_reports_are_the_same_in_every_layout():
    """Two rows of their own = one packed row = one that shares the prompt."""
    params, batch = jax.tree.map(lambda x: 0.2 * x, drawn(SPEC)), forests()[0]
    batch.docs[3] *= batch.docs[3] == 1  # without its second document
    told = {
        name: compiled(drawn_reports, params, jax.tree.map(lambda x: x[rows], batch))  # noqa: B023
        for name, rows in (("own", [0, 1]), ("packed", [2]), ("shared", [3]))
    }
    assert told["own"][moe.TOKENS] == 2 * LENGTH
    np.testing.assert_allclose(told["own"][moe.LOADS].sum(-1), 2 * LENGTH * 3)
    for layout in ("packed", "shared"):
        for name, value in told["own"].items():
            np.testing.assert_allclose(told[layout][name], value, rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 2, 4), (8, 1, 1)])
def test_eight_devices_route_and_learn_as_one(shape):
    """(1, 2, 4): 6 experts do not divide over 4, so each device has them all."""
    params = jax.tree.map(lambda x: jnp.float32(0.2 * x), drawn(SPEC))
    tokens = np.concatenate([sequences()] * 4)
    batch = forests()[0]
    batch = jax.tree.map(lambda x: np.repeat(x[:1], 8, 0)[:, :LENGTH], batch)
    batch = batch._replace(tokens=tokens)

    def loss(params, constrain):
        module = decoder.Decoder(SPEC, length=LENGTH, constrain=constrain)
        hidden, _, _, told = module.forward(params, batch, keep=lambda kept: None)
        return jnp.square(hidden).mean() + moe.balance(told), told

    both = jax.value_and_grad(loss, has_aux=True)
    (one, told), grads = jax.jit(lambda p: both(p, lambda x: x))(params)
    mesh = make_mesh(*shape)
    places = rules.shardings(decoder.abstract_params(SPEC), mesh, rules.PARAM_RULES)
    with jax.set_mesh(mesh):
        spread = jax.device_put(params, places)
        split = jax.jit(
            lambda p: both(p, arrays.constrain_rows), in_shardings=(places,)
        )
        (many, said), apart = split(spread)
    np.testing.assert_allclose(many, one, rtol=1e-5)
    np.testing.assert_array_equal(said[moe.LOADS], told[moe.LOADS])
    whole = flat(grads)
    for name, grad in flat(apart).items():
        np.testing.assert_allclose(
            grad, whole[name], rtol=1e-3, atol=1e-6, err_msg=name
        )
    if shape[2] == 2:
        held = flat(places)["layers/experts/gate/kernel"].spec
        assert held[1] == "tensor" and held[2] == "fsdp"


def test_adapters_stand_beside_attention_only():
    """Of experts peft has a layout of its own; the router is not tuned."""
    names = set(sites.sites_of(SPEC))
    assert names == {"attn/q", "attn/k", "attn/v", "attn/o"}
    for target in ("mlp", "gate", "experts.0.up_proj"):
        with pytest.raises(errors.ConfigError, match="names no linear map"):
            sites.targeted(sites.sites_of(SPEC).values(), (target,), "lora.targets")


@pytest.mark.parity
@pytest.mark.parametrize("case", ["mixtral", "olmoe", "qwen3_moe"])
def test_the_balance_loss_and_its_gradient_are_those_of_transformers(case):
    """With padding masked; to the router and to the states below it."""
    torch = pytest.importorskip("torch")
    from test_parity import torch_model

    model, spec = torch_model(case), hf.spec_of(CONFIGS[case])
    batch = jax.tree.map(lambda x: x[[0, 4]], forests()[0])
    tokens, mask = torch.tensor(batch.tokens), torch.tensor(batch.docs > 0).long()
    model.zero_grad()
    positions = torch.tensor(batch.positions)
    out = model(
        tokens, attention_mask=mask, position_ids=positions, output_router_logits=True
    )
    out.aux_loss.backward()
    params = published(model, spec)
    ours = lambda p: moe.balance(drawn_reports(p, batch, spec))  # noqa: E731
    value, grads = compiled(jax.value_and_grad(ours), params)
    np.testing.assert_allclose(value, out.aux_loss.item(), rtol=1e-5)
    theirs = model.model.layers[0].mlp.gate.weight.grad.numpy()
    assert np.abs(theirs).max() > 1e-4
    router = grads["layers"]["router"]["kernel"][0]
    np.testing.assert_allclose(router, theirs.T, rtol=1e-3, atol=1e-6)
    below = model.model.layers[0].self_attn.o_proj.weight.grad.numpy()
    ours = grads["layers"]["attn"]["o"]["kernel"][0]
    np.testing.assert_allclose(ours, below.T, rtol=1e-3, atol=1e-6)


def published(model, spec):
    """Loads what a torch model saves."""
    import tempfile

    with tempfile.TemporaryDirectory() as out:
        model.save_pretrained(out)
        return hf.load_params(out, spec)
