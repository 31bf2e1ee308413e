"""A policy small enough to know its optimum: a table of logits, summed over exactly.

Sequences of 4 tokens of 3; one row of the table for each beginning (40), so that it can
be any distribution. Turns, settling, losses and scoring are those of a run.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import schema
from dpo_jax.models import scalar
from dpo_jax.objectives import OBJECTIVES, on_policy
from dpo_jax.objectives.on_policy import OnPolicy, SampleScorer
from dpo_jax.sampling.rollout import Prompts, rows_of
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


def optimum(beta, ref=None):
    """Log-probs of ref · exp(r/β) / Z."""
    best = (logps_of(REF) if ref is None else ref) + REWARDS / beta
    return np.asarray(best - jax.nn.logsumexp(best))


def drawn(key, table, count, samples):
    """Draws sequences, numbers of `TEXTS`: i32[count, samples]."""
    return jax.random.categorical(key, logps_of(table), shape=(count, samples))


def laid_out(numbers, ref, lengths=LENGTH):
    """Lays sequences out as a run does, annotated with the reference.

    Args:
      numbers: i32[N, n] of `TEXTS`.
      ref: table of the reference.
      lengths: tokens of each that count, i32[N, n] or all.
    """
    texts, count = jnp.asarray(TEXTS)[numbers], len(numbers)
    mask = jnp.arange(LENGTH) < jnp.broadcast_to(lengths, numbers.shape)[..., None]
    ended = jnp.ones(numbers.shape)
    prompts = Prompts(
        jnp.zeros((count, 1), jnp.int32), jnp.ones(count, int), jnp.arange(count)
    )
    rows = rows_of(prompts, Samples(texts, mask, jnp.zeros(mask.shape), ended > 0))
    scored = jnp.asarray(REWARDS)[numbers]
    ref_logps = jnp.take_along_axis(
        jax.nn.log_softmax(ref)[nodes(texts)], texts[..., None], -1
    )
    rows = rows._replace(
        response={"scores": scored, "present": jnp.ones_like(scored), "ended": ended},
        token={"ref_logps": ref_logps.reshape(rows.slots.shape)},
    )
    return jax.tree.map(lambda leaf: leaf[None], rows)


def start(critic=False):
    params = {"table": jnp.asarray(REF)}
    if critic:
        params["value"] = {"kernel": jnp.zeros((NODES, 1))}
    return params


def defaults(name, **given):
    """The section of a configuration, as it is but for what is given."""
    return {k: row.default for k, row in schema.section(name).items()} | given


def hyper_of(name, given, lr):
    floats = floats_of(name, given) | {"lr": lr}
    return {k: jnp.float32(v) for k, v in floats.items()}


def settled_rows(objective, table, hyper, *, lengths=LENGTH, tokens=None, **changes):
    """Settles 16 · 4 sequences: parameters, rows, rewards.

    Args:
      objective: of samples.
      table: of the policy.
      hyper: its hyper-parameters.
      lengths: as `laid_out` has it.
      tokens: columns of tokens that are given, f32[1, 16, 4 · LENGTH].
      changes: columns of samples, f32[1, 16, 4].
    """
    params = {"table": jnp.asarray(table)}
    if objective.algorithm.critic:
        weights = np.random.default_rng(5).normal(size=(NODES, 1))
        params["value"] = {"kernel": jnp.asarray(weights, jnp.float32)}
    batch = laid_out(drawn(jax.random.key(2), params["table"], 16, 4), REF, lengths)
    scores = batch.response["scores"][0]
    batch = batch._replace(
        response={**batch.response, **changes}, token={**batch.token, **(tokens or {})}
    )
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
    given = defaults(name, **given)
    algorithm = OBJECTIVES[name].make(given)
    critic = scalar.on_trunk if algorithm.critic else None
    objective = OnPolicy(algorithm, SampleScorer(apply, 64, critic=critic))
    return objective, hyper_of(name, given, 0.1)
