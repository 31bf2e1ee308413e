"""Schedules by hand; optimizers against torch, optax and hand-worked steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpo_jax.errors import ConfigError
from dpo_jax.train import optimizer

OPTIONS = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "decay": 0.99, "weight_decay": 0.0}
LR = 0.01
PARAMS = {
    "embed": {"tokens": np.array([[0.5, -1.0], [2.0, 0.25]], np.float32)},
    "layers": {
        "attn": {
            "q": {
                "kernel": np.array([[1.5, -0.5]], np.float32),
                "bias": np.array([0.3, -0.2], np.float32),
            }
        },
        "norm1": {"scale": np.array([1.0, 0.9], np.float32)},
    },
    "final_norm": {"scale": np.array([1.1], np.float32)},
}


def gradient(step, shape):
    """A gradient that swings over three decades, zeros included."""
    rng = np.random.default_rng(step)
    scale = 10.0 ** rng.integers(-2, 2, shape)
    return (rng.normal(size=shape) * scale * (step % 7 != 3)).astype(np.float32)


def gradients(step, params=PARAMS):
    return jax.tree.map(lambda leaf: gradient(step, leaf.shape), params)


def ours(name, steps, params=PARAMS, **changed):
    """Steps as the train step does: p − lr·direction."""
    tx = optimizer.direction(name, {**OPTIONS, **changed})

    @jax.jit
    def one(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return jax.tree.map(lambda p, u: p - LR * u, params, updates), state

    state = tx.init(params)
    for step in range(steps):
        params, state = one(params, state, gradients(step))
    return params


def theirs(tx, steps, params=PARAMS):
    state = tx.init(params)
    for step in range(steps):
        updates, state = tx.update(gradients(step), state, params)
        params = optax.apply_updates(params, updates)
    return params


def assert_close(got, want, rtol=2e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), got, want)


def torch_steps(make, steps, *, weight_decay):
    """Runs a torch optimizer; decay acts on kernels and embeddings alone."""
    torch = pytest.importorskip("torch")
    leaves, tree = jax.tree.flatten(PARAMS)
    tensors = [torch.tensor(leaf, requires_grad=True) for leaf in leaves]
    marks = jax.tree.leaves(optimizer.decayed(PARAMS))
    groups = [
        {"params": [t], "weight_decay": weight_decay if mark else 0.0}
        for t, mark in zip(tensors, marks, strict=True)
    ]
    theirs = make(torch, groups)
    for step in range(steps):
        for tensor, grad in zip(tensors, jax.tree.leaves(gradients(step)), strict=True):
            tensor.grad = torch.tensor(grad)
        theirs.step()
    return jax.tree.unflatten(tree, [t.detach().numpy() for t in tensors])


@pytest.mark.parity
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_rmsprop_equals_torch(weight_decay):
    """60 steps; ε lies outside the root, so a zero second moment divides by ε."""

    def make(torch, groups):
        return torch.optim.RMSprop(groups, lr=LR, alpha=0.99, eps=1e-8)

    want = torch_steps(make, 60, weight_decay=weight_decay)
    assert_close(ours("rmsprop", 60, weight_decay=weight_decay), want)


@pytest.mark.parity
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_equals_torch(weight_decay):
    def make(torch, groups):
        return torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.999), eps=1e-8)

    want = torch_steps(make, 60, weight_decay=weight_decay)
    assert_close(ours("adamw", 60, weight_decay=weight_decay), want, rtol=1e-5)


def test_rmsprop_by_hand():
    """v = .01·g²; p − lr·g/(√v + ε): the first step moves every entry by 10·lr."""
    params = {"kernel": np.float32([1.0, -1.0])}
    tx = optimizer.direction("rmsprop", OPTIONS)
    grads = {"kernel": np.float32([0.2, -5.0])}
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], [10.0, -10.0], rtol=1e-5)


@pytest.mark.parametrize(
    "name, options, reference",
    [
        ("adamw", {"weight_decay": 0.1}, "adamw"),
        ("adamw", {"b1": 0.8, "b2": 0.95, "eps": 1e-5}, "adamw"),
        ("lion", {"weight_decay": 0.1, "b2": 0.99}, "lion"),
    ],
)
def test_the_same_as_optax(name, options, reference):
    used = [key for key in optimizer.options(name) if key != "weight_decay"]
    chosen = {**OPTIONS, **options}
    tx = getattr(optax, reference)(
        LR,
        **{key: chosen[key] for key in used},
        weight_decay=chosen["weight_decay"],
        mask=optimizer.decayed,
    )
    assert_close(ours(name, 20, **options), theirs(tx, 20), rtol=1e-5)


def test_sgd_is_the_gradient():
    assert_close(
        ours("sgd", 1), jax.tree.map(lambda p, g: p - LR * g, PARAMS, gradients(0))
    )


def test_adafactor_descends_with_bounded_steps():
    """Its direction's root mean square is at most 1 in every leaf."""
    tx = optimizer.direction("adafactor", OPTIONS)
    state = tx.init(PARAMS)
    for step in range(3):
        grads = gradients(step)
        updates, state = tx.update(grads, state, PARAMS)
        for u, g in zip(jax.tree.leaves(updates), jax.tree.leaves(grads), strict=True):
            assert np.sqrt(np.mean(np.square(u))) <= 1 + 1e-6
            assert (np.asarray(u) * g >= 0).all() and np.abs(u).max() > 0


def test_weight_decay_skips_biases_and_norms():
    assert optimizer.decayed(PARAMS) == {
        "embed": {"tokens": True},
        "layers": {
            "attn": {"q": {"kernel": True, "bias": False}},
            "norm1": {"scale": False},
        },
        "final_norm": {"scale": False},
    }


@pytest.mark.parametrize("name", ["adamw", "rmsprop", "lion", "adafactor"])
def test_weight_decay_moves_kernels_alone(name):
    """After two steps, so that RMSprop's direction is no mere sign."""
    plain, heavy = ours(name, 2), ours(name, 2, weight_decay=0.5)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), plain, heavy)
    assert moved == optimizer.decayed(PARAMS)


def factors(name, steps, warmup_steps):
    factor = optimizer.schedule(name)
    hyper = optimizer.pace(warmup_steps=warmup_steps, total_steps=steps)
    return np.array([factor(jnp.int32(step), hyper) for step in range(steps + 1)])


def test_warmup_is_that_of_the_reference_code():
    """W = 4: (s + 1)/5 = .2, .4, .6, .8, 1, 1, …; W = 0 starts at 1."""
    got = factors("constant", 6, 4)
    np.testing.assert_allclose(got, [0.2, 0.4, 0.6, 0.8, 1, 1, 1], rtol=1e-6)
    np.testing.assert_array_equal(factors("constant", 3, 0), 1.0)


def test_schedules_end_where_they_should():
    """10 steps of which 2 warm up: progress (s − 2)/8, ½ at step 6, 1 at step 10."""
    linear, cosine = factors("linear", 10, 2), factors("cosine", 10, 2)
    for got in (linear, cosine):
        np.testing.assert_allclose(got[:3], [1 / 3, 2 / 3, 1], rtol=1e-6)
        np.testing.assert_allclose(got[[6, 10]], [0.5, 0], atol=1e-7)
        assert (np.diff(got[2:]) < 0).all() and got[9] > 0
    np.testing.assert_allclose(linear[4], 0.75)
    np.testing.assert_allclose(cosine[4], (1 + np.sqrt(0.5)) / 2, rtol=1e-6)
    beyond = optimizer.schedule("linear")
    assert beyond(jnp.int32(99), optimizer.pace(warmup_steps=2, total_steps=10)) == 0.0


def test_a_warmup_longer_than_the_run_only_warms_up():
    np.testing.assert_allclose(factors("cosine", 3, 9), np.arange(1, 5) / 10, rtol=1e-6)


def test_unknown_names_say_what_is_known():
    with pytest.raises(ConfigError, match="optimizer.name='adam'.*'adamw'.*rmsprop"):
        optimizer.direction("adam", OPTIONS)
    with pytest.raises(ConfigError, match="optimizer.schedule='cosin'.*'cosine'"):
        optimizer.schedule("cosin")


def test_options_are_what_an_optimizer_reads():
    assert optimizer.options("rmsprop") == ("decay", "eps", "weight_decay")
    assert optimizer.options("sgd") == ()


@pytest.mark.parametrize("warm", [4, 0])
def test_inverse_sqrt_is_transformers(warm):
    """1/√((step + shift)/scale), scale = W or 10,000, behind a warm-up of our own."""
    factor = optimizer.schedule("inverse_sqrt")
    hyper = optimizer.pace(warmup_steps=warm, total_steps=100)
    got = [float(factor(step, hyper)) for step in range(100)]
    scale = warm or 10_000
    want = [1 / np.sqrt((step + scale - warm) / scale) for step in range(warm, 100)]
    np.testing.assert_allclose(got[warm:], want, rtol=1e-6)
    np.testing.assert_allclose(got[:warm], [0.2, 0.4, 0.6, 0.8][:warm], rtol=1e-6)
