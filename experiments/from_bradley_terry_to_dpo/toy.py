"""The lesson's small world: 14 words, one question, six answers, a table for a model.

The table holds one row of logits for everything that may have been read so far, so it
can be any language model at all over these sentences, and each number in it can be
looked at. The rows of tokens and the log-probs are dpo_jax's own; this file knows no
loss.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dpo_jax.data import layouts, planning
from dpo_jax.types import Array, Batch, Head, Params, Record, Reports

WORDS = "<pad> Where is Shanghai ? in China Japan a city In It I think".split()
PROMPT = "Where is Shanghai ?"
REWARDS = {  # how much people like each answer; the lesson's hidden truth
    "Shanghai is in China": 2.0,
    "Shanghai is in Japan": -2.0,
    "Shanghai is a city": 0.5,
    "In China": 1.5,
    "In Japan": -1.5,
    "It is in China I think": 1.0,
}
ANSWERS = list(REWARDS)
NEVER = -30.0  # logit of a word that makes no sense here; e^−30 is about 1e−13

Prefix = tuple[int, ...]


def encode(text: str) -> np.ndarray:
    """Turns words into ids, i32[number of words]."""
    return np.array([WORDS.index(word) for word in text.split()], np.int32)


def record(*answers: str) -> Record:
    """Makes the question with some answers to it a record."""
    pair = ((0, 1),) if len(answers) == 2 else ()
    return Record(0, encode(PROMPT), tuple(map(encode, answers)), comparisons=pair)


def rows(
    records: list[Record], *, layout: str = "padded", row_tokens: int = 0
) -> Batch:
    """Lays records out with the production code.

    Args:
      records: what to lay out.
      layout: a name of `planning.LAYOUTS`.
      row_tokens: length of a row; 0 = the shortest that fits.
    """
    table = layouts.measure(records)
    longest = int(planning.LAYOUTS[layout].split(table).tokens.max())
    row_tokens, together = row_tokens or longest, np.zeros(len(records), np.int32)
    plan = planning.plan(layout, table, together, row_tokens)
    shape = layouts.shape_of(plan, row_tokens, group=0)
    return layouts.fill(layouts.rows_of(plan), records, shape)


def answer_rows() -> Batch:
    """Lays out one row an answer: B = 6, T = 4 + 6 tokens, the short ones padded."""
    return rows([record(answer) for answer in ANSWERS])


def _prefixes(tokens: np.ndarray) -> Iterator[Prefix]:
    """Yields what has been read at each token of a row; (0,) from the padding on."""
    for end in range(1, len(tokens) + 1):
        read = tuple(tokens[:end].tolist())
        yield (0,) if read[-1] == 0 else read


def numbered() -> dict[Prefix, int]:
    """Numbers everything that may have been read: the rows of the table."""
    tokens = answer_rows().tokens
    found = dict.fromkeys(prefix for row in tokens for prefix in _prefixes(row))
    return {prefix: number for number, prefix in enumerate(found)}


def reference_table(seed: int) -> np.ndarray:
    """Draws the logits of the reference: f64[prefixes, V].

    Inside an answer only words that lead on to one of the six answers stand a chance.
    In the prompt, behind an answer and in padding anything may come next.
    """
    prefixes = numbered()
    table = np.random.default_rng(seed).normal(size=(len(prefixes), len(WORDS)))
    start = len(encode(PROMPT))
    for prefix, number in prefixes.items():
        follow = {longer[-1] for longer in prefixes if longer[:-1] == prefix}
        if len(prefix) >= start and follow:
            table[number, [w for w in range(len(WORDS)) if w not in follow]] = NEVER
    return table


def apply(table: Array, batch: Batch) -> tuple[Array, Head, Reports]:
    """Reads the table as a model: a hidden state says which prefix was read.

    Args:
      table: [prefixes, V] logits, the head's kernel.
      batch: rows of `answer_rows`; they must be NumPy arrays.

    Returns:
      One-hot [B, T, prefixes], the head and no reports, as every model of dpo_jax does.
    """
    prefixes = numbered()
    read = [[prefixes[p] for p in _prefixes(row)] for row in np.asarray(batch.tokens)]
    hidden = jax.nn.one_hot(np.array(read), len(prefixes), dtype=table.dtype)
    return hidden, Head(table, None), {}


def next_words(table: Array, text: str) -> dict[str, float]:
    """Returns the probability of each word that may follow `text`, if above 1e-6."""
    chances = jax.nn.softmax(table[numbered()[tuple(encode(text).tolist())]])
    named = zip(WORDS, np.asarray(chances).tolist(), strict=True)
    return {word: chance for word, chance in named if chance > 1e-6}


def minimise(
    loss: Callable[[Params], Array],
    start: Params,
    *,
    lr: float,
    steps: int,
    watch: Callable[[Params], Any] = lambda params: None,
) -> tuple[Params, Array, Any]:
    """Minimises with Adam, its learning rate falling to 0 along a cosine.

    Args:
      loss: of the parameters; a scalar.
      start: where to begin.
      lr: learning rate of the first step.
      steps: number of updates.
      watch: what else to record of the parameters before every step.

    Returns:
      The last parameters; loss of every step, before its update, [steps]; what `watch`
      gave, with the same leading axis.
    """
    tx = optax.adam(optax.cosine_decay_schedule(lr, steps))

    def one(carry: tuple, _: None) -> tuple[tuple, tuple]:
        params, state = carry
        value, slope = jax.value_and_grad(loss)(params)
        updates, state = tx.update(slope, state)
        moved = optax.apply_updates(params, updates)
        return (moved, state), (value, watch(params))

    @jax.jit
    def run(start: Params) -> tuple:
        return jax.lax.scan(one, (start, tx.init(start)), None, length=steps)

    (params, _), (values, watched) = run(jax.tree.map(jnp.asarray, start))
    return params, values, watched
