"""Objectives of samples that the policy drew itself: PPO, RLOO and AWR.

An algorithm says what a rollout tells of each token or sample (`settle`, once a turn,
over the whole rollout) and what is minimised of it (`loss`, in each update). All that
`settle` makes are columns of the rows: constants through all epochs of a turn.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dpo_jax import logps, roles
from dpo_jax.models import scalar
from dpo_jax.objectives import terms
from dpo_jax.types import (
    ApplyFn,
    Array,
    Batch,
    Columns,
    Counts,
    Frozen,
    Head,
    Hyper,
    Params,
    Reports,
    Stats,
    Sums,
)

Critic = Callable[[Params, Array, Batch], tuple[Array, Head]]
Made = dict[str, Array]  # names of columns -> [N, n, G] or [N, n]


class Rollout(NamedTuple):
    """What an algorithm sees of a rollout; N prompts, n samples of each, G tokens.

    Attributes:
      mask: bool[N, n, G] tokens that were sampled, of samples with a verdict.
      logps: f32[N, n, G] nats, the policy's when it drew them.
      ref_logps: f32[N, n, G] nats.
      values: f32[N, n, G] of the state before each token; zeros without a critic.
      scores: f32[N, n] the reward of each sample; 0 where `present` is False.
      present: bool[N, n] which samples have a verdict.
      ended: bool[N, n] by a stop token or string.
    """

    mask: Array
    logps: Array
    ref_logps: Array
    values: Array
    scores: Array
    present: Array
    ended: Array

    @property
    def kls(self) -> Array:
        """Sums log π/ref over each sample: f32[N, n] nats."""
        return jnp.where(self.mask, self.logps - self.ref_logps, 0.0).sum(-1)


def rollout_of(batch: Batch) -> Rollout:
    """Reads annotated rows [A, B, …] of one prompt each, as `sampling.rows_of` lays."""
    parts, rows, samples = batch.ends.shape
    dense = (parts * rows, samples, -1)
    present = batch.response["present"].reshape(dense[:2]) > 0
    sampled = logps.scored_places(batch.slots, samples).reshape(dense)
    empty = jnp.zeros(batch.slots.shape, jnp.float32)
    token = {
        name: batch.token.get(name, empty).reshape(dense)
        for name in ("old_logps", "ref_logps", "old_values")
    }
    return Rollout(
        mask=sampled & present[..., None],
        logps=token["old_logps"],
        ref_logps=token["ref_logps"],
        values=token["old_values"],
        scores=jnp.where(present, batch.response["scores"].reshape(dense[:2]), 0.0),
        present=present,
        ended=batch.response["ended"].reshape(dense[:2]) > 0,
    )


def with_columns(batch: Batch, made: Made) -> Batch:
    """Writes what an algorithm made into rows [A, B, …]: of tokens or of samples."""
    shapes = {3: batch.slots.shape, 2: batch.ends.shape}
    laid = {name: x.reshape(shapes[x.ndim]) for name, x in made.items()}
    token = {n: x for n, x in laid.items() if made[n].ndim == 3}
    response = {n: x for n, x in laid.items() if made[n].ndim == 2}
    return batch._replace(
        token={**batch.token, **token}, response={**batch.response, **response}
    )


def scores_with_penalty(rollout: Rollout, hyper: Hyper) -> Array:
    """Takes the penalty off the score of each sample that did not end: f32[N, n]."""
    return rollout.scores - jnp.where(rollout.ended, 0.0, hyper["missing_eos_penalty"])


def token_rewards(scores: Array, penalties: Array, mask: Array) -> Array:
    """Puts each sample's score on its last token, and a penalty on every one.

    Args:
      scores: f32[N, n].
      penalties: f32[N, n, G].
      mask: bool[N, n, G].

    Returns:
      f32[N, n, G], 0 where the mask is False; sums to score − Σ penalties.
    """
    places = jnp.arange(mask.shape[-1])
    last = places == mask.sum(-1, keepdims=True) - 1
    rewards = jnp.where(last, scores[..., None], 0.0) - jnp.where(mask, penalties, 0.0)
    return jnp.where(mask, rewards, 0.0)


def mean_kl(rollout: Rollout) -> Array:
    """Averages Σ log π/ref over the samples with a verdict: f32[] nats."""
    total, count = terms.masked_mean(rollout.kls, rollout.present)
    return total / jnp.maximum(count, 1.0)


@dataclasses.dataclass(frozen=True)
class SampleScorer:
    """Scores the sampled tokens of a microbatch: `Objective.score`.

    Attributes:
      apply: the policy.
      chunk: scored tokens per row whose logits are held at a time.
      temperature: that the samples were drawn at.
      critic: (`params['value']`, the policy's [B, T, D] hidden states, rows) -> hidden
        states and the scalar head on them; None without one.
    """

    apply: ApplyFn
    chunk: int
    temperature: float = 1.0
    critic: Critic | None = None

    def __call__(
        self, params: Params, frozen: Frozen, batch: Batch, key: Array, hyper: Hyper
    ) -> tuple[Columns, Reports]:
        """Runs the policy, and the critic on its trunk, over rows."""
        del key, hyper
        said, reports = self.tokens(roles.whole(params, frozen), batch)
        sums = {
            "logps": terms.total(said["logps"], batch),
            "old_logps": terms.total(batch.token["old_logps"], batch),
        }
        scored = terms.data_columns(batch, sums)
        return scored._replace(token={**batch.token, **said}), reports

    def tokens(self, params: Params, batch: Batch) -> tuple[dict[str, Array], Reports]:
        """Scores the listed tokens: `logps`, `entropy` and `values`, f32[B, C] each."""
        hidden, head, reports = self.apply(params, batch)
        stats = logps.list_stats(
            hidden, head, batch, chunk=self.chunk, temperature=self.temperature
        )
        said = {"logps": stats.logps, "entropy": stats.entropy}
        if self.critic is not None:
            hidden, head = self.critic(params["value"], hidden, batch)
            states = jnp.take_along_axis(hidden, batch.parents[..., None], axis=1)
            said["values"] = scalar.token_scores(states, head)
        return said, reports


class Algorithm(NamedTuple):
    """A way to learn from rewarded samples.

    Attributes:
      settle: (rollout, hyper) -> columns of tokens or samples.
      loss: (columns, hyper, counts) -> (share of the mean loss, {name: (sum, count)}).
      critic: whether it has a value function.
      close: (statistics, rollout, hyper) -> statistics of the next turn; None = none.
    """

    settle: Callable[[Rollout, Hyper], Made]
    loss: Callable[[Columns, Hyper, Counts], tuple[Array, Sums]]
    critic: bool = False
    close: Callable[[Stats, Rollout, Hyper], Stats] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class OnPolicy:
    """What is minimised in the updates of a turn; see `types.Objective`.

    Attributes:
      algorithm: what a loss makes of the columns.
      scorer: `Objective.score`.
    """

    algorithm: Algorithm
    scorer: SampleScorer
    couples: bool = False

    def counts(self, batch: Batch) -> Counts:
        """Counts the sampled tokens and the samples that have a verdict."""
        samples = (batch.response["present"] > 0).sum().astype(jnp.float32)
        return {"tokens": batch.token["sampled"].sum(), "samples": samples}

    def score(
        self, params: Params, frozen: Frozen, batch: Batch, key: Array, hyper: Hyper
    ) -> tuple[Columns, Reports]:
        """Scores a microbatch's samples."""
        return self.scorer(params, frozen, batch, key, hyper)

    def update(self, columns: Columns, stats: Stats, hyper: Hyper) -> Stats:
        """Leaves the statistics: they move between turns."""
        del columns, hyper
        return stats

    def loss(
        self,
        columns: Columns,
        reports: Reports,
        stats: Stats,
        hyper: Hyper,
        counts: Counts,
    ) -> tuple[Array, Sums]:
        """Returns the algorithm's share of the loss, and its metrics."""
        del reports, stats
        share, sums = self.algorithm.loss(columns, hyper, counts)
        sampled = columns.token["sampled"] > 0
        entropy = terms.masked_mean(columns.token["entropy"], sampled)
        return share, sums | {"entropy": entropy}

    def of_set(self, whole: Columns) -> dict[str, Array]:
        """Finds nothing: there is no set of samples to evaluate."""
        del whole
        return {}


def settled(
    params: Params,
    batch: Batch,
    hyper: Hyper,
    *,
    algorithm: Algorithm,
    scorer: SampleScorer,
) -> tuple[Batch, dict[str, Array]]:
    """Makes the columns that all updates of a turn read; no gradient.

    The policy's log-probs are taken by the program that trains, not by the sampler, so
    that ratios before the first update are 1.

    Args:
      params: of the policy, and the critic, that drew the samples.
      batch: rows [parts, B, …], with `ref_logps` where there is a reference.
      hyper: and what the statistics say in its stead.
      algorithm: that learns from them.
      scorer: of the objective.

    Returns:
      The rows, and metrics of the rollout.
    """

    def one(rows: Batch) -> dict[str, Array]:
        said, _ = scorer.tokens(params, rows)
        names = {"logps": "old_logps", "values": "old_values"}
        return {names[name]: said[name] for name in names if name in said}

    old = jax.lax.map(one, batch)
    batch = batch._replace(token={**batch.token, **old})
    rollout = rollout_of(batch)
    sampled = {"sampled": rollout.mask.astype(jnp.float32)}
    made = algorithm.settle(rollout, hyper) | sampled
    metrics = {"kl": mean_kl(rollout)} if "ref_logps" in batch.token else {}
    return jax.lax.stop_gradient(with_columns(batch, made)), metrics
