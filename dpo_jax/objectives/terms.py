"""What the objectives share: a microbatch scored, and metrics that its columns give."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dpo_jax import logps, roles
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
    Sums,
    TokenPlaces,
    TokenStats,
)

Weigh = Callable[[TokenPlaces, Hyper], Array]  # f32[B, C] weights of the tokens


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Scores the responses of a microbatch: `Objective.score`.

    Attributes:
      apply: the policy.
      chunk: scored tokens per row whose logits are held at a time.
      weigh: weights of the tokens in a response's sum, which the reference shares; None
        = every token counts once.
      ref_head: the head of the reference's parameters, for losses that need its whole
        distribution beside the column `ref_states`; None for all others.
      certain: whether the column `certainty` is asked for.
      prompts: whether `prompt_logps` are.
      noisy: whether `noise` is.
      temperature: of the distribution that responses are scored under.
    """

    apply: ApplyFn
    chunk: int
    weigh: Weigh | None = None
    ref_head: Callable[[Params], Head] | None = None
    certain: bool = False
    prompts: bool = False
    noisy: bool = False
    temperature: float = 1.0

    def __call__(
        self, params: Params, frozen: Frozen, batch: Batch, key: Array, hyper: Hyper
    ) -> tuple[Columns, Reports]:
        """Runs the model on rows and sums what it says over their responses."""
        ref = None
        if self.ref_head is not None:
            held = roles.whole(frozen.get("ref", {}), frozen)
            ref = (batch.token["ref_states"], self.ref_head(held))
        hidden, head, reports = self.apply(roles.whole(params, frozen), batch)
        stats = logps.list_stats(
            hidden,
            head,
            batch,
            chunk=self.chunk,
            ref=ref,
            temperature=self.temperature,
        )
        weights = None
        if self.weigh is not None:
            weights = self.weigh(places(batch, key), hyper)
        scored = columns(stats, batch, weights)
        more = {}
        if self.certain:
            sure = jax.lax.stop_gradient(stats.logps) - stats.collision
            more["certainty"] = total(sure, batch) / jnp.maximum(scored.lengths, 1.0)
        if self.prompts:
            listed = prompt_list(batch)
            prompts = logps.list_stats(hidden, head, listed, chunk=self.chunk)
            more["prompt_logps"] = of_prompts(total(prompts.logps, listed), batch)
        if self.noisy:
            draw = jax.vmap(_noise, in_axes=(None, 0, 0))
            more["noise"] = draw(key, batch.ids, jnp.zeros_like(batch.ids))
        return scored._replace(response={**scored.response, **more}), reports


def token_stats(
    apply: ApplyFn,
    params: Params,
    batch: Batch,
    chunk: int,
    ref: tuple[Array, Head] | None = None,
) -> tuple[TokenStats, Reports]:
    """Runs a model on rows and scores their listed tokens, f32[B, C] each."""
    hidden, head, reports = apply(params, batch)
    return logps.list_stats(hidden, head, batch, chunk=chunk, ref=ref), reports


def score(apply: ApplyFn, params: Params, batch: Batch, chunk: int) -> Columns:
    """Runs a model on rows and sums what it says over their responses."""
    return columns(token_stats(apply, params, batch, chunk)[0], batch)


def total(values: Array, batch: Batch, weights: Array | None = None) -> Array:
    """Sums f32[B, C] over the responses of a microbatch: f32[B, R]."""
    ones = jnp.ones_like(values) if weights is None else weights
    return logps.response_logps(values, ones, batch.slots, batch.ends.shape[-1])


def columns(stats: TokenStats, batch: Batch, weights: Array | None = None) -> Columns:
    """Sums token statistics over the responses of a microbatch."""
    scored = {
        "logps": total(stats.logps, batch, weights),
        "entropy": total(stats.entropy, batch),
        "correct": total(stats.correct, batch),
    }
    if "ref_logps" in batch.token:
        reference = total(batch.token["ref_logps"], batch, weights)
        scored["ref_logps"] = jax.lax.stop_gradient(reference)
    if stats.kl is not None:
        scored["kls"] = total(stats.kl, batch)
    return data_columns(batch, scored)


def data_columns(batch: Batch, scored: dict[str, Array]) -> Columns:
    """Puts what was scored of each response, f32[B, R], beside what the data says."""
    return Columns(
        lengths=logps.response_lengths(batch.slots, batch.ends.shape[-1]),
        pairs=batch.pairs,
        groups=batch.groups,
        response={**batch.response, **scored},
    )


def prompt_list(batch: Batch) -> Batch:
    """Lists the tokens of prompts for scoring, instead of those of responses.

    Slot d − 1 is the prompt of a row's document d. The first token of a prompt has no
    parent and is not scored.
    """
    here, after = batch.docs[:, :-1], batch.docs[:, 1:]
    inside = (after > 0) & (here == after) & (batch.branches[:, 1:] == 0)
    return batch._replace(
        parents=jnp.broadcast_to(jnp.arange(here.shape[1]), here.shape),
        targets=batch.tokens[:, 1:],
        slots=jnp.where(inside, here - 1, batch.ends.shape[-1]),
        token={},
    )


def of_prompts(sums: Array, batch: Batch) -> Array:
    """Gives each response the sum of its prompt, f32[B, R] by document before."""
    docs = jnp.take_along_axis(batch.docs, batch.ends, axis=1)
    return jnp.take_along_axis(sums, jnp.maximum(docs - 1, 0), axis=1)


def lengths(batch: Batch) -> Array:
    """Counts the tokens of each response, f32[B, R]."""
    return logps.response_lengths(batch.slots, batch.ends.shape[-1])


def prompt_lengths(batch: Batch) -> Array:
    """Counts the scored tokens of each response's prompt, f32[B, R]."""
    return of_prompts(lengths(prompt_list(batch)), batch)


def places(batch: Batch, key: Array) -> TokenPlaces:
    """Says where each scored token stands in its response.

    Args:
      batch: a microbatch, every response in at most one comparison.
      key: of the step; a response's random order is keyed by its record's id, so that
        it depends on neither layout, mesh nor microbatch.
    """
    slots, num_slots = batch.slots, batch.ends.shape[-1]
    filled = jnp.minimum(slots, num_slots - 1)
    lengths = logps.response_lengths(slots, num_slots)
    index = jax.vmap(_index)(slots)
    noise = jax.vmap(_noise, in_axes=(None, 0, 0))(
        key, jnp.take_along_axis(batch.ids, filled, axis=1), index
    )
    order = jnp.lexsort((noise, slots), axis=-1)  # noise orders within a slot
    rank = jnp.argsort(order, axis=-1) - jax.vmap(_first)(slots)
    first, second = batch.pairs.reshape(-1, 2).T
    flat = lengths.reshape(-1)
    beyond = flat.size  # of comparisons that are none
    partner = (
        jnp.zeros(beyond, lengths.dtype)
        .at[jnp.where(first < 0, beyond, first)]
        .set(flat[second], mode="drop")
        .at[jnp.where(second < 0, beyond, second)]
        .set(flat[first], mode="drop")
        .reshape(lengths.shape)
    )
    at = lambda values: jnp.take_along_axis(values, filled, axis=1)  # noqa: E731
    return TokenPlaces(index, rank, at(lengths), at(partner))


def _first(slots: Array) -> Array:
    """Returns for each entry of a row's list where its response starts: i32[C]."""
    return jnp.searchsorted(slots, slots, side="left")


def _index(slots: Array) -> Array:
    return jnp.arange(slots.shape[0]) - _first(slots)


def _noise(key: Array, ids: Array, index: Array) -> Array:
    """Draws f32[C] by record and place in the response."""

    def one(name: Array, at: Array) -> Array:
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, name), at))

    return jax.vmap(one)(ids, index)


def masked_mean(values: Array, mask: Array) -> tuple[Array, Array]:
    """Returns (sum, count) of the values that count; f32[N], bool[N]."""
    return jnp.where(mask, values, 0.0).sum(), mask.sum().astype(jnp.float32)


def masked_means(means: dict[str, Array], mask: Array) -> Sums:
    """Returns {name: (sum, count)} of values under one mask."""
    return {name: masked_mean(values, mask) for name, values in means.items()}


def wins(chosen: Array, rejected: Array) -> Array:
    """Says of pairs who is ahead: 1 the chosen, 0 the rejected, ½ nobody.

    A tie is a coin's throw, so that the accuracy of a policy that is its own reference
    is ½. TRL counts it as lost.
    """
    return jnp.heaviside(chosen - rejected, 0.5)


def token_metrics(columns: Columns) -> Sums:
    """Averages entropy and accuracy over all response tokens."""
    tokens = columns.lengths.sum()
    return {
        "entropy": (columns.response["entropy"].sum(), tokens),
        "mean_token_accuracy": (columns.response["correct"].sum(), tokens),
    }


def counts(batch: Batch) -> Counts:
    """Counts from a microbatch's masks all that a loss may be divided by."""
    responses = lengths(batch)
    index = batch.pairs.reshape(-1, 2)
    of_chosen = lambda values: jnp.where(  # noqa: E731
        index[:, 0] >= 0, values.reshape(-1)[index[:, 0]], 0.0
    ).sum()
    counted = {
        "pairs": (index[:, 0] >= 0).sum(),
        "chosen_tokens": of_chosen(responses),
        "whole_tokens": of_chosen(responses + prompt_lengths(batch)),
        "tokens": responses.sum(),
    }
    if "labels" in batch.response:
        counted["singles"] = (batch.response["labels"] != 0).sum()
    if batch.groups is not None:
        counted["lists"] = (batch.groups[..., 0] >= 0).sum()
    return {name: value.astype(jnp.float32) for name, value in counted.items()}
