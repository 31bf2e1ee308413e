"""From the rows of a source to tokenized records, with an account of every row."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, islice, repeat
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from dpo_jax.data.columns import Text
from dpo_jax.data.kinds import RawRow
from dpo_jax.data.records import AllDropped, Located, RatedLater, Reading, RowCounts
from dpo_jax.data.sources.files import BadRow
from dpo_jax.data.templates import Tool
from dpo_jax.data.tokenize import TokenCounts
from dpo_jax.data.tokens import Records, fingerprint
from dpo_jax.errors import DataError
from dpo_jax.types import Record


class Prepared(NamedTuple):
    """Records of a split, what data.json says of it, and `tokens.fingerprint`."""

    records: Records
    report: dict[str, Any]
    fingerprint: str


class Questions(NamedTuple):
    """Prompts that are to be continued, and what else their rows say.

    Attributes:
      prompts: N texts or chats.
      columns: N values of each other column, None where a row does not have it.
      tools: what the assistant can call, of each prompt.
    """

    prompts: list[Text]
    columns: dict[str, list[Any]]
    tools: Sequence[Sequence[Tool]]

    def first(self, count: int) -> "Questions":
        """Returns the first of them."""
        columns = {name: values[:count] for name, values in self.columns.items()}
        return Questions(self.prompts[:count], columns, self.tools[:count])


def questions_of(rows: Sequence[tuple[RawRow, Mapping[str, Any]]]) -> Questions:
    """Makes questions of rows, each with its columns."""
    names = dict.fromkeys(name for _, fields in rows for name in fields)
    columns = {n: [fields.get(n) for _, fields in rows] for n in names if n != "prompt"}
    tools = [row.tools for row, _ in rows]
    return Questions([row.prompt for row, _ in rows], columns, tools)


def questions(sources: "Sequence[Source]") -> Questions:
    """Reads the prompts of all good rows of several sources."""
    return questions_of([row for source in sources for row in source.asked()[0]])


class Source(NamedTuple):
    """How rows become records.

    Attributes:
      read: `() -> located rows`.
      check: `(rows, rated='') -> records.Reading`.
      tokenize: `rows -> (records, counts)`; see `tokenize.tokenize`.
      apart: whether a row of two responses is taken apart once it was cut.
    """

    read: Callable[[], Located]
    check: Callable[..., Reading]
    tokenize: Callable[[Iterable[RawRow]], tuple[Records, TokenCounts]]
    apart: bool

    def asked(self) -> tuple[Sequence[tuple[RawRow, Mapping[str, Any]]], RowCounts]:
        """Reads all good rows, each with its columns; and counts the rows."""
        rows = list(self.read())
        reading = self.check(rows)
        try:
            good = list(reading)
        except RatedLater as later:
            reading = self.check(rows, rated=later.where)
            good = list(reading)
        both = [(row, rows[row.index][1]) for row in good]
        told = [(row, at) for row, at in both if not isinstance(at, BadRow)]
        return told, reading.counts


def prepare(source: Source) -> Prepared:
    """Reads, checks, tokenizes and cuts the rows of a source, a few at a time.

    Raises:
      DataError: if the source or a row is bad (under `on_bad_row='error'`).
    """
    read, check, tokenize, apart = source
    reading = check(read())
    try:
        kept, cut = tokenize(reading)
    except RatedLater as later:
        reading = check(read(), rated=later.where)
        kept, cut = tokenize(reading)
    dropped = {**reading.counts.dropped, **cut.dropped}
    total = RowCounts(reading.counts.read, len(kept), dropped)
    unread = f"; columns not read: {', '.join(reading.unread)}" * bool(reading.unread)
    report = {
        **total._asdict(),
        "summary": f"{total.render()}; {cut.render()}{unread}",
        "cut": cut._asdict(),
        "unread_columns": reading.unread,
    }
    if apart:
        kept = kept.apart()
        desirable = int(np.count_nonzero(kept.response["labels"] == 1))
        report["labels"] = {
            "desirable": desirable,
            "undesirable": len(kept) - desirable,
        }
    return Prepared(kept, report, fingerprint(kept))


def prepare_one(
    sources: Sequence[Source], index: int, *, drop: bool = False
) -> tuple[Record, TokenCounts]:
    """Prepares one row; of one that is taken apart, its first response.

    Args:
      sources: with bad rows as errors.
      index: position of the row, numbered through the sources.
      drop: takes the next good row in the place of a bad one, and says so; always in
        the place of one whose faults its source drops.

    Raises:
      DataError: if there is no such row, or it is bad.
    """
    rows = chain.from_iterable(
        zip(source.read(), repeat(source), strict=False) for source in sources
    )
    rows = islice(rows, index, None) if index >= 0 else []
    for at, (row, source) in enumerate(rows, index):
        try:
            kept, cut = source.tokenize(source.check([row]))
        except DataError as error:
            if not drop and not isinstance(error, AllDropped):
                raise DataError(f"--index={index}: {error}") from error
            logging.warning("row %d is dropped, and the next is shown: %s", at, error)
        else:
            record = (kept.apart() if source.apart else kept)[0]
            return record._replace(index=at), cut
    raise DataError(f"--index={index}: data.train has no such row, counted from 0")
