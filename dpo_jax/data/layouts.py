"""Writes planned rows: masks, scored lists and comparisons follow from the documents.

So nothing behind this file asks which layout `planning.py` was asked for. NumPy only;
this room knows nothing of models, and text was left behind in `tokenize.py`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dpo_jax.data import planning
from dpo_jax.data.planning import Plan, Table
from dpo_jax.data.tokens import SCORED, Records
from dpo_jax.types import Batch, Record


class Document(NamedTuple):
    """A prompt and some of its responses, to lie together in a row.

    Attributes:
      record: position among the records that `fill` is given.
      responses: which of the record's responses grow here.
    """

    record: int
    responses: tuple[int, ...]


Rows = list[list[Document]]


class Shape(NamedTuple):
    """Static facts of a batch: sizes, and which optional fields it has.

    Attributes:
      rows: B of the dimension key.
      tokens: T.
      scored: C.
      slots: R.
      comparisons: M of `pairs`.
      rankings: M of `groups`.
      group: K, responses of the longest ranking; 0 = there are no `groups`.
      token: names of the columns of tokens.
      response: names of the columns of responses.
    """

    rows: int
    tokens: int
    scored: int
    slots: int
    comparisons: int
    rankings: int = 0
    group: int = 0
    token: tuple[str, ...] = ()
    response: tuple[str, ...] = ()


def measure(records: Sequence[Record]) -> Table:
    """Measures records; flat ones in no time, for no object is made of any."""
    if isinstance(records, Records):
        return records.table()
    return planning.tabulate(
        prompts=[len(record.prompt) for record in records],
        counts=[len(record.responses) for record in records],
        responses=[len(each) for record in records for each in record.responses],
        scored=[int(mask.sum()) for record in records for mask in scored_of(record)],
        comparisons=[len(record.comparisons) for record in records],
        groups=[len(record.responses) * record.ranked for record in records],
    )


def scored_of(record: Record) -> tuple[np.ndarray, ...]:
    """Says which tokens of each response are scored, bool each; all, if it does not."""
    every = (np.ones(len(response), bool) for response in record.responses)
    return record.token.get(SCORED) or tuple(every)


def rows_of(plan: Plan, microbatch: int = 0, start: int = 0) -> Rows:
    """Lists the documents of each row of a microbatch, the longest first.

    Args:
      plan: of all documents of the microbatch, and perhaps of others.
      microbatch: which one.
      start: which of the planned records comes first among those to fill with.
    """
    documents = plan.documents
    places = np.flatnonzero(plan.microbatches == microbatch)
    rows: Rows = [[] for _ in range(plan.rows[places].max(initial=-1) + 1)]
    for at in places[np.argsort(-documents.tokens[places], kind="stable")]:
        first, slots = int(documents.firsts[at]), int(documents.slots[at])
        responses = tuple(range(first, first + slots))
        document = Document(int(documents.records[at]) - start, responses)
        rows[plan.rows[at]].append(document)
    return rows


def first_in(row: list[Document]) -> list[int]:
    """Lists the records whose first response lies in a row."""
    return [document.record for document in row if 0 in document.responses]


def shape_of(plan: Plan, row_tokens: int, group: int) -> Shape:
    """Finds the smallest shape that holds a plan, without columns.

    Args:
      plan: of any number of microbatches.
      row_tokens: T.
      group: K, responses of the longest ranking; 0 = there is none.
    """
    scored, slots, comparisons, rankings = planning.most_in_a_row(plan)
    return Shape(
        rows=int(plan.rows.max(initial=0)) + 1,
        tokens=row_tokens,
        scored=max(1, scored),
        slots=max(1, slots),
        comparisons=max(1, comparisons),
        rankings=rankings,
        group=group,
    )


def empty(shape: Shape) -> Batch:
    """Makes rows without documents."""
    rows, tokens, scored, slots, comparisons = shape[:5]

    def full(value: int, *dims: int) -> np.ndarray:
        return np.full((rows, *dims), value, np.int32)

    return Batch(
        tokens=full(0, tokens),
        positions=full(0, tokens),
        docs=full(0, tokens),
        branches=full(0, tokens),
        parents=full(0, scored),
        targets=full(0, scored),
        slots=full(slots, scored),
        ends=full(0, slots),
        ids=full(-1, slots),
        pairs=full(-1, comparisons, 2),
        groups=full(-1, shape.rankings, shape.group) if shape.group else None,
        token={name: np.zeros((rows, scored), np.float32) for name in shape.token},
        response={name: np.zeros((rows, slots), np.float32) for name in shape.response},
    )


class Cursor(NamedTuple):
    """Where the next token, scored entry and slot of a row go."""

    token: int = 0
    entry: int = 0
    slot: int = 0


def _write_prompt(batch: Batch, row: int, at: int, prompt: np.ndarray, doc: int) -> int:
    end = at + len(prompt)
    batch.tokens[row, at:end] = prompt
    batch.positions[row, at:end] = np.arange(len(prompt))
    batch.docs[row, at:end] = doc
    return end


def _write_response(
    batch: Batch, row: int, cursor: Cursor, prompt_end: int, record: Record, which: int
) -> Cursor:
    """Writes a response's tokens and its scored entries.

    The first token's parent is the last prompt token, wherever the response lies.
    """
    response = record.responses[which]
    length, at = len(response), cursor.token
    end, doc = at + length, batch.docs[row, prompt_end - 1]
    batch.tokens[row, at:end] = response
    batch.positions[row, at:end] = len(record.prompt) + np.arange(length)
    batch.docs[row, at:end] = doc
    batch.branches[row, at:end] = which + 1
    parents, scored = np.arange(at - 1, end - 1), scored_of(record)[which]
    parents[0] = prompt_end - 1
    entries = slice(cursor.entry, cursor.entry + int(scored.sum()))
    batch.parents[row, entries] = parents[scored]
    batch.targets[row, entries] = response[scored]
    batch.slots[row, entries] = cursor.slot
    batch.ends[row, cursor.slot] = end - 1
    batch.ids[row, cursor.slot] = record.index
    for name, column in batch.token.items():
        column[row, entries] = record.token[name][which]
    for name, column in batch.response.items():
        column[row, cursor.slot] = record.response[name][which]
    return Cursor(end, entries.stop, cursor.slot + 1)


def _flat_slots(rows: Rows, slots: int) -> dict[tuple[int, int], int]:
    """Maps (record, response) to `row·R + slot`."""
    places = {}
    for b, row in enumerate(rows):
        members = [(d.record, r) for d in row for r in d.responses]
        places.update({key: b * slots + s for s, key in enumerate(members)})
    return places


def fill(
    rows: Rows,
    records: Sequence[Record],
    shape: Shape,
    here: Sequence[int] | np.ndarray | None = None,
) -> Batch:
    """Writes planned rows.

    Args:
      rows: which documents lie where, of the whole microbatch.
      records: what `Document.record` counts in.
      shape: static facts, with `shape.rows` those of the whole microbatch; rows beyond
        the plan stay empty.
      here: the rows to write, for a process that holds some of them; None = all.

    Returns:
      The rows of `here` as arrays. A record's comparisons and its ranking stand in the
      row that holds its first response, wherever the others lie.
    """
    here = range(shape.rows) if here is None else here
    batch = empty(shape._replace(rows=len(here)))
    places = _flat_slots(rows, shape.slots)
    for local, b in enumerate(here):
        row = rows[b] if b < len(rows) else []
        _write_row(batch, local, row, records)
        _write_comparisons(batch, local, first_in(row), records, places)
    return batch


def _write_row(
    batch: Batch, local: int, row: list[Document], records: Sequence[Record]
) -> None:
    cursor = Cursor()
    for doc, document in enumerate(row, start=1):
        record = records[document.record]
        prompt_end = _write_prompt(batch, local, cursor.token, record.prompt, doc)
        cursor = cursor._replace(token=prompt_end)
        for which in document.responses:
            cursor = _write_response(batch, local, cursor, prompt_end, record, which)


def _write_comparisons(
    batch: Batch,
    local: int,
    firsts: list[int],
    records: Sequence[Record],
    places: dict[tuple[int, int], int],
) -> None:
    pairs = [
        (places[i, better], places[i, worse])
        for i in firsts
        for better, worse in records[i].comparisons
    ]
    if pairs:
        batch.pairs[local, : len(pairs)] = pairs
    if batch.groups is not None:
        ranked = [i for i in firsts if records[i].ranked]
        for at, i in enumerate(ranked):
            group = [places[i, r] for r in range(len(records[i].responses))]
            batch.groups[local, at, : len(group)] = group
