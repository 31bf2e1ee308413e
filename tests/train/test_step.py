"""One step with stubs: accumulation, clipping, the non-finite gate, donation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dpo_jax.train import optimizer, step
from dpo_jax.types import Batch, Columns

HYPER = {"lr": jnp.float32(0.1), "target": jnp.float32(1.0)}
CLIPPED = HYPER | {"clip": jnp.float32(1.0)}


class Fit:
    """Least squares: predictions w·x + b of the tokens x where docs > 0."""

    couples = False

    def counts(self, batch):
        return {"scored": (batch.docs > 0).sum().astype(jnp.float32)}

    def score(self, params, frozen, batch, key, hyper):
        values = params["w"] * batch.tokens + params["b"]
        noise = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch.ids[:, 0])
        noise = jax.vmap(jax.random.uniform)(noise)[:, None]
        entropy = jnp.broadcast_to(noise, values.shape)
        response = {"logps": values, "entropy": entropy}
        return Columns(batch.docs, batch.pairs, response=response), {}

    def update(self, columns, stats, hyper):
        return stats

    def loss(self, columns, reports, stats, hyper, counts):
        mask = columns.lengths > 0
        error = jnp.where(
            mask, jnp.square(columns.response["logps"] - hyper["target"]), 0.0
        )
        sums = {
            "error": (error.sum(), mask.sum().astype(jnp.float32)),
            "noise": (columns.response["entropy"].sum(), jnp.float32(mask.size)),
        }
        return error.sum() / jnp.maximum(counts["scored"], 1.0), sums


class Timed(Fit):
    """Tells how far the run is."""

    def loss(self, columns, reports, stats, hyper, counts):
        loss, sums = super().loss(columns, reports, stats, hyper, counts)
        return loss, sums | {"progress": (hyper["progress"], jnp.float32(1))}


class Spread(Fit):
    """The variance of the predictions, which no part can tell alone, and a count."""

    couples = True

    def update(self, columns, stats, hyper):
        return {
            name: seen + (columns.lengths > 0).sum() for name, seen in stats.items()
        }

    def loss(self, columns, reports, stats, hyper, counts):
        mask = columns.lengths > 0
        mean = jnp.where(mask, columns.response["logps"], 0.0).sum() / counts["scored"]
        spread = jnp.where(mask, jnp.square(columns.response["logps"] - mean), 0.0)
        return stats["seen"] * spread.sum() / counts["scored"], {}


class Root(Fit):
    """√|w|, whose gradient at w = 0 is not finite although the loss is."""

    couples = True

    def update(self, columns, stats, hyper):
        return {name: seen + 1 for name, seen in stats.items()}

    def loss(self, columns, reports, stats, hyper, counts):
        return jnp.sqrt(jnp.abs(columns.response["logps"])).sum(), {}


class Anchored(Fit):
    """Predictions (w + base)·x + b, where the base is frozen."""

    def score(self, params, frozen, batch, key, hyper):
        whole = {**params, "w": params["w"] + frozen["base"]}
        return super().score(whole, frozen, batch, key, hyper)


class Routed(Fit):
    """A trunk that reports its load Σ w²x, and a loss of the whole step's load."""

    couples = True

    def score(self, params, frozen, batch, key, hyper):
        columns, _ = super().score(params, frozen, batch, key, hyper)
        read = jnp.where(batch.docs > 0, batch.tokens, 0)
        return columns, {"load": (jnp.square(params["w"]) * read).sum()}

    def loss(self, columns, reports, stats, hyper, counts):
        loss, sums = super().loss(columns, reports, stats, hyper, counts)
        load = reports["load"] / counts["scored"]
        return loss + jnp.square(load), sums | {"load": (load, jnp.float32(1))}


def batch_of(tokens, docs):
    tokens, docs = (jnp.asarray(x, jnp.int32) for x in (tokens, docs))
    parts, rows, _ = tokens.shape
    none = jnp.zeros((parts, rows, 0), jnp.int32)
    ids = jnp.arange(parts * rows).reshape(parts, rows, 1)
    pairs = jnp.full((parts, rows, 1, 2), -1)
    return Batch(tokens, tokens, docs, docs, none, none, none, none, ids, pairs=pairs)


FIT, SPREAD, TIMED = Fit(), Spread(), Timed()


def sgd(hyper):
    return optimizer.sgd()


def adamw(hyper):
    return optimizer.adamw(b1=0.9, b2=0.9, eps=1e-8, weight_decay=0.1)


def level(step, hyper):
    return jnp.float32(1)


def state_of(w=1.0, b=0.0, tx=sgd):
    params = {"w": jnp.float32(w), "b": jnp.float32(b)}
    state = step.init_state(params, tx(HYPER), seed=3)
    return state._replace(stats={"seen": jnp.float32(0)})


STATIC = ("objective", "tx", "lr_factor", "sync_every")


@functools.partial(jax.jit, static_argnames=STATIC)
def take(
    state,
    batch,
    hyper=HYPER,
    *,
    objective=FIT,
    tx=sgd,
    lr_factor=level,
    sync_every=0,
    frozen=None,
):
    return step.train_step(
        state,
        frozen or {},
        batch,
        hyper,
        objective=objective,
        tx=tx,
        lr_factor=lr_factor,
        sync_every=sync_every,
    )


ONE = batch_of([[[2, 3, 9]]], [[[1, 1, 0]]])  # the 9 does not count


def test_a_step_by_hand():
    """w = 1: errors 1, 2; loss 2.5; ∂w = (2·1·2 + 2·2·3)/2 = 8, ∂b = 3."""
    state, metrics = take(state_of(), ONE)
    np.testing.assert_allclose(metrics["loss"], 2.5)
    np.testing.assert_allclose(metrics["grad_norm"], np.sqrt(73), rtol=1e-6)
    np.testing.assert_allclose(state.params["w"], 1 - 0.1 * 8, rtol=1e-6)
    np.testing.assert_allclose(state.params["b"], -0.1 * 3, rtol=1e-6)
    assert metrics["ok"] and state.step == 1 and state.stats["seen"] == 0


def test_the_schedule_scales_the_rate_and_is_logged():
    falling = lambda step, hyper: 0.5 / (step + 1)  # noqa: E731
    half, metrics = take(state_of(), ONE, lr_factor=falling)
    np.testing.assert_allclose(metrics["lr"], 0.05)
    np.testing.assert_allclose(half.params["w"], 1 - 0.05 * 8, rtol=1e-6)
    _, metrics = take(half, ONE, lr_factor=falling)
    np.testing.assert_allclose(metrics["lr"], 0.025)


def test_losses_are_told_how_much_of_the_run_is_done():
    """Of a run of 4 steps: nothing at the first, a quarter at the second."""
    state, hyper = state_of(), HYPER | {"step_share": jnp.float32(0.25)}
    for done in (0.0, 0.25, 0.5):
        state, metrics = take(state, ONE, hyper, objective=TIMED)
        assert metrics["progress"] == done
    assert step.at_step(HYPER, state.step) == HYPER


def test_clipping_by_hand():
    """Norm √73 is cut to 1, as torch does: a factor 1/(norm + 1e-6)."""
    state, metrics = take(state_of(), ONE, CLIPPED)
    np.testing.assert_allclose(metrics["grad_norm"], np.sqrt(73), rtol=1e-6)
    np.testing.assert_allclose(
        state.params["w"], 1 - 0.1 * 8 / (np.sqrt(73) + 1e-6), rtol=1e-6
    )
    loose, _ = take(state_of(), ONE, HYPER | {"clip": jnp.float32(100)})
    np.testing.assert_allclose(loose.params["w"], 1 - 0.1 * 8, rtol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_clipping_equals_torch(limit):
    torch = pytest.importorskip("torch")
    values = {"a": np.float32([3.0, -4.0]), "b": np.float32([[12.0]])}
    tensors = [torch.zeros(v.shape) for v in values.values()]
    for tensor, value in zip(tensors, values.values(), strict=True):
        tensor.grad = torch.tensor(value)
    norm = torch.nn.utils.clip_grad_norm_(tensors, limit)
    assert float(norm) == float(optax.global_norm(values)) == 13.0
    got = step.clip(values, optax.global_norm(values), limit)
    for tensor, name in zip(tensors, values, strict=True):
        np.testing.assert_allclose(got[name], tensor.grad.numpy(), rtol=1e-6)


RAGGED = [  # 8 rows whose counts are 3, 1, 0, 2, 3, 0, 0, 1: halves of 6 and 4
    [1, 1, 1], [0, 1, 0], [0, 0, 0], [1, 0, 1],
    [1, 1, 1], [0, 0, 0], [0, 0, 0], [0, 0, 1],
]  # fmt: skip


@pytest.mark.parametrize("objective, seen", [(FIT, 0), (SPREAD, 10)])
@pytest.mark.parametrize("parts", [2, 4, 8])
def test_microbatches_change_nothing(parts, objective, seen):
    """The mean is over the whole step's count, though no two parts hold the same."""
    tokens = np.random.default_rng(0).integers(-5, 6, (8, 3))
    split = lambda x, n: np.reshape(x, (n, 8 // n, 3))  # noqa: E731
    whole = batch_of(split(tokens, 1), split(RAGGED, 1))
    cut = batch_of(split(tokens, parts), split(RAGGED, parts))
    want, wanted = take(state_of(0.7, 0.2), whole, objective=objective)
    got, metrics = take(state_of(0.7, 0.2), cut, objective=objective)
    for name in ("w", "b"):
        np.testing.assert_allclose(got.params[name], want.params[name], rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], wanted["loss"], rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], wanted["grad_norm"], rtol=1e-6)
    assert wanted["loss"] > 0.1 and want.params["w"] != np.float32(0.7)
    assert got.stats["seen"] == want.stats["seen"] == seen


def test_a_coupled_loss_by_numpy():
    """Gradient of 10·Var(w·x): 20 w Var(x), whose b-part is 0."""
    tokens = np.random.default_rng(0).integers(-5, 6, (2, 4, 3))
    docs = np.reshape(RAGGED, (2, 4, 3))
    state, metrics = take(state_of(0.7, 0.2), batch_of(tokens, docs), objective=SPREAD)
    spread = np.var(tokens[docs > 0])
    np.testing.assert_allclose(metrics["loss"], 10 * 0.49 * spread, rtol=1e-5)
    want = 0.7 - 0.1 * 20 * 0.7 * spread
    np.testing.assert_allclose(state.params["w"], want, rtol=1e-5)
    np.testing.assert_allclose(state.params["b"], 0.2, atol=1e-5)


def test_gradients_are_of_the_global_mean():
    """Against NumPy: 2/n Σ (w·x + b − t)·x over what counts."""
    tokens = np.random.default_rng(1).integers(-5, 6, (4, 2, 3))
    docs = np.reshape(RAGGED, (4, 2, 3))
    grads, (loss, sums, _) = step.accumulate(
        Fit(),
        {"w": jnp.float32(0.3), "b": jnp.float32(-0.1)},
        {},
        {},
        batch_of(tokens, docs),
        jax.random.key(0),
        HYPER,
    )
    error = np.where(docs > 0, 0.3 * tokens - 0.1 - 1.0, 0.0)
    np.testing.assert_allclose(grads["w"], 2 * (error * tokens).sum() / 10, rtol=1e-5)
    np.testing.assert_allclose(grads["b"], 2 * error.sum() / 10, rtol=1e-5)
    np.testing.assert_allclose(loss, np.square(error).sum() / 10, rtol=1e-5)
    np.testing.assert_allclose(sums["error"][0], np.square(error).sum(), rtol=1e-5)
    assert sums["error"][1] == 10


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_reports_of_a_trunk_add_up_and_are_pulled_back(parts):
    """Load L = w²·Σx/n; the loss gains L², its slope in w 2L · 2w·Σx/n."""
    tokens = np.random.default_rng(1).integers(-5, 6, (4, 2, 3))
    docs = np.reshape(RAGGED, (4, 2, 3))
    params = {"w": jnp.float32(0.3), "b": jnp.float32(-0.1)}
    batch = batch_of(*(x.reshape(parts, -1, 3) for x in (tokens, docs)))
    plain, routed = (
        step.accumulate(objective, params, {}, {}, batch, jax.random.key(0), HYPER)
        for objective in (Fit(), Routed())
    )
    mean = np.where(docs > 0, tokens, 0).sum() / 10
    load = 0.09 * mean
    assert abs(load) > 0.01
    np.testing.assert_allclose(routed[1][1]["load"][0], load, rtol=1e-5)
    np.testing.assert_allclose(routed[1][0] - plain[1][0], load**2, rtol=1e-3)
    slope = routed[0]["w"] - plain[0]["w"]
    np.testing.assert_allclose(slope, 2 * load * 2 * 0.3 * mean, rtol=1e-3)


def test_what_is_frozen_is_read_and_gets_no_gradient():
    """Base 1 on top of w = 1 is w = 2: the same loss, and the base stays 1."""
    frozen = {"base": jnp.float32(1.0)}
    state, metrics = take(state_of(), ONE, objective=Anchored(), frozen=frozen)
    other, wanted = take(state_of(w=2.0), ONE)
    np.testing.assert_allclose(metrics["loss"], wanted["loss"])
    np.testing.assert_allclose(state.params["w"], other.params["w"] - 1, rtol=1e-6)
    assert frozen["base"] == 1.0


@pytest.mark.parametrize("flag", ["default", "highest", "bfloat16"])
def test_float32_products_are_exact_whoever_calls(flag):
    """As the program has it, forward and backward; no flag of the process decides."""

    class Product(Fit):
        def score(self, params, frozen, batch, key, hyper):
            columns, reports = super().score(params, frozen, batch, key, hyper)
            values = params["w"] * batch.tokens @ jnp.ones((3, 3), jnp.float32)
            response = {**columns.response, "logps": values}
            return columns._replace(response=response), reports

    compiled = step.compile_step(
        lambda state, frozen, batch, hyper: take.__wrapped__(
            state, batch, hyper, objective=Product()
        ),
        state_shardings=None,
        frozen_shardings=None,
        batch_sharding=None,
        scalar=None,
        dtype="float32",
    )
    with jax.default_matmul_precision(flag):
        text = str(jax.make_jaxpr(compiled)(state_of(), {}, ONE, HYPER))
    products = text.count("dot_general[")
    assert products >= 2
    assert text.count("precision=(Precision.HIGHEST") == products


def test_an_empty_batch_moves_nothing():
    state, metrics = take(state_of(), batch_of([[[2, 3]]], [[[0, 0]]]))
    assert metrics["loss"] == 0 and metrics["ok"]
    assert state.params["w"] == 1.0 and state.params["b"] == 0.0


@pytest.mark.parametrize(
    "objective, start, target",
    [(FIT, 1.0, np.nan), (FIT, 1.0, np.inf), (Root(), 0.0, 1.0)],
    ids=["nan loss", "infinite loss", "infinite gradient"],
)
@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_that_is_not_finite_changes_nothing(objective, start, target, parts):
    before, _ = take(state_of(0.5, tx=adamw), ONE, tx=adamw)
    before = before._replace(
        params={"w": jnp.float32(start), "b": jnp.float32(0)},
        stats={"seen": jnp.float32(7)},
    )
    bad = batch_of([[[2, 3, 9]]] * parts, [[[1, 1, 0]]] * parts)
    hyper = CLIPPED | {"target": jnp.float32(target)}
    after, metrics = take(before, bad, hyper, objective=objective, tx=adamw)
    assert not metrics["ok"]
    assert after.step == before.step + 1
    for field in ("params", "opt_state", "stats", "key"):
        jax.tree.map(
            np.testing.assert_array_equal,
            getattr(after, field),
            getattr(before, field),
        )


def test_noise_is_keyed_by_step_and_id_but_not_by_part():
    four, one = ([[[1]]] * 4,) * 2, ([[[1]] * 4],) * 2
    state, first = take(state_of(), batch_of(*four))
    _, same = take(state_of(), batch_of(*one))
    _, second = take(state, batch_of(*four))
    np.testing.assert_allclose(first["noise"], same["noise"], rtol=1e-6)
    assert first["noise"] != second["noise"]
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), 0)
    draws = [jax.random.uniform(jax.random.fold_in(key, i)) for i in range(4)]
    np.testing.assert_allclose(first["noise"], np.mean(draws), rtol=1e-6)


@pytest.mark.parametrize("mix", [0.25, 1.0])
def test_a_reference_follows_every_second_update(mix):
    """ref ← (1 − mix)·ref + mix·policy after updates 2 and 4, as TR-DPO has it."""
    hyper = HYPER | {"sync_mix": jnp.float32(mix)}
    state = state_of()._replace(ref={"w": jnp.float32(5.0), "b": jnp.float32(-1.0)})
    want = {"w": 5.0, "b": -1.0}
    for number in range(1, 5):
        state, _ = take(state, ONE, hyper, sync_every=2)
        if number % 2 == 0:
            own = {name: float(value) for name, value in state.params.items()}
            want = {n: (1 - mix) * want[n] + mix * own[n] for n in want}
        for name, value in want.items():
            np.testing.assert_allclose(state.ref[name], value, rtol=1e-6)
    assert want["w"] != 5.0


def test_one_compilation_serves_a_sweep_and_donates_the_state():
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    everywhere = NamedSharding(mesh, P())
    compiled = step.compile_step(
        lambda state, frozen, batch, hyper: take.__wrapped__(
            state, batch, hyper, frozen=frozen, objective=Anchored()
        ),
        state_shardings=everywhere,
        frozen_shardings=everywhere,
        batch_sharding=everywhere,
        scalar=everywhere,
        dtype="float32",
    )
    frozen = jax.device_put({"base": jnp.float32(0.0)}, everywhere)
    losses = []
    for target in (1.0, 2.0, 3.0):
        state = jax.device_put(state_of(), everywhere)
        hyper = HYPER | {"target": jnp.float32(target)}
        new, metrics = compiled(state, frozen, ONE, hyper)
        assert state.params["w"].is_deleted() and not new.params["w"].is_deleted()
        assert not frozen["base"].is_deleted()
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses, [2.5, 0.5, 0.5])
    assert compiled._cache_size() == 1


def test_a_copy_that_slips_into_a_step_is_refused():
    """The host's array is copied to the device by the call itself."""
    double = step.without_transfers(jax.jit(lambda x: 2 * x))
    assert double(jax.device_put(np.ones(3, np.float32))).sum() == 6
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        double(np.ones(3, np.float32))
    double(jax.device_put(np.ones(3, np.float32)))
    jax.jit(lambda x: 3 * x)(np.ones(3, np.float32))  # outside, all is as it was


def test_debugging_may_look_at_every_result():
    before = jax.config.jax_debug_nans
    jax.config.update("jax_debug_nans", True)
    try:
        double = step.without_transfers(jax.jit(lambda x: 2 * x))
        assert double(np.ones(3, np.float32)).sum() == 6
    finally:
        jax.config.update("jax_debug_nans", before)
