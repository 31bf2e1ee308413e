"""Checks rows and brings them into one form, or says what is wrong with which.

Between the sources, which know files, and the tokenizer, which knows ids. What a row
of each kind holds is said in `kinds.py`. Nothing is repaired or guessed here; a row is
kept as it is or refused with its place and reason.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from dpo_jax.data import kinds
from dpo_jax.data.kinds import KINDS, RawRow
from dpo_jax.data.sources.files import BadRow, Fields
from dpo_jax.data.sources.hh import split_transcripts
from dpo_jax.errors import DataError

Located = Iterable[tuple[str, Fields | BadRow]]  # (where, columns), as sources yield

SHOWN_ROWS = 3  # bad rows named in one message
SHOWN_CHARACTERS = 220  # of each of them


class RowCounts(NamedTuple):
    """How many rows were read, kept, and dropped for which reason."""

    read: int
    kept: int
    dropped: dict[str, int]

    def render(self) -> str:
        """Returns `dropped 9 (3 empty, 3 identical, 3 mismatched)`."""
        return f"dropped {self.read - self.kept}{_reasons(self.dropped)}"


class AllDropped(DataError):
    """Of the rows that were looked at, all have faults that are dropped, no errors."""


class Faults:
    """The bad rows of a reading: how many for which reason, and the first of them."""

    def __init__(self, drops: tuple[str, ...] = ()) -> None:
        """Starts without any.

        Args:
          drops: how the reasons begin for which a row is always dropped, no error.
        """
        self._drops = drops
        self._counted: Counter[str] = Counter()
        self.errors = 0
        self._first: list[str] = []  # of the errors
        self._first_dropped: list[str] = []

    def __len__(self) -> int:
        return self._counted.total()

    def add(self, where: str, fault: BadRow) -> None:
        """Counts the next bad row, at `file:line` or `source[index]`."""
        self._counted[fault.reason] += 1
        first = self._first_dropped
        if not any(map(fault.reason.startswith, self._drops)):
            self.errors += 1
            first = self._first
        if len(first) < SHOWN_ROWS:
            first.append(f"{where}: {fault.detail}"[:SHOWN_CHARACTERS])

    def settle(self, *, read: int, on_bad_row: str) -> dict[str, int]:
        """Returns the number of bad rows by reason, or refuses them in one message.

        Args:
          read: rows that were looked at.
          on_bad_row: `error` or `drop`.

        Raises:
          DataError: on bad rows under `error`; if every row is bad, or there is none.
        """
        dropped, bad = dict(sorted(self._counted.items())), len(self)
        if read == 0:
            raise DataError("the data source has no rows")
        if bad < read and (on_bad_row == "drop" or not self.errors):
            return dropped
        shown = self._first or self._first_dropped
        more = (self.errors or bad) - len(shown)
        shown = [*shown, f"and {more} more"] if more else shown
        if bad == read:
            head, tail = "no row can be used: ", ""
        else:
            head, tail = "", "; mend them or set data.on_bad_row='drop'"
        total = f"bad rows: {bad} of {read}{_reasons(dropped)}: "
        kind = DataError if self.errors else AllDropped
        raise kind(head + total + " · ".join(shown) + tail)


class RatedLater(Exception):
    """Rows without ratings were handed on before the first row with them.

    Attributes:
      where: the row with ratings; a second reading that knows it refuses the others.
    """

    def __init__(self, where: str):
        super().__init__(where)
        self.where = where


class Reading:
    """The good rows of a source, checked one by one as they are asked for.

    Nothing is kept of a row that was handed on. Where bad rows are an error, none is
    handed on behind the first of them; the rest is read to name all faults together.

    Attributes:
      counts: of all rows, once they were read.
    """

    def __init__(
        self,
        rows: Located,
        *,
        kind: str,
        format: str,
        on_bad_row: str,
        reads_ratings: bool = True,
        rated: str = "",
        drops: tuple[str, ...] = (),
        scored: str = "",
    ):
        """Reads nothing yet.

        Args:
          rows: (where, columns) as the sources yield them.
          kind: `pairs` keeps (chosen, rejected), with `score_chosen` and
            `score_rejected` or a `margin` where the rows have them: all rows or none;
            `completions` keeps (completion,), or the one column `messages` or `text`;
            `singles` a completion with its `label`,
            true or false; `rankings` keeps `responses` in the order of `ranking`, which
            lists their places from 0, best first. Rows of pairs pass as every kind, if
            they pass as pairs, so that all objectives see the same rows: the chosen
            response as a completion (preferred-FT), both as singles, or as a ranking of
            two.
          format: '' for columns of strings or chats; `hh` for transcripts.
          on_bad_row: `error` or `drop`.
          reads_ratings: whether a loss does; if none does, rows may lack them.
          rated: a row with ratings, where one is known; see `RatedLater`.
          drops: see `Faults`.
          scored: which tokens count: `completion`, `assistant`, `all`, as in
            `kinds.RawRow`; '' = what is usual for a row.
        """
        self._rows, self._on_bad_row, self._rated = rows, on_bad_row, rated
        self._take, self._split = KINDS[kind], FORMATS[format]
        self._kind, self._reads_ratings = kind, reads_ratings
        self._drops = drops
        self._scored = scored
        self._unrated = False
        self._columns: dict[tuple[str, ...], set[str]] = {}
        self.counts = RowCounts(0, 0, {})

    def __iter__(self) -> Iterator[RawRow]:
        """Yields good rows.

        Raises:
          DataError: behind the last row, on bad rows under `error`; if none is good.
          RatedLater: where rows without ratings were handed on.
        """
        faults, read = Faults(self._drops), 0
        for read, (where, fields) in enumerate(self._rows, start=1):
            try:
                row = self._checked(where, fields)
            except BadRow as bad:
                faults.add(where, bad)
            except RecursionError:
                faults.add(where, BadRow("malformed", "the row nests too deeply"))
            else:
                if not faults.errors or self._on_bad_row == "drop":
                    yield row._replace(where=where, index=read - 1)
        dropped = faults.settle(read=read, on_bad_row=self._on_bad_row)
        self.counts = RowCounts(read, read - len(faults), dropped)

    @property
    def unread(self) -> list[str]:
        """Names the columns that nothing reads."""
        return sorted({str(name) for names in self._columns.values() for name in names})

    def _checked(self, where: str, fields: Fields | BadRow) -> RawRow:
        if isinstance(fields, BadRow):
            raise fields
        if (names := tuple(fields)) not in self._columns:
            read = kinds.names_read(self._kind, fields, rated=self._reads_ratings)
            self._columns[names] = set(fields) - read
        fields = self._split(fields)
        taken = fields if self._reads_ratings else kinds.readable(fields)
        row = self._take(taken, self._scored)
        row = kinds.told(row, fields)
        if not self._reads_ratings:
            return row
        if row.ratings and self._unrated:
            raise RatedLater(where)
        if self._rated and not row.ratings:
            what = "columns 'score_chosen' and 'score_rejected' (or 'margin') are"
            detail = f"{what} missing, but {self._rated} has them"
            raise BadRow("missing column", detail)
        self._rated = self._rated or (where if row.ratings else "")
        self._unrated = not row.ratings
        return row


def _reasons(dropped: dict[str, int]) -> str:
    parts = [f"{number} {reason}" for reason, number in sorted(dropped.items())]
    return f" ({', '.join(parts)})" if parts else ""


FORMATS: dict[str, Callable[[Fields], Fields]] = {
    "": dict,
    "hh": split_transcripts,
}
