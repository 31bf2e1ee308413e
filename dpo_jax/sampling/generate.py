"""Autoregressive generation: one pass over the prompts, then a loop over a cache.

The model is known only by the functions of `Decoding`; what a cache is, is its own
affair. Rows never feel each other: a row's noise comes from its own id and token, and a
row that has ended is carried along unchanged until all have.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from dpo_jax import heads
from dpo_jax.sampling.pick import Pick
from dpo_jax.types import Array, Batch, Head, Params, Samples


class Decoding(NamedTuple):
    """A model that can read a text piece by piece.

    Attributes:
      ready: parameters -> weights as `step` reads them.
      prefill: (params, batch, lengths i32[B], tokens of the longest text) ->
        ([B, D] hidden states of the last tokens, head, cache).
      step: (weights, tokens i32[B], positions i32[B], cache) -> the same of one more
        token.
    """

    ready: Callable[[Params], Any]
    prefill: Callable[[Params, Batch, Array, int], tuple[Array, Head, Any]]
    step: Callable[[Any, Array, Array, Any], tuple[Array, Head, Any]]


class State(NamedTuple):
    """All that the loop carries from token to token.

    Attributes:
      count: i32[] tokens generated so far.
      samples: of G tokens, filled up to `count`.
      done: bool[B] rows that have ended.
      lengths: i32[B] tokens of the prompts.
      keys: [B] PRNG keys of the rows.
      cache: the model's.
    """

    count: Array
    samples: Samples
    done: Array
    lengths: Array
    keys: Array
    cache: Any


def rows(tokens: Array, lengths: Array) -> Batch:
    """Makes one-document rows of left-aligned tokens; nothing in them is scored.

    Args:
      tokens: i32[B, T].
      lengths: i32[B] tokens that count.
    """
    batch, size = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(size), (batch, size))
    nothing = jnp.zeros((batch, 0), jnp.int32)
    return Batch(
        tokens=tokens,
        positions=positions,
        docs=(positions < lengths[:, None]).astype(jnp.int32),
        branches=jnp.zeros_like(tokens),
        parents=nothing,
        targets=nothing,
        slots=nothing,
        ends=nothing,
        ids=nothing,
        pairs=jnp.zeros((batch, 0, 2), jnp.int32),
    )


def row_keys(key: Array, ids: Array) -> Array:
    """Gives each row the PRNG key of its id: i32[B] -> [B] keys."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, ids)


def start(
    params: Params,
    prompts: Array,
    lengths: Array,
    keys: Array,
    live: Array,
    *,
    model: Decoding,
    max_new_tokens: int,
    pick: Pick,
    stops: Array,
) -> State:
    """Reads the prompts and picks the first tokens.

    Args:
      params: of the policy.
      prompts: i32[B, P] left-aligned ids.
      lengths: i32[B] tokens of each prompt, ≥ 1.
      keys: [B] PRNG keys; the t-th token folds t in.
      live: bool[B]; rows that are not only fill the batch.
      model: the policy.
      max_new_tokens: G ≥ 1.
      pick: of a row's logits.
      stops: i32[N] ids that end a row.
    """
    chex.assert_rank([prompts, lengths, live, stops], [2, 1, 1, 1])
    size, tokens = prompts.shape[0], prompts.shape[1] + max_new_tokens
    batch = rows(prompts, lengths)
    hidden, head, cache = model.prefill(params, batch, lengths, tokens)
    shape = (size, max_new_tokens)
    empty = Samples(
        jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool), jnp.zeros(shape)
    )
    state = State(jnp.int32(0), empty, ~live, lengths, keys, cache)
    return _append(state, hidden, head, cache, pick=pick, stops=stops)


def _append(
    state: State, hidden: Array, head: Head, cache: Any, *, pick: Pick, stops: Array
) -> State:
    """Picks the next token of each row from [B, D] hidden states."""
    values = heads.logit_columns(hidden, head)  # [V, B]
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(state.keys, state.count)
    token = jax.vmap(pick, in_axes=(1, 0))(values, keys).astype(jnp.int32)
    score = jax.vmap(lambda own, at: heads.target_stats(own, at).logps, in_axes=(1, 0))
    column = Samples(
        jnp.where(state.done, 0, token),
        ~state.done,
        jnp.where(state.done, 0.0, score(values, token)),
    )
    samples = Samples(
        *(
            jax.lax.dynamic_update_slice(whole, new[:, None], (0, state.count))
            for whole, new in zip(state.samples, column, strict=True)
        )
    )
    ended = (token[:, None] == stops).any(1)
    return state._replace(
        count=state.count + 1, samples=samples, done=state.done | ended, cache=cache
    )


def advance(
    weights: Any,
    state: State,
    until: Array,
    halted: Array,
    *,
    model: Decoding,
    pick: Pick,
    stops: Array,
) -> State:
    """Generates until every row has ended or has so many tokens.

    Args:
      weights: of `model.ready`.
      state: as it stands.
      until: i32[] tokens in all, at most G.
      halted: bool[B] rows that someone outside has ended.
      model: the policy.
      pick: of a row's logits.
      stops: i32[N] ids that end a row.
    """

    def go_on(state: State) -> Array:
        return (state.count < until) & ~state.done.all()

    def one(state: State) -> State:
        last = jax.lax.dynamic_index_in_dim(
            state.samples.tokens, state.count - 1, axis=1, keepdims=False
        )
        at = state.lengths + state.count - 1
        hidden, head, cache = model.step(weights, last, at, state.cache)
        return _append(state, hidden, head, cache, pick=pick, stops=stops)

    return jax.lax.while_loop(go_on, one, state._replace(done=state.done | halted))


def generate(
    params: Params,
    prompts: Array,
    lengths: Array,
    key: Array,
    *,
    model: Decoding,
    max_new_tokens: int,
    pick: Pick,
    stops: Array,
) -> Samples:
    """Continues prompts until one of `stops` or `max_new_tokens`.

    The log-probs are those of the model itself, at temperature 1 and whole, however
    `pick` tempers or truncates: they equal `logps.token_logps` of the same text.

    Args:
      params: of the policy.
      prompts: i32[B, P] left-aligned ids.
      lengths: i32[B] tokens of each prompt, ≥ 1.
      key: PRNG key; row b folds b into it, its token t folds t.
      model: the policy.
      max_new_tokens: G ≥ 1.
      pick: of a row's logits.
      stops: i32[N] ids that end a continuation, themselves generated and counted.

    Returns:
      Samples of G tokens.
    """
    size = prompts.shape[0]
    keys, live = row_keys(key, jnp.arange(size)), jnp.ones(size, bool)
    state = start(
        params,
        prompts,
        lengths,
        keys,
        live,
        model=model,
        max_new_tokens=max_new_tokens,
        pick=pick,
        stops=stops,
    )
    weights = model.ready(params)
    last = jnp.int32(max_new_tokens)
    state = advance(weights, state, last, ~live, model=model, pick=pick, stops=stops)
    return state.samples
