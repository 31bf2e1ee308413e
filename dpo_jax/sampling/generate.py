"""Autoregressive generation by running the whole row again for every token.

Exact and simple: G forward passes over P + G positions. It knows the model only as
`apply(params, batch) -> (hidden, head)`.
"""

import jax
import jax.numpy as jnp

from dpo_jax import logps
from dpo_jax.sampling.pick import Pick
from dpo_jax.types import ApplyFn, Array, Batch, Params, Samples


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


def generate(
    params: Params,
    prompts: Array,
    lengths: Array,
    key: Array,
    *,
    apply: ApplyFn,
    max_new_tokens: int,
    pick: Pick,
    eos: int,
) -> Samples:
    """Continues prompts until `eos` or `max_new_tokens`.

    Args:
      params: of the policy.
      prompts: i32[B, P] left-aligned ids.
      lengths: i32[B] tokens of each prompt, ≥ 1.
      key: PRNG key; token t folds t into it.
      apply: the policy.
      max_new_tokens: G.
      pick: logits and key -> ids.
      eos: the id that ends a continuation, itself generated and counted.

    Returns:
      Samples of G tokens.
    """
    batch = prompts.shape[0]
    index = jnp.arange(batch)
    canvas = jnp.pad(prompts, ((0, 0), (0, max_new_tokens)))

    def one(carry: tuple, t: Array) -> tuple[tuple, tuple]:
        canvas, done = carry
        hidden, head = apply(params, rows(canvas, lengths + t))
        values = logps.logits(hidden[index, lengths + t - 1], head)
        token = pick(values, jax.random.fold_in(key, t)).astype(jnp.int32)
        logp = logps.target_stats(values, token).logps
        token, logp = jnp.where(done, 0, token), jnp.where(done, 0.0, logp)
        canvas = canvas.at[index, lengths + t].set(token)
        return (canvas, done | (token == eos)), (token, ~done, logp)

    start = (canvas, jnp.zeros(batch, bool))
    _, (tokens, mask, logp) = jax.lax.scan(one, start, jnp.arange(max_new_tokens))
    return Samples(tokens.T, mask.T, logp.T)
