"""Reads rows from files, one at a time, each with the place it came from.

What a reader yields is a pair (where, fields): `where` is `file:line` or
`file[row]`, `fields` a dict of columns, or a `BadRow` that says why there is none.
A fault of one row never ends the reading; a fault of the whole file is a `DataError`.
JSON is read by the standard library, so that line numbers are exact and nothing is
filled in. This room knows no column names, no tokenizer and no jax.
"""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from dpo_jax.errors import DataError
from dpo_jax.files import is_local

MAX_LINE_BYTES = 16 * 2**20
SPLIT_WORDS = {"train": ("train",), "eval": ("eval", "test", "validation")}


class BadRow(Exception):
    """A row that cannot be used; readers yield it, checks raise it.

    Attributes:
      reason: a few words under which such rows are counted.
      detail: what is wrong with this one, for the message.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Unreadable:
    """Stands for a value that Python cannot hold, such as a date after year 9999."""


class Request(NamedTuple):
    """What a source is asked for.

    Attributes:
      split: `train` or `eval`; it also names the config key in messages.
      path: a local copy, for the sources of `LOCAL_COPY`; '' = none.
      kind: of `kinds.KINDS`; a generated source makes completions, or pairs for all
        other kinds.
      seed: of a generated source.
      rows: the first so many; 0 = all, or the default of generated data.
      labels: how generated pairs are labelled; '' = the source's default.
    """

    split: str
    path: str = ""
    kind: str = "pairs"
    seed: int = 0
    rows: int = 0
    labels: str = ""


Fields = dict[str, Any]
Rows = Iterator[tuple[str, Fields | BadRow]]
Reader = Callable[[str, str], Rows]


def open_binary(path: str, field: str) -> IO[bytes]:
    """Opens a local or remote (`gs://…`) file for reading bytes.

    Args:
      path: where the file is.
      field: the config key that named it, for the message.

    Raises:
      DataError: if it is missing or cannot be opened.
    """
    try:
        if not is_local(path):
            import fsspec

            return fsspec.open(path, "rb").open()  # pyright: ignore
        return open(path, "rb")
    except FileNotFoundError as error:
        raise DataError(f"{field}={path!r}: there is no such file") from error
    except ImportError as error:
        raise DataError(
            f"{field}={path!r} needs a missing package ({error}); install the extra "
            "`gcs` or copy the file to a local disk"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{field}={path!r} cannot be opened: {error}") from error


def read_jsonl(path: str, field: str) -> Rows:
    """Reads a JSONL file; `where` is `file:line`, lines from 1, blank ones skipped."""
    return _json_rows(open_binary(path, field), path)


def read_jsonl_gz(path: str, field: str) -> Rows:
    """Reads a gzipped JSONL file as `read_jsonl` does."""
    stream = gzip.GzipFile(fileobj=open_binary(path, field))
    return _json_rows(cast(IO[bytes], stream), path)


def read_parquet(path: str, field: str) -> Rows:
    """Reads a Parquet file; `where` is `file[row]`, rows from 0.

    Raises:
      DataError: if it is no Parquet file, is empty or has two columns of one name.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(open_binary(path, field))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{field}={path!r} is no Parquet file: {error}") from error
    names = table.schema_arrow.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{field}={path!r} has columns twice: {', '.join(twice)}")
    if table.metadata.num_rows == 0:
        raise DataError(f"{field}={path!r}: the file has no rows")
    return _parquet_rows(table, path)


def reader_of(path: str) -> Reader | None:
    """Returns the reader for the ending of a path, or None."""
    endings = [ending for ending in READERS if path.endswith(ending)]
    return READERS[endings[0]] if endings else None


def read_folder(folder: str, split: str, field: str) -> Rows | None:
    """Reads the JSONL files of a folder whose names hold the word of a split.

    Args:
      folder: searched with its subfolders, in order of the paths.
      split: `train` takes names with the word train; `eval` the first of eval,
        test, validation that any name has.
      field: the config key that named it, for the message.

    Returns:
      The rows, or None where the folder holds no JSONL at all.

    Raises:
      DataError: if it holds JSONL files, but none of this split.
    """
    files = sorted(str(path) for path in Path(folder).rglob("*.jsonl*"))
    paths = [path for path in files if path.endswith((".jsonl", ".jsonl.gz"))]
    if not paths:
        return None
    for word in SPLIT_WORDS[split]:
        chosen = [path for path in paths if word in _words(path, folder)]
        if chosen:
            return (row for path in chosen for row in _reader(path)(path, field))
    raise DataError(
        f"{field}={folder!r}: no JSONL file with {' or '.join(SPLIT_WORDS[split])} in "
        f"its name; found {', '.join(paths[:5])}; name one file instead"
    )


def _reader(path: str) -> Reader:
    reader = reader_of(path)
    assert reader is not None, path
    return reader


def _words(path: str, folder: str) -> list[str]:
    return re.split(r"[^a-z]+", str(Path(path).relative_to(folder)).lower())


def _json_rows(stream: IO[bytes], path: str) -> Rows:
    number, empty = 0, True
    try:
        with stream:
            for number, line in _lines(stream):
                if line is not None and not line.strip():
                    continue
                empty = False
                yield f"{path}:{number}", _parse(line)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}:{number + 1}: reading failed: {error}") from error
    if empty:
        raise DataError(f"{path}:1: the file is empty; a row is a line of JSON")


def _lines(stream: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Yields (number, line) without ever holding more than the longest legal line."""
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if line.endswith(b"\n") or len(line) <= MAX_LINE_BYTES:
            yield number, line
            continue
        while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
            pass
        yield number, None


def _parse(line: bytes | None) -> Fields | BadRow:
    if line is None:
        limit = MAX_LINE_BYTES // 2**20
        return BadRow("line too long", f"the line is longer than {limit} MiB")
    try:
        fields = _DECODER.decode(line.decode())
    except BadRow as bad:
        return bad
    except UnicodeDecodeError as error:
        return BadRow("invalid UTF-8", f"invalid UTF-8 at byte {error.start + 1}")
    except json.JSONDecodeError as error:
        detail = f"malformed JSON: {error.msg} at character {error.pos + 1}"
        return BadRow("malformed", detail)
    except (RecursionError, ValueError) as error:
        return BadRow("malformed", f"malformed JSON: {error}")
    if not isinstance(fields, dict):
        kind = type(fields).__name__
        return BadRow("malformed", f"malformed row: a JSON object is due, not {kind}")
    return fields


def _unique(items: list[tuple[str, Any]]) -> Fields:
    fields = dict(items)
    if len(fields) < len(items):
        names = [name for name, _ in items]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise BadRow("duplicate key", f"duplicate key {', '.join(map(repr, twice))}")
    return fields


def _parquet_rows(table: Any, path: str) -> Rows:
    import pyarrow

    index = 0
    try:
        for batch in table.iter_batches(batch_size=1024):
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            values = {name: _values(column) for name, column in columns.items()}
            for at in range(batch.num_rows):
                yield f"{path}[{index}]", {n: each[at] for n, each in values.items()}
                index += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}[{index}]: reading failed: {error}") from error


def _values(column: Any) -> list[Any]:
    """Returns the values of a column; `Unreadable` where Python has none for them."""
    import pyarrow

    try:
        return column.to_pylist()
    except (pyarrow.ArrowException, ValueError, OverflowError):
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    import pyarrow

    try:
        return scalar.as_py()
    except (pyarrow.ArrowException, ValueError, OverflowError):
        return Unreadable()


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)

READERS: dict[str, Reader] = {
    ".jsonl": read_jsonl,
    ".jsonl.gz": read_jsonl_gz,
    ".parquet": read_parquet,
}
