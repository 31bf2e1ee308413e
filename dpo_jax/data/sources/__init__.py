"""Where rows of text come from: named sources, files, folders and the hub.

Sources yield (where, fields) as `files` describes and know nothing of what the rows
are for. To add one: write a file with `read(request)` and a row in the table below.
"""

import re
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from dpo_jax.data.sources import hh, sentiment
from dpo_jax.data.sources.files import READERS, Request, Rows, reader_of
from dpo_jax.data.sources.hub import read_data_folder, read_hub
from dpo_jax.errors import ConfigError, DataError, unknown

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[\w.%\[\]-]+)?")


class Truth(NamedTuple):
    """What a source with a true reward offers to whoever samples.

    Attributes:
      prompts: `(seed, n, *, split) -> texts`.
      reward: (prompt words, completion words) -> the truth.
    """

    prompts: Callable[..., list[str]]
    reward: Callable[[Sequence[str], Sequence[str]], float]


def read(name: str, request: Request) -> Rows:
    """Reads the rows of a source.

    Args:
      name: a name of `SOURCES`; a .jsonl, .jsonl.gz or .parquet path; a data set
        folder; or a hub id `owner/name[:split]`.
      request: which rows.

    Returns:
      An iterator of (where, fields or `BadRow`).

    Raises:
      DataError: if there is no such source.
      ConfigError: if an option is given that the source does not use.
    """
    field = f"data.{request.split}"
    if request.path and name not in LOCAL_COPY:
        raise ConfigError(f"data.path={request.path!r} is not used by {field}={name!r}")
    if request.labels and name not in GENERATED:
        raise ConfigError(
            f"data.labels={request.labels!r} is not used by {field}={name!r}"
        )
    if name in SOURCES:
        rows = SOURCES[name](request)
    elif reader := reader_of(name):
        rows = reader(name, field)
    else:
        rows = _read_elsewhere(name, request.split, field)
    return islice(rows, request.rows) if request.rows else rows


def files_of(name: str, *, path: str) -> list[str] | None:
    """Lists the files that hold all that `read` reads, in order.

    Args:
      name: see `read`.
      path: likewise.

    Returns:
      None where they are not known, as for the hub; [] of a generated source.
    """
    if name in GENERATED:
        return []
    place = path if name in LOCAL_COPY else name
    if not place:
        return None
    if Path(place).is_dir():
        return sorted(str(file) for file in Path(place).rglob("*") if file.is_file())
    return [place] if reader_of(place) else None


def _read_elsewhere(name: str, split: str, field: str) -> Rows:
    place = Path(name)
    if place.is_dir():
        return read_data_folder(name, split, field)
    if place.exists():
        raise DataError(
            f"{field}={name!r}: the ending is not known; use {', '.join(READERS)}"
        )
    if HUB_ID.fullmatch(name):
        return read_hub(name, split, field)
    if "/" in name:
        raise DataError(f"{field}={name!r}: there is no such file or folder")
    raise DataError(
        unknown(field, name, SOURCES)
        + f"; or a {', '.join(READERS)} file, a folder, a hub id owner/name"
    )


SOURCES: dict[str, Callable[[Request], Rows]] = {
    "hh": hh.read,
    "sentiment": sentiment.read,
}
LOCAL_COPY = {"hh"}  # the sources that read `path`
TRANSCRIPTS = {"hh"}  # the sources whose rows are of `data.format='hh'`
GENERATED = {"sentiment"}  # the sources that read `labels`
TOKENIZERS: dict[str, Callable[[], Any]] = {"sentiment": sentiment.tokenizer}
JUDGED: dict[str, Truth] = {
    "sentiment": Truth(sentiment.prompts, sentiment.probability),
}
