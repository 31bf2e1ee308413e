"""Rollouts: prompts are read once, then their samples grow over a cache, row by row.

The model is known only by the functions of `Decoding`; what a cache is, it alone knows.
The noise of a token follows from the run's key, the id of the prompt, the number of the
sample and the place of the token in it: never from a place in a batch. A row that has
ended is carried along unchanged until all have, and only `ended` says that it has.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from dpo_jax import heads
from dpo_jax.sampling.pick import Pick
from dpo_jax.sharding.arrays import shaped
from dpo_jax.types import Array, Batch, Head, Params, Samples


class Decoding(NamedTuple):
    """A model that can read a text piece by piece.

    Attributes:
      dtype: of its computation.
      ready: parameters -> weights as `step` reads them.
      prefill: (params, batch, lengths i32[B], tokens of the longest text) ->
        ([B, D] hidden states of the last tokens, head, cache).
      step: (weights, tokens i32[B], positions i32[B], cache) -> the same of one more
        token.
    """

    dtype: Any
    ready: Callable[[Params], Any]
    prefill: Callable[[Params, Batch, Array, int], tuple[Array, Head, Any]]
    step: Callable[[Any, Array, Array, Any], tuple[Array, Head, Any]]


class Prompts(NamedTuple):
    """Prompts that run together.

    Attributes:
      tokens: i32[N, P] left-aligned ids.
      lengths: i32[N] tokens of each, ≥ 1.
      ids: i32[N] number of each prompt, which keys its noise; −1 fills the batch.
    """

    tokens: Array
    lengths: Array
    ids: Array


class State(NamedTuple):
    """All that the loop carries from token to token; B = N·n rows, prompt by prompt.

    Attributes:
      count: i32[] tokens generated so far.
      samples: [B, G] and [B], filled up to `count`.
      lengths: i32[B] tokens of the prompts.
      keys: [B] PRNG keys of the rows.
      cache: the model's.
    """

    count: Array
    samples: Samples
    lengths: Array
    keys: Array
    cache: Any


def abstract_prompts(rows: int, width: int, place: Any) -> Prompts:
    """Describes N = rows prompts of P = width tokens that lie somewhere."""
    ids = shaped((rows,), jnp.int32, place)
    return Prompts(shaped((rows, width), jnp.int32, place), ids, ids)


def abstract_samples(rows: int, n: int, new: int, place: Any) -> Samples:
    """Describes n samples of G = new tokens of each prompt."""
    whole = (rows, n, new)
    return Samples(
        shaped(whole, jnp.int32, place),
        shaped(whole, jnp.bool_, place),
        shaped(whole, jnp.float32, place),
        shaped(whole[:2], jnp.bool_, place),
    )


def prompt_rows(prompts: Prompts) -> Batch:
    """Makes one row of each prompt; nothing in it is scored."""
    shape = (len(prompts.tokens), 0, 0)
    tokens, mask, logps = (jnp.zeros(shape, kind) for kind in (int, bool, float))
    return rows_of(prompts, Samples(tokens, mask, logps, ended=mask.any(-1)))


def rows_of(prompts: Prompts, samples: Samples) -> Batch:
    """Makes one row of each prompt and its n samples, which are scored.

    A row holds P + n·G tokens: the prompt, then each sample in G places, so that what
    one sample leaves free lies before the next. Slot and branch are the sample's.

    Args:
      prompts: [N, P].
      samples: [N, n, G].
    """
    (size, width), (_, n, new) = prompts.tokens.shape, samples.tokens.shape
    row, number = jnp.arange(size)[:, None], jnp.repeat(jnp.arange(n), new)
    places = prompts.lengths[:, None] + jnp.arange(n * new)  # [N, n·G]
    targets, mask = (x.reshape(size, -1) for x in (samples.tokens, samples.mask))
    index = jnp.tile(jnp.arange(new), n)
    at = jnp.arange(width) < prompts.lengths[:, None]

    def laid(prompt: Array | int, response: Array | int) -> Array:
        canvas = jnp.pad(jnp.where(at, prompt, 0), ((0, 0), (0, n * new)))
        return canvas.at[row, places].set(jnp.where(mask, response, 0))

    parents = jnp.where(index == 0, prompts.lengths[:, None], places) - 1
    last = prompts.lengths[:, None] + new * jnp.arange(n) + samples.mask.sum(-1) - 1
    return Batch(
        tokens=laid(prompts.tokens, targets),
        positions=laid(jnp.arange(width), prompts.lengths[:, None] + index),
        docs=laid(1, 1),
        branches=laid(0, 1 + number),
        parents=parents,
        targets=targets,
        slots=jnp.where(mask, number, n),
        ends=last,
        ids=jnp.broadcast_to(prompts.ids[:, None], (size, n)),
        pairs=jnp.full((size, 0, 2), -1),
    )


def sample_keys(key: Array, ids: Array, numbers: Array) -> Array:
    """Gives samples their PRNG keys: prompts i32[N], samples i32[n] -> [N, n] keys."""
    fold = jax.random.fold_in
    of_prompts = jax.vmap(fold, in_axes=(None, 0))(key, ids)
    return jax.vmap(jax.vmap(fold, in_axes=(None, 0)), in_axes=(0, None))(
        of_prompts, numbers
    )


def start(
    params: Params,
    prompts: Prompts,
    key: Array,
    first: Array,
    n: int,
    *,
    model: Decoding,
    max_new_tokens: int,
    pick: Pick,
    stops: Array,
) -> State:
    """Reads each prompt once and picks the first token of each of its samples.

    Args:
      params: of the policy.
      prompts: [N, P].
      key: PRNG key, of the run and, in training, of the turn.
      first: i32[] number of the first of the n samples.
      n: samples of each prompt.
      model: the policy.
      max_new_tokens: G ≥ 1.
      pick: of a row's logits.
      stops: i32[·] ids that end a sample.
    """
    chex.assert_rank([*prompts, stops], [2, 1, 1, 1])
    tokens = prompts.tokens.shape[1] + max_new_tokens
    batch, lengths = prompt_rows(prompts), prompts.lengths
    hidden, head, cache = model.prefill(params, batch, lengths, tokens)
    numbers = first + jnp.arange(n)
    keys = sample_keys(key, prompts.ids, numbers).reshape(-1)
    each = (hidden, lengths, prompts.ids < 0, cache)
    hidden, lengths, filler, cache = jax.tree.map(
        lambda leaf: jnp.repeat(leaf, n, axis=0), each
    )
    shape = (len(lengths), max_new_tokens)
    empty = Samples(
        tokens=jnp.zeros(shape, jnp.int32),
        mask=jnp.zeros(shape, bool),
        logps=jnp.zeros(shape),
        ended=filler,
    )
    state = State(jnp.int32(0), empty, lengths, keys, cache)
    return _append(state, hidden, head, cache, pick=pick, stops=stops)


def _append(
    state: State, hidden: Array, head: Head, cache: Any, *, pick: Pick, stops: Array
) -> State:
    """Picks the next token of each row from [B, D] hidden states."""
    values = heads.logit_columns(hidden, head)  # [V, B]
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(state.keys, state.count)
    token, logps = jax.vmap(pick, in_axes=(1, 0))(values, keys)
    before = state.samples

    def put(whole: Array, new: Array) -> Array:
        new = jnp.where(before.ended, jnp.zeros((), whole.dtype), new)
        return jax.lax.dynamic_update_slice(whole, new[:, None], (0, state.count))

    samples = Samples(
        tokens=put(before.tokens, token),
        mask=put(before.mask, ~before.ended),
        logps=put(before.logps, logps),
        ended=before.ended | (token[:, None] == stops).any(1),
    )
    return state._replace(count=state.count + 1, samples=samples, cache=cache)


def advance(
    weights: Any,
    state: State,
    until: Array,
    kept: Array,
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
      kept: i32[B] as in `cut`, which comes first.
      model: the policy.
      pick: of a row's logits.
      stops: i32[·] ids that end a sample.
    """

    def go_on(state: State) -> Array:
        return (state.count < until) & ~state.samples.ended.all()

    def one(state: State) -> State:
        last = jax.lax.dynamic_index_in_dim(
            state.samples.tokens, state.count - 1, axis=1, keepdims=False
        )
        at = state.lengths + state.count - 1
        hidden, head, cache = model.step(weights, last, at, state.cache)
        return _append(state, hidden, head, cache, pick=pick, stops=stops)

    state = state._replace(samples=cut(state.samples, kept))
    return jax.lax.while_loop(go_on, one, state)


def cut(samples: Samples, kept: Array) -> Samples:
    """Ends rows after so many tokens; those with kept = 0 are left as they are.

    Args:
      samples: [B, G].
      kept: i32[B].
    """
    beyond = jnp.arange(samples.tokens.shape[1]) >= kept[:, None]
    gone = beyond & (kept > 0)[:, None]
    return Samples(
        tokens=jnp.where(gone, 0, samples.tokens),
        mask=samples.mask & ~gone,
        logps=jnp.where(gone, 0.0, samples.logps),
        ended=samples.ended | (kept > 0),
    )
