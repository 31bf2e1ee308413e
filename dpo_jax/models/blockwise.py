"""Attention in blocks: only those that hold a visible key are computed.

Documents are contiguous, so what a block of queries sees begins at the start of its
first document and ends with the block itself. Blocks of queries are sorted by how many
blocks of keys they need and run through in groups, so that a group loops as often as
its neediest member and wastes nothing. Of the scores, only one group of blocks is ever
held, forward and backward. This file knows nothing of parameters.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from dpo_jax.heads import wide
from dpo_jax.models import forest
from dpo_jax.models.forest import Cells
from dpo_jax.sharding.arrays import on_each_shard
from dpo_jax.types import Array

BLOCK = 64  # tokens; measured on CPU against 128: finer blocks waste less of a document
GROUP = 8


class Blocking(NamedTuple):
    """Static facts of a call.

    Attributes:
      scale: multiplies the logits.
      softcap: logits are cut to softcap·tanh(logits / softcap); 0 = off.
      block: tokens of a block.
      group: blocks of queries that run side by side, at most.
    """

    scale: float
    softcap: float
    block: int = BLOCK
    group: int = GROUP


class Visits(NamedTuple):
    """Which blocks of keys each block of queries needs; N = rows · blocks of a row.

    Attributes:
      order: i32[N] blocks of queries, the neediest first.
      needs: i32[N] blocks of keys that each sees, its own included; in that order.
    """

    order: Array
    needs: Array


def padded(x: Array, block: int) -> Array:
    """Pads axis 1 with zeros to whole blocks."""
    missing = -x.shape[1] % block
    return jnp.pad(x, ((0, 0), (0, missing)) + ((0, 0),) * (x.ndim - 2))


def to_blocks(x: Array, heads: int, block: int) -> Array:
    """Cuts [B, T, H, E] into [N, K, (H / K)·block, E]: blocks, by kv head."""
    x = padded(x, block)
    rows, _, _, width = x.shape
    x = x.reshape(rows, -1, block, heads, x.shape[2] // heads, width)
    return x.transpose(0, 1, 3, 4, 2, 5).reshape(-1, heads, x.shape[4] * block, width)


def from_blocks(x: Array, shape: tuple[int, ...], block: int) -> Array:
    """Undoes `to_blocks`; `shape` is that of what was cut."""
    rows, length, _, width = shape
    x = x.reshape(rows, -1, x.shape[1], x.shape[2] // block, block, width)
    return x.transpose(0, 1, 4, 2, 3, 5).reshape(rows, -1, *shape[2:])[:, :length]


def plan_of(cells: Cells, window: Array, block: int) -> Visits:
    """Plans from i32[B, T] cells, T whole blocks."""
    rows, length = cells.docs.shape
    first = forest.first_seen(cells, window).reshape(rows, -1, block).min(-1)
    blocks = jnp.arange(length // block)
    needs = jnp.where(first < length, blocks - first // block + 1, 0).reshape(-1)
    order = jnp.argsort(-needs)
    return Visits(order, needs[order])


def grouped(plan: Visits, group: int) -> Visits:
    """Splits a plan into [groups, group]; what is missing repeats, in need of none."""
    missing = -len(plan.order) % group
    return jax.tree.map(lambda x: jnp.pad(x, (0, missing)).reshape(-1, group), plan)


def scores(
    q: Array, k: Array, seen: Array, options: Blocking
) -> tuple[Array, Array | None]:
    """Returns masked logits f32[G, K, Q, S] and the slope of the softcap, if any."""
    dtype = wide(q.dtype)
    raw = jnp.einsum("GKQE,GKSE->GKQS", q, k, preferred_element_type=dtype)
    raw, slope = options.scale * raw, None
    if options.softcap:
        bent = jnp.tanh(raw / options.softcap)
        raw, slope = options.softcap * bent, 1 - jnp.square(bent)
    return jnp.where(seen, raw, jnp.finfo(dtype).min / 2), slope


def on_groups(
    one: Callable, start: Any, plan: Visits, options: Blocking
) -> tuple[Any, Any]:
    """Scans over groups of query blocks: (carry, order, needs) -> (carry, out).

    Returns the last carry, and what came out in the order of the blocks themselves.
    """
    group = min(options.group, len(plan.order))
    shape = grouped(plan, group)
    carry, out = jax.lax.scan(lambda c, g: one(c, *g), start, shape)
    back = jnp.argsort(plan.order)
    return carry, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[back], out)


def seen_at(
    cells: Cells, order: Array, needs: Array, step: Array, window: Array, heads: int
) -> tuple[Array, Array]:
    """Finds the blocks of keys, `step` before those of the queries, and their mask.

    Args:
      cells: i32[N, block] each.
      order: i32[G] blocks of queries.
      needs: i32[G] how many blocks of keys each sees.
      step: i32[] how far back to look.
      window: i32[].
      heads: query heads of a kv head.

    Returns:
      i32[G] blocks of keys, and bool[G, 1, heads·block, block].
    """
    at = jnp.maximum(order - step, 0)
    query = jax.tree.map(lambda x: x[order][:, :, None], cells)
    key = jax.tree.map(lambda x: x[at][:, None, :], cells)
    seen = forest.visible(query, key, window) & (step < needs)[:, None, None]
    return at, jnp.tile(seen, (1, heads, 1))[:, None]


def run_forward(
    options: Blocking, q: Array, k: Array, v: Array, cells: Cells, window: Array
) -> tuple[Array, Array]:
    """Averages values: -> [B, T, H, E] and the log-normalizers f32[N, K, Q].

    Source: arXiv:2205.14135 algorithm 1 (the running maximum and sum).
    """
    block, heads, shape = options.block, k.shape[2], q.shape
    dtype, repeats = wide(q.dtype), q.shape[2] // k.shape[2]
    cells = jax.tree.map(lambda x: padded(x, block), cells)
    plan = plan_of(cells, window, block)
    cells = jax.tree.map(lambda x: x.reshape(-1, block), cells)
    q, k, v = (to_blocks(x, heads, block) for x in (q, k, v))

    def one(_: None, order: Array, needs: Array) -> tuple[None, tuple]:
        queries = q[order]  # [G, K, Q, E]

        def add(step: Array, sums: tuple) -> tuple:
            top, total, average = sums
            at, seen = seen_at(cells, order, needs, step, window, repeats)
            logits, _ = scores(queries, k[at], seen, options)
            higher = jnp.maximum(top, logits.max(-1))
            weights = jnp.where(seen, jnp.exp(logits - higher[..., None]), 0)
            fade = jnp.exp(top - higher)
            added = jnp.einsum(
                "GKQS,GKSE->GKQE",
                weights.astype(v.dtype),
                v[at],
                preferred_element_type=dtype,
            )
            total = total * fade + weights.sum(-1)
            return higher, total, average * fade[..., None] + added

        least = jnp.full(queries.shape[:3], jnp.finfo(dtype).min / 2, dtype)
        start = least, jnp.zeros_like(least), jnp.zeros(queries.shape, dtype)
        top, total, average = jax.lax.fori_loop(0, needs.max(), add, start)
        total = jnp.where(total > 0, total, 1)
        return None, (
            (average / total[..., None]).astype(q.dtype),
            top + jnp.log(total),
        )

    _, (out, normalizer) = on_groups(one, None, plan, options)
    return from_blocks(out, shape, block), normalizer


def run_backward(
    options: Blocking,
    q: Array,
    k: Array,
    v: Array,
    cells: Cells,
    window: Array,
    out: Array,
    normalizer: Array,
    d_out: Array,
) -> tuple[Array, Array, Array]:
    """Computes the scores again, block by block, and pulls `d_out` back through them.

    Source: arXiv:2205.14135 algorithm 4.
    """
    block, heads = options.block, k.shape[2]
    dtype, repeats = wide(q.dtype), q.shape[2] // k.shape[2]
    shapes = q.shape, k.shape
    cells = jax.tree.map(lambda x: padded(x, block), cells)
    plan = plan_of(cells, window, block)
    cells = jax.tree.map(lambda x: x.reshape(-1, block), cells)
    q, k, v, out, d_out = (to_blocks(x, heads, block) for x in (q, k, v, out, d_out))
    contract = functools.partial(jnp.einsum, preferred_element_type=dtype)
    mean = (out.astype(dtype) * d_out).sum(-1)  # [N, K, Q]

    def one(sums: tuple, order: Array, needs: Array) -> tuple[tuple, Array]:
        queries, slopes = q[order], d_out[order]
        norm, base = normalizer[order][..., None], mean[order][..., None]

        def add(step: Array, sums: tuple) -> tuple:
            dq, dk, dv = sums
            at, seen = seen_at(cells, order, needs, step, window, repeats)
            logits, bend = scores(queries, k[at], seen, options)
            weights = jnp.where(seen, jnp.exp(logits - norm), 0)
            added = contract("GKQS,GKQE->GKSE", weights.astype(q.dtype), slopes)
            dv = dv.at[at].add(added)
            d_logits = contract("GKQE,GKSE->GKQS", slopes, v[at]) - base
            d_logits = options.scale * weights * d_logits
            if bend is not None:
                d_logits = d_logits * bend
            d_logits = d_logits.astype(q.dtype)
            dq = dq + contract("GKQS,GKSE->GKQE", d_logits, k[at])
            added = contract("GKQS,GKQE->GKSE", d_logits, queries)
            return dq, dk.at[at].add(added), dv

        start = (jnp.zeros(queries.shape, dtype), *sums)
        dq, dk, dv = jax.lax.fori_loop(0, needs.max(), add, start)
        return (dk, dv), dq

    zeros = jnp.zeros(k.shape, dtype)
    (dk, dv), dq = on_groups(one, (zeros, zeros), plan, options)
    dq = from_blocks(dq, shapes[0], block).astype(q.dtype)
    dk, dv = (from_blocks(x, shapes[1], block).astype(q.dtype) for x in (dk, dv))
    return dq, dk, dv


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(
    options: Blocking, q: Array, k: Array, v: Array, cells: Cells, window: Array
) -> Array:
    """Averages values with softmax(scale·q·k) over the visible keys.

    Args:
      options: static.
      q: [B, T, H, E] queries; T need not be whole blocks.
      k: [B, T, K, E] keys; query head h reads kv head h // (H / K).
      v: [B, T, K, E] values.
      cells: i32[B, T] each; a document's tokens lie side by side.
      window: i32[] tokens that a query sees, itself included; 0 = all.

    Returns:
      [B, T, H, E] in the dtype of `q`; 0, with gradient 0, where a query sees nothing.
    """
    return forward(options, q, k, v, cells, window)[0]


def forward(
    options: Blocking, q: Array, k: Array, v: Array, cells: Cells, window: Array
) -> tuple[Array, tuple]:
    """Returns the averages and what the backward pass needs, no scores among it."""
    run = functools.partial(run_forward, options)
    run = on_each_shard(run, len(q), ins=(0, 0, 0, 0, None), outs=(0, 0))
    out, normalizer = run(q, k, v, cells, window)
    out, normalizer = (checkpoint_name(x, "attention") for x in (out, normalizer))
    return out, (q, k, v, cells, window, out, normalizer)


def backward(options: Blocking, saved: tuple, d_out: Array) -> tuple:
    """Returns the gradients of queries, keys and values."""
    run = functools.partial(run_backward, options)
    run = on_each_shard(
        run, len(saved[0]), ins=(0, 0, 0, 0, None, 0, 0, 0), outs=(0, 0, 0)
    )
    return *run(*saved, d_out), None, None


attend.defvjp(forward, backward)
