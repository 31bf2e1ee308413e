"""PPO, RLOO, AWR and DPO online on a policy small enough to know the optimum.

Sequences of 4 tokens of 3; the policy is a table of logits, one row for each beginning
(40), so that it can be any distribution, and all 81 sequences are summed over. The
turns, the settling, the losses and the scoring are those of a run.
"""

import functools
import itertools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpo_jax import schema
from dpo_jax.losses import LOSSES, find
from dpo_jax.models import scalar
from dpo_jax.objectives import OBJECTIVES, on_policy
from dpo_jax.objectives.judged import Judged
from dpo_jax.objectives.on_policy import OnPolicy, SampleScorer
from dpo_jax.objectives.terms import Scorer
from dpo_jax.sampling.rollout import Prompts, rows_of
from dpo_jax.train.step import init_state, train_step
from dpo_jax.train.turn import rows_of_updates, take_turn
from dpo_jax.types import Head, Samples
from dpo_jax.wiring.on_policy import floats_of

TOKENS, LENGTH = 3, 4
TEXTS = np.array(list(itertools.product(range(TOKENS), repeat=LENGTH)), np.int32)
FIRST = np.cumsum([0, *(TOKENS**t for t in range(LENGTH - 1))])  # node of each length
NODES = sum(TOKENS**t for t in range(LENGTH))
BETA = 0.3


def nodes(texts):
    """Which row of the table predicts each token: i32[…, G]."""
    digits = [jnp.zeros(texts.shape[:-1], jnp.int32)]
    for t in range(LENGTH - 1):
        digits.append(digits[-1] * TOKENS + texts[..., t])
    return jnp.stack(digits, -1) + FIRST


def apply(params, batch):
    """One-hot hidden states of the beginnings, a table as head."""
    texts = batch.tokens[:, 1:].reshape(len(batch.tokens), -1, LENGTH)
    here = jax.nn.one_hot(nodes(texts), NODES)  # [B, n, G, nodes]
    # the state that predicts token t > 0 stands at token t − 1, the first at the prompt
    after = jnp.roll(here, -1, axis=2).reshape(len(texts), -1, NODES)
    root = jnp.broadcast_to(jax.nn.one_hot(0, NODES), (len(texts), 1, NODES))
    return jnp.concatenate([root, after], 1), Head(params["table"], None), {}


def logps_of(table):
    """Log-probs of all 81 sequences under a table [nodes, tokens]."""
    each = jax.nn.log_softmax(table)[nodes(TEXTS)]
    return jnp.take_along_axis(each, TEXTS[..., None], -1)[..., 0].sum(-1)


REWARDS = np.random.default_rng(3).normal(size=len(TEXTS)).astype(np.float32)
REF = 0.5 * np.random.default_rng(4).normal(size=(NODES, TOKENS)).astype(np.float32)


def worth(logps, ref=None):
    """Expected reward and KL to the reference, exactly."""
    ref = logps_of(REF) if ref is None else ref
    probs = np.exp(logps)
    return float(probs @ REWARDS), float(probs @ (logps - ref))


def optimum(beta):
    best = logps_of(REF) + REWARDS / beta
    return np.asarray(best - jax.nn.logsumexp(best))


def rollout(key, table, ref, count, samples):
    """Draws sequences and lays them out as a run does, annotated with the reference."""
    drawn = jax.random.categorical(key, logps_of(table), shape=(count, samples))
    texts = jnp.asarray(TEXTS)[drawn]
    here = Samples(
        texts, texts >= 0, jnp.zeros(texts.shape), jnp.ones(drawn.shape, bool)
    )
    prompts = Prompts(
        jnp.zeros((count, 1), jnp.int32),
        jnp.ones(count, jnp.int32),
        jnp.arange(count),
    )
    rows = rows_of(prompts, here)
    scored = jnp.asarray(REWARDS)[drawn]
    columns = {"scores": scored, "present": jnp.ones(drawn.shape)}
    columns["ended"] = jnp.ones(drawn.shape)
    ref_logps = jnp.take_along_axis(
        jax.nn.log_softmax(ref)[nodes(texts)], texts[..., None], -1
    )
    rows = rows._replace(
        response=columns, token={"ref_logps": ref_logps.reshape(rows.slots.shape)}
    )
    return jax.tree.map(lambda leaf: leaf[None], rows), scored


def learn(objective, params, hyper, *, turns, samples, settle, prepare=None, draw=None):
    """Runs turns of 512 prompts; averages the table over the last quarter of them."""
    update = functools.partial(
        train_step,
        objective=objective,
        tx=lambda hyper: optax.scale_by_adam(),
        lr_factor=lambda step, hyper: jnp.maximum(1.0 - step / turns, 0.02),
    )
    order = rows_of_updates(0, 0, rows=512, epochs=1, minibatches=1, microbatches=1)

    def turn(state, key):
        table = params["table"] if draw == "ref" else state.params["table"]
        batch, scores = rollout(key, table, REF, 512, samples)
        if prepare is not None:
            batch = prepare(batch, scores, key)
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


def critic_of(algorithm):
    return scalar.on_trunk if algorithm.critic else None


def start(critic=False):
    params = {"table": jnp.asarray(REF)}
    if critic:
        params["value"] = {"kernel": jnp.zeros((NODES, 1))}
    return params


def section(**given):
    name = given.pop("name")
    return {k: row.default for k, row in schema.section(name).items()} | given


def hyper_of(name, given, lr):
    floats = floats_of(name, given) | {"lr": lr}
    return {k: jnp.float32(v) for k, v in floats.items()}


@pytest.mark.losses
@pytest.mark.parametrize("name", ["ppo", "rloo", "awr"])
def test_each_algorithm_reaches_the_optimum_of_reward_and_kl(name):
    """π* = ref · exp(r/β) / Z: reward and KL within 2 %; AWR wants a large β."""
    beta = 1.0 if name == "awr" else BETA
    given = {
        "ppo": section(
            name="ppo", kl_coef=beta, lam=1.0, whiten_advantages=False, value_coef=1.0
        ),
        "rloo": section(name="rloo", kl_coef=beta),
        "awr": section(
            name="awr", beta=beta, weight_clip=np.inf, baseline="none", sampler="ref"
        ),
    }[name]
    algorithm = OBJECTIVES[name].make(given)
    scorer = SampleScorer(apply, 64, critic=critic_of(algorithm))
    table = learn(
        OnPolicy(algorithm, scorer),
        start(algorithm.critic),
        hyper_of(name, given, 0.03),
        turns=600,
        samples=4,
        settle=True,
        draw="ref" if name == "awr" else None,
    )
    reached, due = worth(logps_of(table)), worth(optimum(beta))
    np.testing.assert_allclose(reached, due, rtol=0.02)


@pytest.mark.losses
def test_dpo_online_with_drawn_labels_reaches_the_optimum():
    """Pairs of the policy's own samples, labelled by Bradley-Terry of the reward."""
    given = _loss_options() | {"beta": BETA}
    bound = find("dpo", LOSSES).bind(given, {}, name="dpo", weight=None)
    objective = Judged(OBJECTIVES["online"], Scorer(apply, 64), (bound,))

    def prepare(batch, scores, key):
        sure = jax.nn.sigmoid(scores[:, 0] - scores[:, 1])
        first = jax.random.uniform(jax.random.fold_in(key, 1), sure.shape) < sure
        pair = jnp.where(first[:, None], jnp.array([0, 1]), jnp.array([1, 0]))
        return batch._replace(pairs=pair[None, :, None])

    table = learn(
        objective,
        start(),
        {"lr": jnp.float32(0.05), **bound.hyper},
        turns=800,
        samples=2,
        settle=False,
        prepare=prepare,
    )
    np.testing.assert_allclose(worth(logps_of(table)), worth(optimum(BETA)), rtol=0.03)


def _loss_options():
    return {k: row.default for k, row in schema.section("loss").items()}


def settled_rows(objective, table, hyper, *, samples=4, count=16, **changes):
    params = {"table": jnp.asarray(table)}
    if objective.algorithm.critic:
        weights = np.random.default_rng(5).normal(size=(NODES, 1))
        params["value"] = {"kernel": jnp.asarray(weights, jnp.float32)}
    batch, scores = rollout(jax.random.key(2), params["table"], REF, count, samples)
    batch = batch._replace(response={**batch.response, **changes})
    algorithm, scorer = objective.algorithm, objective.scorer
    batch, _ = on_policy.settled(
        params, batch, hyper, algorithm=algorithm, scorer=scorer
    )
    return params, jax.tree.map(lambda leaf: leaf[0], batch), scores


def loss_of(objective, hyper, batch):
    def loss(params):
        columns, reports = objective.score(params, {}, batch, jax.random.key(0), hyper)
        return objective.loss(columns, reports, {}, hyper, objective.counts(batch))[0]

    return loss


def made(name, **given):
    given = section(name=name, **given)
    algorithm = OBJECTIVES[name].make(given)
    objective = OnPolicy(
        algorithm, SampleScorer(apply, 64, critic=critic_of(algorithm))
    )
    return objective, hyper_of(name, given, 0.1)


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
