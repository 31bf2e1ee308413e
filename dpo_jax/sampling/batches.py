"""Rollouts of any number of prompts, in batches of a few static shapes on a mesh.

Prompts are padded to powers of two and shared out evenly over batches, which are no
larger than what is asked for, so that few programs are compiled. Rows are spread over
the mesh; prompts that only fill a batch have ended before they begin. Where half of the
rows have ended, or three quarters, the others go on without them. What is said does not
depend on any of it.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dpo_jax.precision import in_products_of
from dpo_jax.sampling import rollout
from dpo_jax.sampling.pick import Pick
from dpo_jax.sampling.rollout import Decoding, Prompts, State
from dpo_jax.sharding import arrays
from dpo_jax.sharding import mesh as mesh_lib
from dpo_jax.types import Array, Params, Samples

SMALLEST_BUCKET = 16  # tokens
CHUNK = 16  # tokens between two looks for stop strings and rows that have ended
LEAST_ROWS = 32  # of a shard: fewer are not worth the programs for half of them
LEAST_LEFT = 2 * CHUNK  # tokens still to come: as for rows

# ids of a sample -> tokens up to the end of its first stop string; 0 = there is none
Watch = Callable[[list[int]], int]


class Sampler(NamedTuple):
    """The compiled parts of generation; each is compiled once for each shape.

    Attributes:
      mesh: that rows are spread over.
      max_new_tokens: G.
      ready: params -> weights.
      start: (params, prompts, key, first, n) -> state.
      advance: (weights, state, until, kept) -> state, whose buffers it takes over.
      finish: (samples [B, G], kept, n) -> samples [N, n, G].
      read: arrays of the mesh -> arrays of the host, on every process.
    """

    mesh: Mesh
    max_new_tokens: int
    ready: Callable[[Params], Any]
    start: Callable[..., State]
    advance: Callable[..., State]
    finish: Callable[..., Samples]
    read: Callable[[Any], Any]


class Part(NamedTuple):
    """What runs together: prompts of one width, and some of their samples.

    Attributes:
      width: P.
      ids: numbers of the prompts.
      size: N, with those that only fill the batch.
      first: number of the first sample.
      n: samples of each prompt.
    """

    width: int
    ids: Sequence[int]
    size: int
    first: int
    n: int


def make_sampler(
    model: Decoding,
    *,
    pick: Pick,
    stops: Sequence[int],
    max_new_tokens: int,
    mesh: Mesh,
) -> Sampler:
    """Builds generation on a mesh; `jax.set_mesh` has to stand around its use.

    Args:
      model: the policy.
      pick: of a row's logits.
      stops: ids that end a sample.
      max_new_tokens: G ≥ 1.
      mesh: that rows are spread over.
    """
    shared = {"model": model, "pick": pick, "stops": np.asarray([*stops], np.int32)}
    start = functools.partial(rollout.start, **shared, max_new_tokens=max_new_tokens)
    advance = functools.partial(rollout.advance, **shared)
    start, advance = (in_products_of(model.dtype, part) for part in (start, advance))
    whole = jax.jit(lambda tree: tree, out_shardings=arrays.replicated(mesh))

    def finish(samples: Samples, kept: Array, n: int) -> Samples:
        done = rollout.cut(samples, kept)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, n, *leaf.shape[1:]), done)

    return Sampler(
        mesh,
        max_new_tokens,
        jax.jit(model.ready),
        jax.jit(start, static_argnums=4),
        jax.jit(advance, donate_argnums=1),
        jax.jit(finish, static_argnums=2, out_shardings=arrays.row_sharding(mesh)),
        lambda tree: jax.device_get(whole(tree)),
    )


def bucket(tokens: int) -> int:
    """Rounds a length up to a power of two, at least `SMALLEST_BUCKET`."""
    return max(1 << (tokens - 1).bit_length(), SMALLEST_BUCKET)


def plan(lengths: Sequence[int], n: int, *, batch: int, shards: int) -> Iterator[Part]:
    """Shares prompts and samples out over batches.

    Args:
      lengths: tokens of each prompt.
      n: samples of each.
      batch: rows that may run together; at least one a shard do.
      shards: that rows are spread over; prompts are a multiple of it.
    """
    of_shard = max(batch // shards, 1)
    each = _evenly(n, of_shard)
    most = max(of_shard // each, 1) * shards
    widths = [bucket(length) for length in lengths]
    for width in sorted(set(widths)):
        ids = [i for i, mine in enumerate(widths) if mine == width]
        size = -(-_evenly(len(ids), most) // shards) * shards
        for at in range(0, len(ids), size):
            for first in range(0, n, each):
                yield Part(width, ids[at : at + size], size, first, each)


def _evenly(count: int, most: int) -> int:
    """Returns the least size of equal parts that are as few as `most` allows."""
    return -(-count // -(-count // most))


def lay_out(prompts: Sequence[np.ndarray], part: Part) -> Prompts:
    """Lays the prompts of a part out as arrays of the host."""
    laid = Prompts(
        np.zeros((part.size, part.width), np.int32),
        np.ones(part.size, np.int32),
        np.full(part.size, -1, np.int32),
    )
    for row, i in enumerate(part.ids):
        laid.tokens[row, : len(prompts[i])] = prompts[i]
        laid.lengths[row], laid.ids[row] = len(prompts[i]), i
    return laid


def rollouts(
    params: Params,
    prompts: Sequence[np.ndarray],
    key: Array,
    *,
    sampler: Sampler,
    n: int,
    batch: int,
    watch: Watch | None = None,
) -> Iterator[tuple[Part, Prompts, Samples]]:
    """Continues each prompt n times.

    Args:
      params: of the policy.
      prompts: i32[P] ids each, P ≥ 1; its place in the list is a prompt's id.
      key: PRNG key, of the run and, in training, of the turn.
      sampler: of `make_sampler`.
      n: samples of each prompt.
      batch: rows that may run together.
      watch: finds stop strings; None = there are none.

    Yields:
      A part, and its prompts and samples on the mesh.
    """
    weights = sampler.ready(params)
    place = arrays.row_sharding(sampler.mesh)
    lengths, shards = [len(ids) for ids in prompts], mesh_lib.row_shards(sampler.mesh)
    for part in plan(lengths, n, batch=batch, shards=shards):
        rows = arrays.spread(lay_out(prompts, part), place)
        state = sampler.start(params, rows, key, part.first, part.n)
        yield part, rows, _run(sampler, weights, state, part, watch)


def _run(
    sampler: Sampler, weights: Any, state: State, part: Part, watch: Watch | None
) -> Samples:
    """Generates one batch, looking at its rows between chunks of tokens."""
    last, place = sampler.max_new_tokens, arrays.row_sharding(sampler.mesh)
    rows, sizes = np.arange(part.size * part.n), smaller(part.size * part.n, sampler)
    ends, looking = np.zeros(len(rows), np.int32), np.ones(len(rows), bool)
    whole = None
    chunk = CHUNK if watch or sizes else last
    for until in range(chunk, last + chunk, chunk):
        kept = arrays.spread(ends[rows], place)
        state = sampler.advance(weights, state, np.int32(min(until, last)), kept)
        if watch is None and until >= last:
            break
        if watch is None:
            ended = sampler.read(state.samples.ended)
        else:
            samples = sampler.read(state.samples)
            ended = samples.ended
            for at in np.flatnonzero(looking[rows]):
                found = watch(samples.tokens[at][samples.mask[at]].tolist())
                ends[rows[at]] = found
        looking[rows] = ~ended & (ends[rows] == 0)
        going = np.flatnonzero(looking[rows])
        if not len(going):
            break
        fewer = min((n for n in sizes if len(going) <= n < len(rows)), default=0)
        if fewer and last - until >= LEAST_LEFT:
            others = np.setdiff1d(np.arange(len(rows)), going)
            at = np.sort(np.concatenate([going, others[: fewer - len(going)]]))
            whole = _left(whole, state.samples, rows)
            state, rows = _only(state, at), rows[at]
    whole = _left(whole, state.samples, rows)
    return sampler.finish(whole, arrays.spread(ends, place), part.n)


def smaller(rows: int, sampler: Sampler) -> list[int]:
    """Lists the sizes to which a batch may shrink; [] where none is worth a program."""
    shards = mesh_lib.row_shards(sampler.mesh)
    if rows < LEAST_ROWS * shards or sampler.max_new_tokens < CHUNK + LEAST_LEFT:
        return []
    return [-(-rows // (parts * shards)) * shards for parts in (4, 2)]


def _left(whole: Samples | None, samples: Samples, rows: np.ndarray) -> Samples:
    """Lays the samples of some rows into those of all."""
    return samples if whole is None else _like(_put, whole)(whole, samples, rows)


def _only(state: State, at: np.ndarray) -> State:
    """Goes on with some of the rows; those may be fewer than were before."""
    return _like(_take, state)(state, at)


def _put(whole: Samples, samples: Samples, rows: Array) -> Samples:
    return jax.tree.map(lambda all, some: all.at[rows].set(some), whole, samples)


def _take(state: State, at: Array) -> State:
    return jax.tree.map(lambda leaf: leaf[at] if leaf.ndim else leaf, state)


def _like(function: Callable[..., Any], tree: Any) -> Callable[..., Any]:
    """Compiles a function whose result lies on the mesh as a tree does."""
    return jax.jit(
        function, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, tree)
    )


def gather(parts: Iterable[tuple[Part, Any]], prompts: int, n: int) -> Any:
    """Puts what was made of the parts into the order of the prompts.

    Args:
      parts: they, and trees of arrays [N, n, …] of the host.
      prompts: how many there are.
      n: samples of each.

    Returns:
      The tree of arrays [prompts, n, …].
    """
    whole: Any = None
    for part, tree in parts:
        leaves, shape = jax.tree.flatten(tree)
        if whole is None:
            whole = [np.zeros((prompts, n, *x.shape[2:]), x.dtype) for x in leaves]
        stop = min(part.first + part.n, n)
        for into, leaf in zip(whole, leaves, strict=True):
            of_part = leaf[: len(part.ids), : stop - part.first]
            into[part.ids, part.first : stop] = of_part
    return jax.tree.unflatten(shape, whole)
