"""The updates of a turn: what they may read, and what stays as it was when drawn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpo_jax.objectives import on_policy
from dpo_jax.sharding import arrays
from dpo_jax.sharding.mesh import make_mesh
from dpo_jax.train.step import init_state, train_step
from dpo_jax.train.turn import rows_of_updates, take_turn
from tests.objectives.tabular import (
    LENGTH,
    NODES,
    REF,
    drawn,
    laid_out,
    made,
    settled_rows,
)

RAGGED = 1 + np.arange(64).reshape(16, 4) % LENGTH  # tokens of each sample


def updated(updates, *, lr=0.5, **given):
    """Takes the first updates of a turn of two epochs by plain descent."""
    objective, hyper = made("ppo", **given)
    weights = np.random.default_rng(5).normal(size=(NODES, 1)).astype(np.float32)
    params = {"table": jnp.asarray(REF), "value": {"kernel": jnp.asarray(weights)}}
    batch = laid_out(drawn(jax.random.key(2), params["table"], 16, 4), REF)
    algorithm, scorer = objective.algorithm, objective.scorer
    batch, _ = on_policy.settled(
        params, batch, hyper, algorithm=algorithm, scorer=scorer
    )
    step = functools.partial(
        train_step,
        objective=objective,
        tx=lambda hyper: optax.identity(),
        lr_factor=lambda step, hyper: 1.0,
    )
    order = rows_of_updates(0, 0, rows=16, epochs=2, minibatches=2, microbatches=1)
    state, metrics = take_turn(
        init_state(params, optax.identity(), seed=0),
        {},
        batch,
        order[:updates],
        hyper | {"lr": jnp.float32(lr)},
        step=step,
        place=lambda rows: rows,
    )
    assert state.step == updates
    return state.params, metrics


def test_values_are_held_to_those_of_the_rollout():
    """A clip of 1e-6 does nothing in the first minibatch, and stops the critic later.

    Against values that are taken afresh at each update, it would never act.
    """
    tight = [updated(n, value_clip=1e-6)[0]["value"]["kernel"] for n in (1, 4)]
    free = [updated(n, value_clip=np.inf)[0]["value"]["kernel"] for n in (1, 4)]
    np.testing.assert_array_equal(tight[0], free[0])
    assert np.abs(tight[1] - free[1]).max() > 1e-3


def test_the_clip_of_the_ratio_acts_from_the_second_minibatch_on():
    """Where nothing has moved, ratios are 1."""
    _, first = updated(1, lr=50.0)
    assert first["clip_ratio"] == 0 and first["ratio"] == pytest.approx(1, abs=1e-6)
    _, later = updated(4, lr=50.0)
    assert later["clip_ratio"] > 0.1
    tight, _ = updated(1, clip=1e-3, lr=50.0)
    wide, _ = updated(1, clip=np.inf, lr=50.0)
    jax.tree.map(np.testing.assert_array_equal, tight, wide)


@functools.cache
def rollout_of(name):
    """32 ragged rows with their advantages, some samples without a verdict."""
    objective, hyper = made(name)
    params = {"table": jnp.asarray(REF + 0.3)}
    if objective.algorithm.critic:
        params["value"] = {"kernel": jnp.linspace(-1, 1, NODES)[:, None]}
    numbers = drawn(jax.random.key(2), params["table"], 32, 4)
    batch = laid_out(numbers, REF, np.tile(RAGGED, (2, 1)))
    present = (jnp.arange(128).reshape(1, 32, 4) % 5 > 0).astype(jnp.float32)
    batch = batch._replace(response={**batch.response, "present": present})
    algorithm, scorer = objective.algorithm, objective.scorer
    rows, _ = on_policy.settled(
        params, batch, hyper, algorithm=algorithm, scorer=scorer
    )
    return objective, hyper, params, jax.device_get(rows)


def slope_of_first_update(name, shape, microbatches, updates):
    """What the first 8 rows of a rollout of 8 a update say, on a mesh."""
    objective, hyper, params, rollout = rollout_of(name)
    rollout = jax.tree.map(lambda leaf: leaf[:, : 8 * updates], rollout)
    mesh = make_mesh(*shape, 1, devices=jax.devices()[: shape[0] * shape[1]])
    spread = arrays.row_sharding(mesh, leading=1)
    step = functools.partial(
        train_step,
        objective=objective,
        tx=lambda hyper: optax.identity(),
        lr_factor=lambda step, hyper: 1.0,
    )

    @jax.jit
    def take(params, rollout):
        state, metrics = take_turn(
            init_state(params, optax.identity(), seed=0),
            {},
            rollout,
            np.arange(8, dtype=np.int32).reshape(1, microbatches, -1),
            hyper | {"lr": jnp.float32(1.0)},
            step=step,
            place=lambda rows: jax.lax.with_sharding_constraint(rows, spread),
        )
        return jax.tree.map(jnp.subtract, params, state.params), metrics["loss"]

    with jax.set_mesh(mesh):
        return jax.device_get(take(params, arrays.spread(rollout, spread)))


@pytest.mark.parametrize("name", ["ppo", "rloo", "awr"])
def test_an_updates_gradient_depends_on_its_rows_alone(name):
    """Not on microbatches, devices of either axis, or how many updates a rollout has.

    Were anything divided by what a part, a shard or a rollout holds, it would.
    """
    whole, loss = slope_of_first_update(name, (1, 1), 1, 1)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(whole)) > 1e-2
    cases = [((1, 1), 4, 1), ((2, 1), 1, 2), ((2, 2), 2, 1), ((2, 2), 2, 4)]
    for shape, microbatches, updates in cases:
        found, other = slope_of_first_update(name, shape, microbatches, updates)
        assert other == pytest.approx(loss, abs=1e-6)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6),
            found,
            whole,
        )


def graded(objective, hyper, batch, params):
    """Loss, metrics and gradient of a microbatch."""

    def loss(params):
        columns, reports = objective.score(params, {}, batch, jax.random.key(0), hyper)
        return objective.loss(columns, reports, {}, hyper, objective.counts(batch))

    return jax.value_and_grad(loss, has_aux=True)(params)


@pytest.mark.parametrize("poison", [1e9, np.nan, -np.inf])
@pytest.mark.parametrize("name", ["ppo", "rloo", "awr"])
def test_what_stands_behind_a_sample_changes_no_bit(name, poison):
    """Neither loss nor gradient nor metric, whichever column is poisoned there."""
    objective, hyper = made(name)
    behind = jnp.arange(LENGTH) >= RAGGED[..., None]
    behind = behind.reshape(1, 16, 4 * LENGTH)

    def poisoned(column):
        return jnp.where(behind.reshape(column.shape), poison, column)

    found = []
    for spoil in (lambda column: column, poisoned):
        clean = laid_out(drawn(jax.random.key(2), jnp.asarray(REF), 16, 4), REF)
        given = {"ref_logps": spoil(clean.token["ref_logps"])}
        params, batch, _ = settled_rows(
            objective, REF + 0.3, hyper, lengths=RAGGED, tokens=given
        )
        sampled = {"sampled": batch.token["sampled"]}
        token = {key: spoil(column) for key, column in batch.token.items()} | sampled
        found.append(graded(objective, hyper, batch._replace(token=token), params))
    jax.tree.map(np.testing.assert_array_equal, *found)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found[1]))


def test_advantages_stand_on_sampled_tokens_alone():
    objective, hyper = made("ppo")
    _, batch, _ = settled_rows(objective, REF + 0.3, hyper, lengths=RAGGED)
    found = batch.token["advantages"].reshape(16, 4, LENGTH)
    np.testing.assert_array_equal(found != 0, np.arange(LENGTH) < RAGGED[..., None])


def test_a_constant_on_all_rewards_moves_no_advantage_weight():
    """AWR with the prompt's baseline: exp((r − mean)/β)."""
    objective, hyper = made("awr", beta=0.5, weight_clip=1e9)
    scores = np.random.default_rng(8).normal(size=(1, 16, 4)).astype(np.float32)
    weights = [
        settled_rows(objective, REF, hyper, scores=scores + shift)[1].response[
            "weights"
        ]
        for shift in (0.0, 64.0)
    ]
    np.testing.assert_allclose(*weights, rtol=1e-4)
    due = np.exp((scores - scores.mean(-1, keepdims=True))[0] / 0.5)
    np.testing.assert_allclose(weights[0], due, rtol=1e-5)


@pytest.mark.parametrize(("ratio", "share"), [("sequence", 1 / 64), ("token", None)])
def test_how_a_tokens_weight_depends_on_its_samples_length(ratio, share):
    """`sequence`: a mean over samples; `token`: over all tokens. Never on its own row.

    At the first update the gradient of a token's log-prob is −advantage · share.
    """
    objective, hyper = made("rloo", ratio=ratio, kl_coef=0.0)
    params, batch, _ = settled_rows(objective, REF, hyper, lengths=RAGGED)
    name = "advantages" if ratio == "token" else "sample_advantages"
    columns, reports = objective.score(params, {}, batch, jax.random.key(0), hyper)

    def loss(logps):
        token = {**columns.token, "logps": logps}
        summed = (
            jnp.where(token["sampled"] > 0, logps, 0).reshape(16, 4, LENGTH).sum(-1)
        )
        given = columns._replace(
            token=token, response={**columns.response, "logps": summed}
        )
        return objective.loss(given, reports, {}, hyper, objective.counts(batch))[0]

    slope = jax.grad(loss)(columns.token["logps"]).reshape(16, 4, LENGTH)
    source = batch.token if ratio == "token" else batch.response
    advantages = source[name].reshape(16, 4, -1)
    share = share or 1 / RAGGED.sum()
    due = np.where(np.arange(LENGTH) < RAGGED[..., None], -advantages * share, 0)
    np.testing.assert_allclose(slope, due, rtol=1e-4, atol=1e-7)
