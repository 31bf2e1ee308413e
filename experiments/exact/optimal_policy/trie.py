"""A policy that is a table of logits on a trie, behind the production rows and gathers.

Three words, four deep: 81 sequences, 40 inner nodes, 120 logits. The table is put in
the place of a model, so a shift by one, a wrong mask or a mean in place of a sum shows.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import exact
from dpo_jax.data import layouts, planning
from dpo_jax.models import attention, forest
from dpo_jax.types import Array, Batch, Head, Record, Reports

WORDS, DEPTH = 3, 4
SEQUENCES = np.array(list(itertools.product(range(WORDS), repeat=DEPTH)), np.int32)
LEVELS = [(WORDS**depth - 1) // (WORDS - 1) for depth in range(DEPTH + 1)]
NODES = LEVELS[DEPTH]  # 1 + 3 + 9 + 27 = 40


def node(words: tuple[int, ...]) -> int:
    """Numbers the trie's nodes: level by level, by the word's digits, base 3."""
    return LEVELS[len(words)] + sum(w * WORDS**i for i, w in enumerate(words))


def apply(table: Array, batch: Batch) -> tuple[Array, Head, Reports]:
    """Is a model whose hidden state is the one-hot node of what a token sees.

    Args:
      table: f[nodes, words] logits.
      batch: rows of one prompt token and the sequences behind it.
    """
    cells = forest.cells_of(batch.docs, batch.branches, batch.positions)
    seen = attention.DENSE.seen(cells, 0)[:, 0]
    depth = batch.positions  # 0 at the prompt's one token, then 1… along a response
    worth = batch.tokens * jnp.where(depth > 0, WORDS ** jnp.maximum(depth - 1, 0), 0)
    level = jnp.array([*LEVELS])[depth]
    nodes = level + (seen * worth[:, None, :]).sum(-1)
    hidden = jax.nn.one_hot(nodes, NODES, dtype=table.dtype)  # [B, T, nodes]
    return hidden, Head(table, None), {}


def rows(layout: str) -> tuple[Batch, np.ndarray, np.ndarray, np.ndarray]:
    """Lays all 81 sequences out behind one prompt token, in every comparison.

    The comparisons are put in by hand, because they go across the records.

    Args:
      layout: a name of `planning.LAYOUTS`.

    Returns:
      (batch, place of each sequence as row · R + slot, first and second sequence of
      each comparison).
    """
    prompt = np.zeros(1, np.int32)
    if layout == "prefix_shared":
        records = [Record(0, prompt, tuple(SEQUENCES))]
    else:
        records = [Record(i, prompt, (s,)) for i, s in enumerate(SEQUENCES)]
    table = layouts.measure(records)
    longest = int(planning.LAYOUTS[layout].split(table).tokens.max())
    row_tokens = longest + 2  # some padding
    if layout == "packed":
        row_tokens = 32  # 6 documents of 5 tokens, and 2 of padding
    together = np.zeros(len(records), np.int32)
    plan = planning.plan(layout, table, together, row_tokens)
    laid, shape = layouts.rows_of(plan), layouts.shape_of(plan, row_tokens, group=0)
    batch = layouts.fill(laid, records, shape)
    members = [(d.record, r) for row in laid for d in row for r in d.responses]
    flat = [
        b * shape.slots + slot
        for b, row in enumerate(laid)
        for slot in range(sum(len(d.responses) for d in row))
    ]
    place = {sum(member): at for member, at in zip(members, flat, strict=True)}
    places = np.array([place[i] for i in range(len(SEQUENCES))])
    first, second = np.array(list(itertools.combinations(range(81), 2)), np.int32).T
    compared = np.stack([places[first], places[second]], -1)
    pairs = np.full((shape.rows, -(-len(compared) // shape.rows), 2), -1, np.int32)
    pairs.reshape(-1, 2)[: len(compared)] = compared
    return batch._replace(pairs=pairs), places, first, second


def sequence_logps(table: Array) -> np.ndarray:
    """Sums a table's log-probs along each sequence: an independent formula, f[81]."""
    logps = np.asarray(jax.nn.log_softmax(table))
    return np.array(
        [sum(logps[node(s[:t]), s[t]] for t in range(DEPTH)) for s in SEQUENCES]
    )


def first_word(ref_table: Array, rewards: Array, beta: float) -> np.ndarray:
    """Solves the soft-Bellman equations backwards; returns log π*(first word), f[3].

    Source: arXiv:2404.12358 eq. 7.
    """
    ref = np.asarray(jax.nn.log_softmax(ref_table))
    leaf = {tuple(s): r for s, r in zip(SEQUENCES.tolist(), rewards, strict=True)}

    def value(words):
        if len(words) == DEPTH:
            return leaf[words]
        below = np.array([value((*words, w)) for w in range(WORDS)])
        return exact.soft_value(ref[node(words)], below, beta=beta)

    below = np.array([value((w,)) for w in range(WORDS)])
    return ref[node(())] + (below - value(())) / beta
