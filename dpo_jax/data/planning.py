"""Which documents share a row, for all microbatches of a run at once.

What is planned with are arrays over all records and documents of all steps, so that a
million of them take seconds: a loop here runs over the documents of a microbatch, for
all microbatches side by side. This room knows lengths only, neither tokens nor text.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dpo_jax.errors import ConfigError

Numbers = np.ndarray | Sequence[int]


class Table(NamedTuple):
    """The lengths of N records, as columns.

    Attributes:
      prompts: i32[N].
      responses: i32[N, K] with K of the record that has most; 0 = it has no such.
      scored: i32[N, K] how many tokens of each response are scored.
      comparisons: i32[N] how many each has.
      groups: i32[N] its responses, if they are a ranking; else 0.
    """

    prompts: np.ndarray
    responses: np.ndarray
    scored: np.ndarray
    comparisons: np.ndarray
    groups: np.ndarray


class Documents(NamedTuple):
    """Prompts with some of their responses, as columns; those of a record in a run.

    Attributes:
      records: i32[D] whose they are: places in the table.
      firsts: i32[D] the first of the record's responses that grows here.
      slots: i32[D] how many grow here; they are neighbours.
      tokens: i32[D] of prompt and responses.
      scored: i32[D] tokens of the responses that are scored.
      comparisons: i32[D] of the record, if its first response is here; else 0.
      rankings: i32[D] likewise.
    """

    records: np.ndarray
    firsts: np.ndarray
    slots: np.ndarray
    tokens: np.ndarray
    scored: np.ndarray
    comparisons: np.ndarray
    rankings: np.ndarray


class Plan(NamedTuple):
    """Where documents lie.

    Attributes:
      documents: all of them.
      microbatches: i32[D] in which microbatch of the run each lies.
      rows: i32[D] in which of its rows.
    """

    documents: Documents
    microbatches: np.ndarray
    rows: np.ndarray


def tabulate(
    *,
    prompts: Numbers,
    counts: Numbers,
    responses: Numbers,
    scored: Numbers,
    comparisons: Numbers,
    groups: Numbers,
) -> Table:
    """Turns the lengths of N records into columns.

    Args:
      prompts: N numbers of tokens.
      counts: N numbers of responses.
      responses: tokens of all responses, record after record.
      scored: of these, the scored ones.
      comparisons: as in `Table`.
      groups: likewise.
    """
    many = np.asarray(counts, np.int32)
    held = np.arange(many.max(initial=0)) < many[:, None]

    def in_rows(values: Numbers) -> np.ndarray:
        found = np.zeros(held.shape, np.int32)
        found[held] = values
        return found

    columns = (np.asarray(each, np.int32) for each in (prompts, comparisons, groups))
    return Table(next(columns), in_rows(responses), in_rows(scored), *columns)


def take(table: Table, order: np.ndarray | slice) -> Table:
    """Lists the lengths of some records, in an order."""
    return Table(*(column[order] for column in table))


def documents_of(
    table: Table, records: np.ndarray, firsts: np.ndarray, slots: np.ndarray
) -> Documents:
    """Measures documents; the arguments are fields of theirs."""

    def grown(lengths: np.ndarray) -> np.ndarray:
        ends = np.cumsum(lengths, axis=1, dtype=np.int32)
        ends = np.pad(ends, ((0, 0), (1, 0)))  # [N, K + 1]
        return ends[records, firsts + slots] - ends[records, firsts]

    here = (firsts == 0) & (slots > 0)
    return Documents(
        records=records,
        firsts=firsts,
        slots=slots,
        tokens=table.prompts[records] + grown(table.responses),
        scored=grown(table.scored),
        comparisons=np.where(here, table.comparisons[records], 0),
        rankings=(here & (table.groups[records] > 0)).astype(np.int32),
    )


def whole(table: Table) -> Documents:
    """Makes one document a record, with all its responses."""
    records = np.arange(len(table.prompts), dtype=np.int32)
    slots = (table.responses > 0).sum(1, dtype=np.int32)
    return documents_of(table, records, np.zeros_like(records), slots)


def apart(table: Table) -> Documents:
    """Makes one document a response, each with its own copy of the prompt."""
    records, firsts = (at.astype(np.int32) for at in np.nonzero(table.responses))
    return documents_of(table, records, firsts, np.ones_like(records))


def rounds(sizes: np.ndarray, groups: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the largest items of all groups, then the second largest, and so on.

    Args:
      sizes: i32[D] of each item; of equal ones the first comes first.
      groups: i32[D] the group of each, from 0.

    Yields:
      Items, at most one of each group. Groups stand in one order in all rounds, those
      with the most items first: a later round has those of the first places.
    """
    order, counts = np.lexsort((-sizes, groups)), np.bincount(groups)
    starts = np.cumsum(counts) - counts
    neediest = np.argsort(-counts, kind="stable")
    starts, counts = starts[neediest], counts[neediest]
    for at in range(counts.max(initial=0)):
        yield order[starts[: np.searchsorted(-counts, -at)] + at]


def deal(sizes: np.ndarray, groups: np.ndarray, hands: int) -> np.ndarray:
    """Deals each group's items to hands of even total size, the largest first.

    Args:
      sizes: i32[N] of each item.
      groups: i32[N] the group of each, from 0.
      hands: of a group.

    Returns:
      i32[N] hand of each item.
    """
    dealt = np.zeros(len(sizes), np.int32)
    if hands == 1:
        return dealt
    totals = np.zeros((groups.max(initial=-1) + 1, hands), np.int64)
    for items in rounds(sizes, groups):
        lightest = totals[: len(items)].argmin(1)
        totals[np.arange(len(items)), lightest] += sizes[items]
        dealt[items] = lightest
    return dealt


def first_fit_decreasing(
    sizes: np.ndarray, groups: np.ndarray, row_tokens: int
) -> np.ndarray:
    """Puts each group's documents, longest first, into its first row with room.

    Args:
      sizes: i32[D] tokens of each document, at most `row_tokens`.
      groups: i32[D] microbatch of each, from 0.
      row_tokens: T.

    Returns:
      i32[D] row of each document in its microbatch.
    """
    rows = np.zeros(len(sizes), np.int32)
    fresh = np.full((groups.max(initial=-1) + 1, 1), row_tokens, np.int32)
    room = fresh.copy()  # the last row of each group is always empty
    for items in rounds(sizes, groups):
        fits = room[: len(items)] >= sizes[items, None]
        first = fits.argmax(1)
        room[np.arange(len(items)), first] -= sizes[items]
        rows[items] = first
        if first.max() == room.shape[1] - 1:
            room = np.concatenate([room, fresh], axis=1)
    return rows


def one_a_row(sizes: np.ndarray, groups: np.ndarray, row_tokens: int) -> np.ndarray:
    """Puts each document into its own row, in order; as `first_fit_decreasing` else."""
    del row_tokens
    order, counts = np.argsort(groups, kind="stable"), np.bincount(groups)
    rows = np.zeros(len(sizes), np.int32)
    rows[order] = np.arange(len(sizes)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rows


def visible_pairs(table: Table, documents: Documents, window: int) -> int:
    """Counts the (query, key) pairs of tokens that see each other.

    A prompt's own are counted once a document, however many responses grow there.

    Args:
      table: of all records.
      documents: some of theirs.
      window: tokens that a query sees, itself included; 0 = all.
    """
    prompts = table.prompts[documents.records].astype(np.int64)
    places, firsts = np.arange(table.responses.shape[1]), documents.firsts[:, None]
    here = (places >= firsts) & (places < firsts + documents.slots[:, None])
    texts = prompts[:, None] + table.responses[documents.records]  # [D, K]
    in_prompts = causal_pairs(prompts, window)
    grown = np.where(here, causal_pairs(texts, window) - in_prompts[:, None], 0)
    return int(in_prompts.sum() + grown.sum())


def causal_pairs(tokens: np.ndarray, window: int) -> np.ndarray:
    """Counts (query, key) pairs of texts: Σ over p = 1…tokens of min(p, window)."""
    ramp = np.minimum(tokens, window) if window else tokens
    return ramp * (ramp + 1) // 2 + (tokens - ramp) * window


class Layout(NamedTuple):
    """How records become rows.

    Attributes:
      split: cuts records into documents.
      pack: (tokens, microbatches, T) -> rows.
    """

    split: Callable[[Table], Documents]
    pack: Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def plan(layout: str, table: Table, groups: np.ndarray, row_tokens: int) -> Plan:
    """Plans all microbatches.

    Args:
      layout: a name of `LAYOUTS`.
      table: of all records.
      groups: i32[N] microbatch of each record, from 0.
      row_tokens: T.

    Raises:
      ConfigError: if a document is longer than a row.
    """
    split, pack = LAYOUTS[layout]
    documents = split(table)
    longest = documents.tokens.max(initial=0)
    if longest > row_tokens:
        raise ConfigError(
            f"data.row_tokens={row_tokens}: {longest} tokens do not fit a row of "
            f"{row_tokens}; set it to 0, or lower data.max_tokens"
        )
    groups = groups[documents.records]
    return Plan(documents, groups, pack(documents.tokens, groups, row_tokens))


def most_in_a_row(planned: Plan) -> list[int]:
    """Counts the most scored tokens, slots, comparisons and rankings of a row."""
    documents = planned.documents
    width = int(planned.rows.max(initial=0)) + 1
    places = planned.microbatches * width + planned.rows
    return [
        int(np.bincount(places, weights=column).max(initial=0))
        for column in (
            documents.scored,
            documents.slots,
            documents.comparisons,
            documents.rankings,
        )
    ]


LAYOUTS: dict[str, Layout] = {
    "padded": Layout(apart, one_a_row),
    "packed": Layout(apart, first_fit_decreasing),
    "prefix_shared": Layout(whole, first_fit_decreasing),
}
