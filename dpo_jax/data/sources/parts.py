"""Reads what `data.train` and `data.eval` say: sources, splits, slices and weights.

`SOURCE[:SPLIT][:WEIGHT]` joined by `+`, each with a slice behind it such as `[:200]`,
`[100:300]`, `[-50:]` or `[:10%]`. A file that exists by a longer name is that file.
"""

import math
import os
import re
from collections.abc import Callable
from typing import NamedTuple

from dpo_jax.errors import ConfigError

BOUND = r"-?\d{1,15}%?"  # more digits are no number of rows
SLICE = re.compile(rf"(?P<rest>.+)\[(?P<start>{BOUND})?:(?P<stop>{BOUND})?\]", re.S)
WEIGHT = re.compile(r"(?P<rest>.+):(?P<weight>-?(\d+\.?\d*|\.\d+)(e-?\d+)?)", re.S)
SPLIT = re.compile(r"(?P<rest>.+):(?P<split>[A-Za-z_][\w.-]*)", re.S)


class Slice(NamedTuple):
    """Rows from `start` to before `stop`, as `12`, `-12` or `10%`; '' = all that way.

    Negative numbers count from the end, and a share is rounded down, so that
    `[:10%]` and `[10%:]` have every row once.
    """

    start: str = ""
    stop: str = ""

    def __str__(self) -> str:
        return f"[{self.start}:{self.stop}]" if any(self) else ""

    @property
    def counts(self) -> bool:
        """Says whether the number of rows must be known."""
        return any(bound.startswith("-") or bound.endswith("%") for bound in self)

    def of(self, size: int | None) -> tuple[int, int | None]:
        """Returns the first place and the one behind the last; None = no last.

        Args:
          size: rows of the source; None where `counts` is False.
        """
        start, stop = (_place(bound, size) for bound in self)
        return start or 0, stop


class Part(NamedTuple):
    """One source of `data.train` or `data.eval`.

    Attributes:
      source: a name, a file, a glob, a folder or a hub id.
      split: the source's own; '' = the one that data.train or data.eval means.
      slice: of its rows.
      weight: its share of a mixture; None = not given.
    """

    source: str
    split: str = ""
    slice: Slice = Slice()
    weight: float | None = None

    def __str__(self) -> str:
        split = f":{self.split}" if self.split else ""
        return f"{self.source}{split}{self.slice}"


def parts_of(
    text: str, field: str, exists: Callable[[str], bool] = os.path.exists
) -> list[Part]:
    """Splits `SOURCE[:SPLIT][:WEIGHT]+…` into its parts.

    Args:
      text: the value of `data.train` or `data.eval`.
      field: the config key that has it, for the message.
      exists: whether there is a file or folder of a name; the longest wins.

    Raises:
      ConfigError: if a part is empty, a weight is not positive, or a slice is empty.
    """
    pieces, parts = text.split("+"), []
    while pieces:
        ends = range(len(pieces), 1, -1)
        longer = (n for n in ends if exists(_part("+".join(pieces[:n]), exists).source))
        count = next(longer, 1)
        part = _part("+".join(pieces[:count]), exists)
        _check(part, field, text)
        parts.append(part)
        pieces = pieces[count:]
    return parts


def _part(text: str, exists: Callable[[str], bool]) -> Part:
    said: dict[str, str | None] = {}
    for pattern in (SLICE, WEIGHT, SLICE, SPLIT):
        known = set(pattern.groupindex) & said.keys() - {"rest"}
        if exists(text) or known or not (match := pattern.fullmatch(text)):
            continue
        said |= match.groupdict()
        text = match["rest"]
    weight = said.get("weight")
    return Part(
        text,
        said.get("split") or "",
        Slice(said.get("start") or "", said.get("stop") or ""),
        None if weight is None else float(weight),
    )


def _check(part: Part, field: str, text: str) -> None:
    said = f"{field}={text!r}"
    if not part.source.strip():
        raise ConfigError(
            f"{said} has an empty part; write SOURCE[:SPLIT][:WEIGHT], joined by +"
        )
    if part.weight is not None and not 0 < part.weight < math.inf:
        raise ConfigError(f"{said}: the weight of {part.source!r} is no number > 0")
    if _is_empty(part.slice):
        raise ConfigError(f"{said}: the slice {part.slice} holds no row")


def _is_empty(of: Slice) -> bool:
    if of.stop in ("0", "0%"):
        return True
    alike = len({(b.startswith("-"), b.endswith("%")) for b in of}) == 1
    return alike and all(of) and _number(of.start) >= _number(of.stop)


def _number(bound: str) -> int:
    return int(bound.removesuffix("%"))


def _place(bound: str, size: int | None) -> int | None:
    place = _number(bound or "0")
    if bound.endswith("%"):
        assert size is not None
        place = abs(place) * size // 100 * (-1 if place < 0 else 1)
    if bound.startswith("-"):
        assert size is not None
        return max(size + place, 0)
    return place if bound else None
