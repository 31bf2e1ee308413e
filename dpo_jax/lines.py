"""The lines of metrics.jsonl, and of the parts in which checkpoints keep them.

A part `metrics/ATTEMPT-FIRST.jsonl` holds the lines from step FIRST on that a launch
wrote until it saved. A launch that resumed behind step r takes the place of all that
earlier ones wrote of steps > r. An object store has no append: there the parts are the
metrics, and no metrics.jsonl lies beside them.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from etils import epath

METRICS = "metrics.jsonl"
PARTS = "metrics"
LARGE = 2**28  # bytes


class Seal(NamedTuple):
    """What a checkpoint says of the lines before it.

    Attributes:
      lines: how many.
      sha256: of their text, with line breaks.
    """

    lines: int
    sha256: str


def seal(lines: Iterable[str]) -> Seal:
    """Counts and hashes lines."""
    lines = list(lines)
    text = "".join(line + "\n" for line in lines)
    return Seal(len(lines), hashlib.sha256(text.encode()).hexdigest())


def parsed(line: str) -> dict[str, Any] | None:
    """Parses a line; None if it is no JSON object with an integer `step`."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    good = isinstance(entry, dict) and type(entry.get("step")) is int
    return entry if good else None


def split(text: str) -> list[str]:
    """Splits a text at its line breaks; the last needs none."""
    return text.removesuffix("\n").split("\n") if text else []


def until(lines: Iterable[str], step: int) -> list[str]:
    """Keeps the good lines of steps up to `step`."""
    entries = ((line, parsed(line)) for line in lines)
    return [line for line, entry in entries if entry and entry["step"] <= step]


def part_name(attempt: int, first: int) -> str:
    """Names a part below the run folder."""
    return f"{PARTS}/{attempt:04}-{first:08}.jsonl"


def merged(folder: epath.Path) -> list[str]:
    """Reads the lines of all parts; later launches take the place of earlier ones."""
    attempts: dict[int, list[tuple[int, epath.Path]]] = {}
    parts = folder / PARTS
    for path in parts.iterdir() if parts.exists() else ():
        if named := re.fullmatch(r"(\d+)-(\d+)\.jsonl", path.name):
            attempts.setdefault(int(named[1]), []).append((int(named[2]), path))
    lines: list[str] = []
    for _, of_launch in sorted(attempts.items()):
        lines = until(lines, min(of_launch)[0] - 1)
        for _, path in sorted(of_launch):
            lines += split(text_of(path))
    return lines


def text_of(path: epath.Path) -> str:
    """Reads a text; bytes that are not UTF-8 are marked, no file is ''.

    Nor is one of gigabytes that begins with zeros: a disk gave it its size alone.
    """
    if not path.exists() or is_hollow(path):
        return ""
    return path.read_bytes().decode(errors="replace")


def is_hollow(path: epath.Path) -> bool:
    """Says whether a file is large, and holds no text."""
    if epath.Path(path).stat().length < LARGE:
        return False
    with path.open("rb") as file:
        return b"\0" in file.read(2**20)


def read(folder: epath.Path) -> list[str]:
    """Reads the lines of a run: of metrics.jsonl, or of the parts without it."""
    path = folder / METRICS
    return split(text_of(path)) if path.exists() else merged(folder)
