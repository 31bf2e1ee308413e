"""Continues any number of prompts in batches of a few static shapes.

Prompts are padded to powers of two and batches to one size, so that few programs are
compiled; rows that only fill a batch have ended before they begin. The key of a sample
is that of its prompt and its number, so neither the batch size nor the company it keeps
changes its noise.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.sampling import generate
from dpo_jax.sampling.generate import Decoding
from dpo_jax.sampling.pick import Pick
from dpo_jax.sampling.stops import Decode, cut
from dpo_jax.types import Array, Params, Samples

SMALLEST_BUCKET = 16  # tokens
CHUNK = 16  # tokens between two looks for stop strings


class Completion(NamedTuple):
    """One continuation of a prompt.

    Attributes:
      text: special tokens and the stop string left out.
      tokens: ids, the one that ended it included.
      logps: nats, of each token under the whole model at temperature 1.
      ended: by a stop token or string, not by the limit.
    """

    text: str
    tokens: list[int]
    logps: list[float]
    ended: bool


class Engine(NamedTuple):
    """The compiled parts of generation.

    Attributes:
      ready: params -> weights.
      start: (params, prompts, lengths, keys, live) -> state.
      advance: (weights, state, until, halted) -> state, whose buffers it takes over.
      read: state -> (samples, done) that the host can read.
      spread: host arrays [B, …] -> device arrays.
      max_new_tokens: G.
    """

    ready: Callable[[Params], Any]
    start: Callable[..., generate.State]
    advance: Callable[..., generate.State]
    read: Callable[[generate.State], tuple[Samples, Array]]
    spread: Callable[[Any], Any]
    max_new_tokens: int


class _Row(NamedTuple):
    """The `sample`-th continuation of the `prompt`-th prompt."""

    prompt: int
    sample: int


def make_engine(
    model: Decoding,
    *,
    pick: Pick,
    stops: Sequence[int],
    max_new_tokens: int,
    spread: Callable[[Any], Any],
    replicated: Any = None,
) -> Engine:
    """Compiles generation; each shape of a batch once, when it is first met.

    Args:
      model: the policy.
      pick: of a row's logits.
      stops: ids that end a row.
      max_new_tokens: G ≥ 1.
      spread: host arrays [B, …] -> device arrays.
      replicated: sharding of what the host reads; None = wherever it lies.
    """
    ids = np.asarray(list(stops), np.int32)
    shared = {"model": model, "pick": pick, "stops": ids}
    start = functools.partial(generate.start, **shared, max_new_tokens=max_new_tokens)
    advance = functools.partial(generate.advance, **shared)
    return Engine(
        jax.jit(model.ready),
        jax.jit(start),
        jax.jit(advance, donate_argnums=1),
        jax.jit(lambda s: (s.samples, s.done), out_shardings=replicated),
        spread,
        max_new_tokens,
    )


def bucket(tokens: int) -> int:
    """Rounds a length up to a power of two, at least `SMALLEST_BUCKET`."""
    return max(1 << (tokens - 1).bit_length(), SMALLEST_BUCKET)


def complete(
    params: Params,
    prompts: Sequence[np.ndarray],
    *,
    engine: Engine,
    decode: Decode,
    strings: Sequence[str],
    n: int,
    batch: int,
    seed: int,
) -> list[list[Completion]]:
    """Continues each prompt n times.

    Args:
      params: of the policy.
      prompts: i32[P] ids each, P ≥ 1.
      engine: of `make_engine`.
      decode: ids -> text, special tokens left out.
      strings: stop strings.
      n: continuations of each prompt.
      batch: rows that run together.
      seed: of the noise; the same seed on the same mesh gives the same samples.

    Returns:
      n completions of each prompt, in order.
    """
    key, found = jax.random.key(seed), {}
    weights = engine.ready(params)
    for width, rows in _batches([len(prompt) for prompt in prompts], n, batch):
        arrays = _fill(prompts, rows, width, batch)
        keys = jax.vmap(lambda i, j: jax.random.fold_in(jax.random.fold_in(key, i), j))(
            arrays.pop("prompt"), arrays.pop("sample")
        )
        on_device = engine.spread(arrays | {"keys": jax.random.key_data(keys)})
        samples, done = _run(engine, params, weights, on_device, decode, strings)
        for at, row in enumerate(rows):
            found[row] = _completion(samples, done, at, decode, strings)
    return [[found[_Row(i, j)] for j in range(n)] for i in range(len(prompts))]


def _batches(
    lengths: Sequence[int], n: int, batch: int
) -> Iterator[tuple[int, list[_Row]]]:
    """Yields (bucket, rows) with at most `batch` rows of one bucket each."""
    for width in sorted({bucket(length) for length in lengths}):
        own = [i for i, length in enumerate(lengths) if bucket(length) == width]
        rows = [_Row(i, j) for i in own for j in range(n)]
        for start in range(0, len(rows), batch):
            yield width, rows[start : start + batch]


def _fill(
    prompts: Sequence[np.ndarray], rows: Sequence[_Row], width: int, batch: int
) -> dict[str, np.ndarray]:
    """Lays rows out as arrays of `batch` rows; the rest is not live."""
    arrays = {
        "prompts": np.zeros((batch, width), np.int32),
        "lengths": np.ones(batch, np.int32),
        "live": np.arange(batch) < len(rows),
        "prompt": np.zeros(batch, np.int32),
        "sample": np.zeros(batch, np.int32),
    }
    for at, row in enumerate(rows):
        ids = prompts[row.prompt]
        arrays["prompts"][at, : len(ids)] = ids
        arrays["lengths"][at] = len(ids)
        arrays["prompt"][at], arrays["sample"][at] = row
    return arrays


def _run(
    engine: Engine,
    params: Params,
    weights: Any,
    rows: dict[str, Array],
    decode: Decode,
    strings: Sequence[str],
) -> tuple[Samples, np.ndarray]:
    """Generates one batch, looking for stop strings between chunks of tokens."""
    live, last = rows["live"], engine.max_new_tokens
    state = engine.start(
        params,
        rows["prompts"],
        rows["lengths"],
        jax.random.wrap_key_data(rows["keys"]),
        live,
    )
    halted, chunk = np.zeros(live.shape, bool), CHUNK if strings else last
    for until in range(min(chunk, last), last + chunk, chunk):
        mark = engine.spread({"halted": halted})["halted"]
        until = jnp.int32(min(until, last))
        state = engine.advance(weights, state, until, mark)
        samples, done = jax.device_get(engine.read(state))
        for at in np.flatnonzero(~done) if strings else ():
            tokens = _tokens(samples, int(at))
            halted[at] = cut(tokens, decode, strings).found
        if (done | halted).all():
            break
    return samples, done


def _tokens(samples: Samples, at: int) -> list[int]:
    return samples.tokens[at][samples.mask[at]].tolist()


def _completion(
    samples: Samples, done: np.ndarray, at: int, decode: Decode, strings: Sequence[str]
) -> Completion:
    """Reads one row, cut at its stop string."""
    tokens, logps = _tokens(samples, at), samples.logps[at][samples.mask[at]].tolist()
    kept = cut(tokens, decode, strings)
    ended = kept.found or bool(done[at])
    return Completion(kept.text, tokens[: kept.tokens], logps[: kept.tokens], ended)
