"""Three ways of filling the same arrays: padded, packed, prefix-shared rows.

A layout is a planner: from lengths alone it says which documents lie in which row.
`fill` then writes the rows of any plan; masks, scored lists and comparisons follow from
the documents, so nothing behind this file asks which layout it was. NumPy only; this
room knows nothing of models, and text was left behind in `tokenize.py`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dpo_jax.types import Batch, Record


class Lengths(NamedTuple):
    """Tokens of a record's prompt and of each of its responses."""

    prompt: int
    responses: tuple[int, ...]


class Document(NamedTuple):
    """A prompt and some of its responses, to lie together in a row.

    Attributes:
      record: position among the records of the microbatch.
      responses: which of the record's responses grow here.
    """

    record: int
    responses: tuple[int, ...]


Rows = list[list[Document]]
Planner = Callable[[Sequence[Lengths], int], Rows]


class Shape(NamedTuple):
    """Static sizes of a batch: B, T, C, R and M of the dimension key."""

    rows: int
    tokens: int
    scored: int
    slots: int
    comparisons: int


def lengths_of(record: Record) -> Lengths:
    """Measures a record."""
    return Lengths(len(record.prompt), tuple(len(r) for r in record.responses))


def size(document: Document, lengths: Sequence[Lengths]) -> int:
    """Counts the tokens of a document."""
    record = lengths[document.record]
    return record.prompt + sum(record.responses[r] for r in document.responses)


def whole(lengths: Sequence[Lengths]) -> list[Document]:
    """Makes one document a record, with all its responses."""
    return [
        Document(i, tuple(range(len(record.responses))))
        for i, record in enumerate(lengths)
    ]


def apart(lengths: Sequence[Lengths]) -> list[Document]:
    """Makes one document a response, each with its own copy of the prompt."""
    return [
        Document(i, (r,))
        for i, record in enumerate(lengths)
        for r in range(len(record.responses))
    ]


def first_fit_decreasing(
    documents: Sequence[Document], lengths: Sequence[Lengths], row_tokens: int
) -> Rows:
    """Packs documents, longest first, each into the first row with room.

    Raises:
      ValueError: if a document is longer than a row.
    """
    rows: Rows = []
    room: list[int] = []
    sizes = [size(document, lengths) for document in documents]
    for i in sorted(range(len(documents)), key=lambda i: -sizes[i]):
        if sizes[i] > row_tokens:
            raise ValueError(f"{sizes[i]} tokens do not fit a row of {row_tokens}")
        row = next((r for r, free in enumerate(room) if free >= sizes[i]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(row_tokens)
        rows[row].append(documents[i])
        room[row] -= sizes[i]
    return rows


def padded(lengths: Sequence[Lengths], row_tokens: int) -> Rows:
    """Plans one response a row.

    Raises:
      ValueError: if a document is longer than a row.
    """
    rows = [[document] for document in apart(lengths)]
    longest = max((size(row[0], lengths) for row in rows), default=0)
    if longest > row_tokens:
        raise ValueError(f"{longest} tokens do not fit a row of {row_tokens}")
    return rows


def packed(lengths: Sequence[Lengths], row_tokens: int) -> Rows:
    """Plans several documents a row, each a prompt with one response."""
    return first_fit_decreasing(apart(lengths), lengths, row_tokens)


def prefix_shared(lengths: Sequence[Lengths], row_tokens: int) -> Rows:
    """Plans several documents a row, each a prompt with all its responses."""
    return first_fit_decreasing(whole(lengths), lengths, row_tokens)


def longest_document(layout: str, lengths: Sequence[Lengths]) -> int:
    """Counts the tokens of the longest document that a layout makes; 0 of none."""
    split = whole if layout == "prefix_shared" else apart
    return max((size(document, lengths) for document in split(lengths)), default=0)


def measure(rows: Rows, lengths: Sequence[Lengths], row_tokens: int) -> Shape:
    """Finds the smallest shape that holds a plan."""

    def scored(row: list[Document]) -> int:
        return sum(lengths[d.record].responses[r] for d in row for r in d.responses)

    return Shape(
        rows=max(1, len(rows)),
        tokens=row_tokens,
        scored=max((scored(row) for row in rows), default=1),
        slots=max((sum(len(d.responses) for d in row) for row in rows), default=1),
        comparisons=max((sum(0 in d.responses for d in row) for row in rows), default=1)
        or 1,
    )


def empty(shape: Shape) -> Batch:
    """Makes rows without documents."""
    rows, tokens, scored, slots, comparisons = shape

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
    entries = slice(cursor.entry, cursor.entry + length)
    batch.parents[row, entries] = np.arange(at - 1, end - 1)
    batch.parents[row, cursor.entry] = prompt_end - 1
    batch.targets[row, entries] = response
    batch.slots[row, entries] = cursor.slot
    batch.ends[row, cursor.slot] = end - 1
    batch.ids[row, cursor.slot] = record.index
    return Cursor(end, cursor.entry + length, cursor.slot + 1)


def _flat_slots(rows: Rows, slots: int) -> dict[tuple[int, int], int]:
    """Maps (record, response) to `row·R + slot`."""
    places = {}
    for b, row in enumerate(rows):
        members = [(d.record, r) for d in row for r in d.responses]
        places.update({key: b * slots + s for s, key in enumerate(members)})
    return places


def fill(
    rows: Rows, records: Sequence[Record], shape: Shape, mine: slice = slice(None)
) -> Batch:
    """Writes planned rows.

    Args:
      rows: which documents lie where, of the whole microbatch.
      records: what `Document.record` counts in.
      shape: static sizes, with `shape.rows` those of the whole microbatch; rows beyond
        the plan stay empty.
      mine: the rows to write, for a host that holds some of them.

    Returns:
      The rows of `mine` as i32 arrays. A record's (chosen, rejected) stand in `pairs`
      of the row that holds its first response.
    """
    indices = range(shape.rows)[mine]
    batch = empty(shape._replace(rows=len(indices)))
    places = _flat_slots(rows, shape.slots)
    for local, b in enumerate(indices):
        cursor, comparison = Cursor(), 0
        for doc, document in enumerate(rows[b] if b < len(rows) else (), start=1):
            record = records[document.record]
            prompt_end = _write_prompt(batch, local, cursor.token, record.prompt, doc)
            cursor = cursor._replace(token=prompt_end)
            for which in document.responses:
                cursor = _write_response(
                    batch, local, cursor, prompt_end, record, which
                )
            if 0 in document.responses and len(record.responses) == 2:
                both = [places[document.record, which] for which in (0, 1)]
                batch.pairs[local, comparison] = both
                comparison += 1
    return batch


LAYOUTS: dict[str, Planner] = {
    "padded": padded,
    "packed": packed,
    "prefix_shared": prefix_shared,
}
