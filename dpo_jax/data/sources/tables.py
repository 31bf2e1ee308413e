"""Reads rows of tables: CSV, TSV and Parquet.

A cell of CSV is a `Cell`: a string, that is read as a number or a list where one is
due. A value of Parquet that Python cannot hold spoils its column only where it is read.
"""

import csv
import io
from collections.abc import Iterator
from typing import IO, Any

from dpo_jax.data.sources.files import (
    MAX_LINE_BYTES,
    READ_ERRORS,
    BadRow,
    Cell,
    Fields,
    Rows,
    open_binary,
    open_rows,
)
from dpo_jax.errors import DataError


def read_csv(path: str, field: str) -> Rows:
    """Reads a CSV file with a header; `where` is `file:line`, where the row begins.

    Raises:
      DataError: if the file is empty or has two columns of one name.
    """
    return _cell_rows(open_rows(path, field), path, ",")


def read_tsv(path: str, field: str) -> Rows:
    """Reads a file of tab-separated values as `read_csv` does."""
    return _cell_rows(open_rows(path, field), path, "\t")


def read_parquet(path: str, field: str) -> Rows:
    """Reads a Parquet file; `where` is `file[row]`, rows from 0.

    Raises:
      DataError: if it is no Parquet file, is empty or has two columns of one name.
    """
    import pyarrow.parquet

    stream = open_binary(path, field)
    try:
        table = pyarrow.parquet.ParquetFile(stream)
    except Exception as error:  # another library's: whatever damage can do
        raise DataError(f"{field}={path!r} is no Parquet file: {error}") from error
    check_columns(table.schema_arrow.names, f"{field}={path!r}")
    if table.metadata.num_rows == 0:
        raise DataError(f"{field}={path!r}: the file has no rows")
    return arrow_rows(table.iter_batches(batch_size=1024), path)


def check_columns(names: list[str], what: str) -> None:
    """Raises DataError if two columns have one name."""
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{what} has columns twice: {', '.join(twice)}")


def arrow_rows(batches: Iterator[Any], name: str) -> Rows:
    """Yields the rows of Arrow's record batches; `where` is `name[row]`."""
    index = 0
    try:
        for batch in batches:
            for fields in _fields_of(batch):
                yield f"{name}[{index}]", fields
                index += 1
    except Exception as error:  # another library's: whatever damage can do
        raise DataError(f"{name}[{index}]: reading failed: {error}") from error


def _fields_of(batch: Any) -> list[Fields | BadRow]:
    import pyarrow

    try:
        return batch.to_pylist()
    except (ValueError, OverflowError, pyarrow.ArrowException):
        return [_fields_at(batch, row) for row in range(batch.num_rows)]


def _fields_at(batch: Any, row: int) -> Fields | BadRow:
    """Reads one row; a date beyond Python's is its column's type, which no one takes.

    Text that is not UTF-8 is a fault of the row, as in other files.
    """
    import pyarrow

    fields: Fields = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            fields[name] = column[row].as_py()
        except UnicodeDecodeError as error:
            detail = f"column {name!r}: invalid UTF-8 at byte {error.start + 1}"
            return BadRow("invalid UTF-8", detail)
        except (ValueError, OverflowError, pyarrow.ArrowException):
            fields[name] = column.type
    return fields


def _cell_rows(stream: IO[bytes], path: str, delimiter: str) -> Rows:
    csv.field_size_limit(MAX_LINE_BYTES)
    text = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="")
    pieces = iter(lambda: text.readline(MAX_LINE_BYTES + 1), "")
    reader = csv.reader(pieces, delimiter=delimiter, strict=True)
    header: list[str] = []
    line = 1
    try:
        with text:
            while True:
                line = reader.line_num + 1
                try:
                    cells = next(reader)
                except csv.Error as error:
                    if not header:
                        what = f"malformed header: {error}"
                        raise DataError(f"{path}:{line}: {what}") from error
                    yield f"{path}:{line}", BadRow("malformed", f"malformed: {error}")
                    continue
                if not header:
                    check_columns(cells, path)
                    header = cells
                elif cells:
                    yield f"{path}:{line}", _fields(header, cells)
    except StopIteration:
        pass
    except READ_ERRORS as error:
        raise DataError(f"{path}:{line}: reading failed: {error}") from error
    if not header:
        raise DataError(f"{path}:1: the file is empty; its first line names columns")


def _fields(header: list[str], cells: list[str]) -> Fields | BadRow:
    if len(cells) != len(header):
        detail = f"{len(cells)} cells, but the header names {len(header)} columns"
        return BadRow("malformed", f"malformed row: {detail}")
    for name, cell in zip(header, cells, strict=True):
        try:
            cell.encode("utf-8", "surrogateescape").decode()
        except UnicodeDecodeError as error:
            detail = f"column {name!r}: invalid UTF-8 at byte {error.start + 1}"
            return BadRow("invalid UTF-8", detail)
    return {name: Cell(cell) for name, cell in zip(header, cells, strict=True)}
