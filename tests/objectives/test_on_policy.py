"""PPO, RLOO, AWR and DPO online against the optimum of a policy that is a table.

The turns, the settling, the losses and the scoring are those of a run.
"""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpo_jax.losses import LOSSES, find
from dpo_jax.objectives import OBJECTIVES, on_policy
from dpo_jax.objectives.on_policy import SampleScorer
from dpo_jax.sampling.rollout import Prompts, rows_of
from dpo_jax.train.step import init_state, train_step
from dpo_jax.train.turn import rows_of_updates, take_turn
from dpo_jax.types import Samples
from dpo_jax.wiring.objective import make_objective
from tests.objectives.tabular import (
    BETA,
    LENGTH,
    NODES,
    REF,
    TEXTS,
    TOKENS,
    apply,
    defaults,
    drawn,
    laid_out,
    logps_of,
    loss_of,
    made,
    nodes,
    optimum,
    settled_rows,
    start,
    worth,
)


def learn(objective, params, hyper, draw, *, turns, settle, prepare=None):
    """Runs turns of what is drawn; averages the table over the last quarter of them."""
    update = functools.partial(
        train_step,
        objective=objective,
        tx=lambda hyper: optax.scale_by_adam(),
        lr_factor=lambda step, hyper: jnp.maximum(1.0 - step / turns, 0.02),
    )
    rows = len(draw(jax.random.key(0), params["table"]))
    order = rows_of_updates(0, 0, rows=rows, epochs=1, minibatches=1, microbatches=1)

    def turn(state, key):
        batch = laid_out(draw(key, state.params["table"]), REF)
        if prepare is not None:
            batch = prepare(batch, key)
        if settle:
            batch, _ = on_policy.settled(
                state.params,
                batch,
                hyper,
                algorithm=objective.algorithm,
                scorer=objective.scorer,
            )
        state, _ = take_turn(
            state, {}, batch, order, hyper, step=update, place=lambda rows: rows
        )
        return state, state.params["table"]

    state = init_state(params, optax.scale_by_adam(), seed=0)
    keys = jax.random.split(jax.random.key(1), turns)
    _, tables = jax.jit(lambda s, k: jax.lax.scan(turn, s, k))(state, keys)
    return tables[turns * 3 // 4 :].mean(0)


REACHING = {
    "ppo": {"lam": 1.0, "whiten_advantages": False, "value_coef": 1.0},
    "rloo": {},
}


@pytest.mark.losses
@pytest.mark.parametrize("name", REACHING)
def test_each_algorithm_reaches_the_optimum_of_reward_and_kl(name):
    """π* = ref · exp(r/β) / Z: reward and KL within 2 %."""
    objective, hyper = made(name, kl_coef=BETA, **REACHING[name])
    table = learn(
        objective,
        start(objective.algorithm.critic),
        hyper | {"lr": jnp.float32(0.03)},
        lambda key, table: drawn(key, table, 512, 4),
        turns=600,
        settle=True,
    )
    reached, due = worth(logps_of(table)), worth(optimum(BETA))
    np.testing.assert_allclose(reached, due, rtol=0.02)


def test_awr_reaches_the_optimum_of_reward_and_kl():
    """π* again, for samples of a reference: exactly, as the samples are all there are.

    The reference's chances are ½, ¼ and ¼ in some order, so that 256 samples hold each
    sequence as often as it is likely, and their mean is the expectation.
    """
    order = np.random.default_rng(6).permuted([[0.5, 0.25, 0.25]] * NODES, axis=1)
    ref = logps_of(jnp.log(order))
    times = np.rint(256 * np.exp(ref)).astype(int)
    assert times.sum() == 256 and set(times) == {1, 2, 4, 8, 16}
    all_there_are = np.repeat(np.arange(len(TEXTS)), times).reshape(64, 4)
    objective, hyper = made(
        "awr", beta=BETA, weight_clip=np.inf, baseline="none", sampler="ref"
    )
    table = learn(
        objective,
        {"table": jnp.zeros((NODES, TOKENS))},
        hyper | {"lr": jnp.float32(0.3)},
        lambda key, table: all_there_are,
        turns=1000,
        settle=True,
    )
    reached, due = worth(logps_of(table), ref), worth(optimum(BETA, ref), ref)
    np.testing.assert_allclose(reached, due, rtol=2e-3)


@pytest.mark.losses
@pytest.mark.parametrize("labels", ["bradley_terry", "soft"])
def test_dpo_online_with_labels_of_the_reward_reaches_the_optimum(labels):
    """Pairs of the policy's own samples, labelled by Bradley-Terry: drawn, or soft."""
    given = defaults("loss", beta=BETA)
    bound = find("dpo", LOSSES).bind(given, {}, name="dpo", weight=None)
    objective = make_objective(
        OBJECTIVES["online"], (bound,), given, apply, chunk=64, labels=labels
    )

    def prepare(batch, key):
        scores = batch.response["scores"][0]
        better = jnp.argsort(-scores, axis=-1)  # the order, as `soft` is given
        if labels == "bradley_terry":
            sure = jax.nn.sigmoid(scores[:, 0] - scores[:, 1])
            first = jax.random.uniform(jax.random.fold_in(key, 1), sure.shape) < sure
            better = jnp.where(first[:, None], jnp.array([0, 1]), jnp.array([1, 0]))
        return batch._replace(pairs=better[None, :, None])

    table = learn(
        objective,
        start(),
        {"lr": jnp.float32(0.05), **bound.hyper},
        lambda key, table: drawn(key, table, 512, 2),
        turns=800,
        settle=False,
        prepare=prepare,
    )
    error = {"bradley_terry": 0.03, "soft": 0.02}[labels]
    np.testing.assert_allclose(worth(logps_of(table)), worth(optimum(BETA)), rtol=error)


def test_ppo_without_its_additions_is_reinforce_with_a_baseline():
    objective, hyper = made(
        "ppo",
        kl_coef=0.0,
        lam=1.0,
        clip=np.inf,
        value_coef=0.0,
        whiten_advantages=False,
    )
    params, batch, scores = settled_rows(objective, REF + 0.3, hyper)
    found = jax.grad(loss_of(objective, hyper, batch))(params)["table"]
    texts = batch.targets.reshape(16, 4, LENGTH)
    values = params["value"]["kernel"][nodes(texts), 0]

    def reinforce(table):
        each = jax.nn.log_softmax(table)[nodes(texts)]
        logps = jnp.take_along_axis(each, texts[..., None], -1)[..., 0]
        return -(logps * (scores[..., None] - values)).mean()

    due = jax.grad(reinforce)(params["table"])
    np.testing.assert_allclose(found, due, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["ppo", "rloo", "awr"])
def test_samples_without_a_verdict_have_no_weight_whatever_they_say(name):
    """And their siblings learn what they would learn without them."""
    objective, hyper = made(name)
    present = jnp.ones((1, 16, 4)).at[0, :, 3].set(0.0)
    grads = []
    for poison in (0.0, 1e9, np.nan):
        scores = jnp.full((1, 16, 4), poison).at[0, :, :3].set(0.5)
        scores = scores.at[0, :, 0].set(-1.0)
        params, batch, _ = settled_rows(
            objective, REF, hyper, present=present, scores=scores
        )
        value, grad = jax.value_and_grad(loss_of(objective, hyper, batch))(params)
        assert np.isfinite(value)
        grads.append(grad)
    jax.tree.map(np.testing.assert_array_equal, grads[0], grads[1])
    jax.tree.map(np.testing.assert_array_equal, grads[0], grads[2])


@pytest.mark.parametrize("name", ["ppo", "rloo", "awr"])
def test_without_any_verdict_nothing_is_learned(name):
    objective, hyper = made(name)
    none = jnp.zeros((1, 16, 4))
    params, batch, _ = settled_rows(objective, REF, hyper, present=none)
    value, grad = jax.value_and_grad(loss_of(objective, hyper, batch))(params)
    assert value == 0 and all(np.all(leaf == 0) for leaf in jax.tree.leaves(grad))


def test_the_distribution_that_is_scored_is_the_one_that_was_drawn():
    """Σ p_drawn ∇ log p_scored = 0 where both are tempered, and not where one is."""
    prompts = Prompts(
        np.zeros((1, 1), np.int32), np.ones(1, np.int32), np.zeros(1, np.int32)
    )
    texts = TEXTS[None]
    rows = rows_of(
        prompts,
        Samples(
            texts, texts >= 0, np.zeros(texts.shape), np.ones(texts.shape[:2], bool)
        ),
    )
    table = jnp.asarray(3 * REF)

    def slope(drawn, scored):
        scorer = SampleScorer(apply, 1024, temperature=scored)
        probs = jnp.exp(logps_of(table / drawn))

        def expected(table):
            said, _ = scorer.tokens({"table": table}, rows)
            return (probs * said["logps"].reshape(len(TEXTS), LENGTH).sum(-1)).sum()

        return float(jnp.abs(jax.grad(expected)(table)).max())

    assert slope(0.5, 0.5) < 1e-5
    assert slope(0.5, 1.0) > 0.05


def test_the_score_stands_on_the_last_token_and_the_rewards_add_up():
    mask = np.arange(6) < np.array([[3, 6], [1, 0]])[..., None]
    scores, penalties = np.array([[2.0, 3.0], [4.0, 9.0]]), np.full(mask.shape, 0.25)
    found = np.asarray(on_policy.token_rewards(scores, penalties, mask))
    np.testing.assert_allclose(found[0, 0], [-0.25, -0.25, 1.75, 0, 0, 0])
    np.testing.assert_allclose(found[0, 1, 5], 2.75)
    np.testing.assert_allclose(found[1], [[3.75] + [0] * 5, [0] * 6])


def test_a_cut_sample_and_no_other_pays_for_its_missing_end():
    objective, hyper = made("rloo", kl_coef=0.0, missing_eos_penalty=1.0)
    ended = jnp.ones((1, 16, 4)).at[0, 0, 0].set(0.0)
    scores = jnp.zeros((1, 16, 4))
    _, batch, _ = settled_rows(objective, REF, hyper, ended=ended, scores=scores)
    found = batch.response["sample_advantages"]
    np.testing.assert_allclose(found[0], [-1, 1 / 3, 1 / 3, 1 / 3], rtol=1e-6)
    assert np.all(found[1:] == 0)


@pytest.mark.parametrize("name", ["ppo", "rloo", "awr"])
def test_parts_of_an_update_add_up_to_the_whole(name):
    """However ragged the samples are; see `train.step.accumulate`."""
    objective, hyper = made(name)
    present = (jnp.arange(64).reshape(1, 16, 4) % 5 > 0).astype(jnp.float32)
    params, batch, _ = settled_rows(objective, REF, hyper, present=present)
    whole = jax.grad(loss_of(objective, hyper, batch))(params)
    counts = objective.counts(batch)
    total = jax.tree.map(jnp.zeros_like, whole)
    for rows in (slice(0, 3), slice(3, 16)):
        part = jax.tree.map(operator.itemgetter(rows), batch)

        def share(params, part=part):
            columns, reports = objective.score(
                params, {}, part, jax.random.key(0), hyper
            )
            return objective.loss(columns, reports, {}, hyper, counts)[0]

        total = jax.tree.map(jnp.add, total, jax.grad(share)(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), total, whole)
