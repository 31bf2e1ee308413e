"""Where rows of text come from: named sources, files, globs, folders and the hub.

Sources yield (where, fields) as `files` describes. To add a published data set, add a
row to `published.py`; one that is generated is a file with `read(request)` and a row in
the table below.
"""

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from dpo_jax.data.sources import places, sentiment
from dpo_jax.data.sources.files import SPLIT_WORDS, Request, Rows
from dpo_jax.data.sources.formats import ENDINGS, reader_of
from dpo_jax.data.sources.hub import HUB_ID, HUB_SPLITS, read_data_folder, read_hub
from dpo_jax.data.sources.mapping import NO_COLUMNS, ColumnMap, mapped
from dpo_jax.data.sources.parts import Part, parts_of
from dpo_jax.data.sources.published import PUBLISHED, REFUSED, Published, name_of
from dpo_jax.data.sources.values import Decode, no_ids
from dpo_jax.errors import ConfigError, DataError, unknown

__all__ = ["Origin", "Part", "Request", "find", "parts_of", "read"]


class Truth(NamedTuple):
    """What a source with a true reward offers to whoever samples.

    Attributes:
      prompts: `(seed, n, *, split) -> texts`.
      reward: (prompt words, completion words) -> the truth.
    """

    prompts: Callable[..., list[str]]
    reward: Callable[[Sequence[str], Sequence[str]], float]


class Origin(NamedTuple):
    """One source, found and not yet read.

    Attributes:
      part: as data.train or data.eval has it.
      field: the key that has it, for messages.
      words: names that its split may have; the first that is there is read.
      place: a file, glob or folder; '' = of the hub, or generated.
      hub: the id on the hub.
      name: in `PUBLISHED`; '' = it is not.
      columns: how its columns become ours; None = they are.
      owner: what `columns` is called in messages.
    """

    part: Part
    field: str
    words: tuple[str, ...] = ()
    place: str = ""
    hub: str = ""
    name: str = ""
    columns: ColumnMap | None = None
    owner: str = "data.columns"

    @property
    def published(self) -> Published:
        """The row of the table; an empty one of what is not published."""
        return PUBLISHED[self.name] if self.name else Published("")

    @property
    def drops(self) -> tuple[str, ...]:
        """How the reasons begin for which rows are dropped instead of refused."""
        return () if self.columns is None else self.columns.drops()


def find(
    part: Part, split: str, *, path: str = "", columns: ColumnMap = NO_COLUMNS
) -> Origin:
    """Finds what a part of data.train or data.eval means.

    Args:
      part: from `parts_of`.
      split: `train` or `eval`; it also names the config key in messages.
      path: a local copy of a published set, or a folder that holds copies of several
        under their names; '' = none.
      columns: the user's own; what they say counts before what a published set says.

    Raises:
      DataError: if there is no such source.
      ConfigError: if the source is refused, or does not use an option.
    """
    field, source = f"data.{split}", part.source
    if source in REFUSED:
        raise ConfigError(f"{field}={source!r} {REFUSED[source]}")
    name = name_of(source)
    if path and not name:
        raise ConfigError(f"data.path={path!r} is not used by {field}={source!r}")
    if source in GENERATED:
        if part.split:
            raise ConfigError(f"{field}={str(part)!r} is generated and has no splits")
        return Origin(part, field)
    if name:
        return _published(part, split, name, path, columns)
    own = None if columns == NO_COLUMNS else columns
    words = places.words_of(part.split, split)
    if places.is_place(source):
        return Origin(part, field, words, place=source, columns=own)
    if HUB_ID.fullmatch(source):
        words = (part.split or HUB_SPLITS[split],)
        return Origin(part, field, words, hub=source, columns=own)
    if "/" in source or reader_of(source):
        raise DataError(f"{field}={source!r}: there is no such file or folder")
    known = [*GENERATED, *PUBLISHED]
    raise DataError(
        unknown(field, source, known) + "; or a file, a glob, a folder, a hub id "
        "owner/name"
    )


def _published(
    part: Part, split: str, name: str, path: str, columns: ColumnMap
) -> Origin:
    field, row = f"data.{split}", PUBLISHED[name]
    own = {key: value for key, value in columns._asdict().items() if value}
    usual = row.splits[split]
    if not (part.split or usual):
        raise ConfigError(
            f"{field}={str(part)!r}: {name} has no split of its own for {split}; name "
            f"rows of another, as {name}:{max(row.splits.values())}[:200]"
        )
    words = (part.split,) if part.split else (usual, *SPLIT_WORDS[split])
    hub = part.source if "/" in part.source else row.hub
    place = path or (hub if hub and os.path.exists(hub) else row.file)
    for below in (name, hub, hub.rpartition("/")[2], row.config):
        if place and below and os.path.isdir(Path(place) / below):
            place = str(Path(place) / below)
    return Origin(
        part,
        "data.path" if path else field,
        words,
        place=place,
        hub=hub,
        name=name,
        columns=row.columns._replace(**own),
        owner="data.columns" if own else name,
    )


def read(origin: Origin, request: Request, decode: Decode = no_ids) -> Rows:
    """Reads the rows of a source.

    Args:
      origin: from `find`.
      request: which rows.
      decode: token ids of GPT-2 -> text, for sets that hold ids.

    Returns:
      An iterator of (where, fields or `BadRow`).

    Raises:
      DataError: if the source cannot be read, or holds other rows.
      ConfigError: if an option is given that the source does not use.
    """
    part, holds = origin.part, origin.published.holds
    said = f"data.{request.split}={part.source!r}"
    if request.labels and part.source not in GENERATED:
        raise ConfigError(f"data.labels={request.labels!r} is not used by {said}")
    if holds not in ("pairs", request.kind):
        raise ConfigError(f"{said} holds {HELD[holds]}")
    again = partial(_rows, origin, request)
    rows = _sliced(again, part, said) if any(part.slice) else again()
    most = min(request.rows, sys.maxsize)  # what `islice` takes
    rows = islice(rows, most) if most else rows
    if origin.columns is None:
        return rows
    kind, owner = request.kind, origin.owner
    return mapped(rows, origin.columns, owner, kind=kind, decode=decode)


def files_of(origin: Origin) -> list[str] | None:
    """Lists the files that hold all that `read` reads, in order.

    Returns:
      None where they are not known, as for the hub; [] of a generated source.
    """
    if origin.part.source in GENERATED:
        return []
    if not origin.place:
        return None
    if os.path.isdir(origin.place) and places.of_library(Path(origin.place)):
        every = Path(origin.place).rglob("*")
        return sorted(str(file) for file in every if file.is_file())
    return _files(origin)


def _sliced(again: Callable[[], Rows], part: Part, said: str) -> Rows:
    size = sum(1 for _ in again()) if part.slice.counts else None
    empty = True
    for row in islice(again(), *part.slice.of(size)):
        empty = False
        yield row
    if empty:
        raise DataError(f"{said}: the slice {part.slice} holds no row")


def _rows(origin: Origin, request: Request) -> Rows:
    if origin.part.source in GENERATED:
        return GENERATED[origin.part.source](request)
    config = origin.published.config
    if not origin.place:
        return read_hub(origin.hub, origin.words[0], origin.field, config)
    if (files := _files(origin)) is None:
        return read_data_folder(origin.place, origin.words, origin.field, config)
    readers = [(reader_of(file), file) for file in files]
    return chain.from_iterable(
        reader(file, origin.field) for reader, file in readers if reader
    )


def _files(origin: Origin) -> list[str] | None:
    """Lists the files to read; None where `datasets` finds them."""
    place, field, path = origin.place, origin.field, Path(origin.place)
    if os.path.isdir(place):  # pathlib raises where a name is too long
        if places.of_library(path):
            return None
        return places.shards(path, origin.words, field) or None
    if origin.part.split:
        raise DataError(f"{field}={place!r} is no folder, and has no split to name")
    if not os.path.isfile(place) and places.PATTERN.search(place):
        return places.matching(place, field)
    if not reader_of(place):
        what = (
            "the ending is not known"
            if os.path.exists(place)
            else "there is no such file"
        )
        raise DataError(f"{field}={place!r}: {what}; use {ENDINGS}")
    return [place]


def truth_of(listed: str) -> Truth | None:
    """Returns the true reward of `data.eval`; None where it has none.

    Args:
      listed: see `parts_of`; '' = nothing.
    """
    parts = parts_of(listed, "data.eval") if listed else []
    return JUDGED.get(parts[0].source) if len(parts) == 1 else None


HELD = {  # kinds of rows that serve but one objective
    "singles": "single responses with a label; set objective='unpaired'",
    "completions": "plain text; set objective='sft'",
}
GENERATED: dict[str, Callable[[Request], Rows]] = {"sentiment": sentiment.read}
TOKENIZERS: dict[str, Callable[[], Any]] = {"sentiment": sentiment.tokenizer}
JUDGED: dict[str, Truth] = {
    "sentiment": Truth(sentiment.prompts, sentiment.probability),
}
