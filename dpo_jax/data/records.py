"""Checks rows and brings them into one form, or says what is wrong with which.

Between the sources, which know files, and the tokenizer, which knows ids. What a row
of each kind holds is said in `kinds.py`. Nothing is repaired or guessed here; a row is
kept as it is or refused with its place and reason.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeGuard

from dpo_jax.data import columns
from dpo_jax.data.columns import Message, Text
from dpo_jax.data.kinds import KINDS, Parts
from dpo_jax.data.sources.files import BadRow, Fields
from dpo_jax.data.sources.hh import split_transcripts
from dpo_jax.errors import ConfigError, DataError, unknown

__all__ = ["KINDS", "Counts", "Message", "RawRow", "Text", "settle", "validate"]

Checked = tuple[str, Parts | BadRow]  # where, and what it is

SHOWN_ROWS = 3  # bad rows named in one message
SHOWN_CHARACTERS = 220  # of each of them


class RawRow(NamedTuple):
    """A checked row of text.

    Attributes:
      where: `file:line` or `source[index]`.
      prompt: a string, or chat messages with `role` and `content`.
      responses: of the same type; (chosen, rejected) for a pair, (completion,) for
        SFT, best first for a ranking.
      index: position of the row in its source, bad rows counted too.
      labels: as in `Parts`, and so are the others.
      ratings: of each response, or ().
      ranked: whether the responses are a ranking.
    """

    where: str
    prompt: Text
    responses: tuple[Text, ...]
    index: int
    labels: tuple[int, ...] = ()
    ratings: tuple[float, ...] = ()
    ranked: bool = False


class Counts(NamedTuple):
    """How many rows were read, kept, and dropped for which reason."""

    read: int
    kept: int
    dropped: dict[str, int]

    def render(self) -> str:
        """Returns `dropped 9 (3 empty, 3 identical, 3 mismatched)`."""
        return f"dropped {self.read - self.kept}{_reasons(self.dropped)}"

    def as_dict(self) -> dict[str, Any]:
        """Returns what data.json holds."""
        return {"read": self.read, "kept": self.kept, "dropped": dict(self.dropped)}


def validate(
    rows: Iterable[tuple[str, Fields | BadRow]],
    *,
    kind: str,
    format: str,
    on_bad_row: str,
) -> tuple[list[RawRow], Counts]:
    """Checks every row and keeps the good ones.

    Args:
      rows: (where, columns) as the sources yield them.
      kind: `pairs` keeps (chosen, rejected), with `score_chosen` and `score_rejected`
        or a `margin` where the rows have them: all rows or none; `completions` keeps
        (completion,); `singles` a completion with its `label`, true or false;
        `rankings` keeps `responses` in the order of `ranking`, which lists their
        places from 0, best first. Rows of pairs pass as every kind, if they pass as
        pairs, so that all objectives see the same rows: the chosen response as a
        completion (preferred-FT), both as singles, or as a ranking of two.
      format: '' for columns of strings or chats; `hh` for transcripts.
      on_bad_row: `error` or `drop`.

    Returns:
      The good rows in order, and the counts.

    Raises:
      DataError: on bad rows under `error`; if no row is left.
      ConfigError: if an option is not known.
    """
    _check_options(kind=kind, format=format, on_bad_row=on_bad_row)
    checked = [(where, _check(fields, kind, format)) for where, fields in rows]
    checked = _all_or_none_rated(checked)
    faults = [(where, row) for where, row in checked if isinstance(row, BadRow)]
    dropped = settle(faults, read=len(checked), on_bad_row=on_bad_row)
    kept = [
        RawRow(where, row.prompt, row.responses, index, *row[2:])
        for index, (where, row) in enumerate(checked)
        if _good(row)
    ]
    return kept, Counts(len(checked), len(kept), dropped)


def settle(
    faults: Sequence[tuple[str, BadRow]], *, read: int, on_bad_row: str
) -> dict[str, int]:
    """Counts bad rows by reason, or refuses them all in one message.

    Args:
      faults: (where, fault) in order.
      read: rows that were looked at.
      on_bad_row: `error` or `drop`.

    Returns:
      Number of rows by reason, reasons sorted.

    Raises:
      DataError: on bad rows under `error`; if every row is bad, or there is none.
    """
    counted = Counter(bad.reason for _, bad in faults)
    dropped = dict(sorted(counted.items()))
    if read == 0:
        raise DataError("the data source has no rows")
    if not faults or (on_bad_row == "drop" and len(faults) < read):
        return dropped
    shown = [f"{w}: {bad.detail}"[:SHOWN_CHARACTERS] for w, bad in faults[:SHOWN_ROWS]]
    if len(faults) > len(shown):
        shown.append(f"and {len(faults) - len(shown)} more")
    if len(faults) == read:
        head, tail = "no row can be used: ", ""
    else:
        head, tail = "", "; mend them or set data.on_bad_row='drop'"
    total = f"bad rows: {len(faults)} of {read}{_reasons(dropped)}: "
    raise DataError(head + total + " · ".join(shown) + tail)


def _reasons(dropped: dict[str, int]) -> str:
    parts = [f"{number} {reason}" for reason, number in sorted(dropped.items())]
    return f" ({', '.join(parts)})" if parts else ""


def _check_options(*, kind: str, format: str, on_bad_row: str) -> None:
    assert kind in KINDS, kind
    if format not in FORMATS:
        raise ConfigError(unknown("data.format", format, map(repr, FORMATS)))
    if on_bad_row not in ("error", "drop"):
        raise ConfigError(unknown("data.on_bad_row", on_bad_row, ("error", "drop")))


def _check(fields: Fields | BadRow, kind: str, format: str) -> Parts | BadRow:
    if isinstance(fields, BadRow):
        return fields
    try:
        columns.check_finite(fields)
        return KINDS[kind](FORMATS[format](fields))
    except BadRow as bad:
        return bad


def _all_or_none_rated(checked: list[Checked]) -> list[Checked]:
    """Refuses rows without a rating where others have one."""
    rated = [where for where, row in checked if _good(row) and row.ratings]
    if not rated:
        return checked
    detail = (
        "columns 'score_chosen' and 'score_rejected' (or 'margin') are missing, but "
        f"{rated[0]} has them"
    )
    lacking = BadRow("missing column", detail)
    return [
        (where, lacking if _good(row) and not row.ratings else row)
        for where, row in checked
    ]


def _good(row: Parts | BadRow) -> TypeGuard[Parts]:
    return isinstance(row, Parts)


FORMATS: dict[str, Callable[[Fields], Fields]] = {
    "": dict,
    "hh": split_transcripts,
}
