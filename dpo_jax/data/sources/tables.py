"""Reads rows of tables: CSV, TSV and Parquet.

A cell of CSV is a `Cell`: a string, that is read as a number or a list where one is
due. A value of Parquet that Python cannot hold spoils its column only where it is read.
"""

import csv
import io
from collections.abc import Iterator
from typing import IO, Any

from dpo_jax.data.sources.files import (
    LITTLE,
    MAX_LINE_BYTES,
    READ_ERRORS,
    BadRow,
    Bomb,
    Cell,
    Fields,
    Rows,
    open_binary,
    open_rows,
)
from dpo_jax.errors import DataError

MOST_ROWS = 1024  # of a table at once
AT_ONCE = 256 * 2**20  # bytes of a column at most, of the rows read at once
MOST_TIMES = 1000  # that a table may unpack to; a value that is often there takes none


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
        size = stream.seek(0, io.SEEK_END)
        table = pyarrow.parquet.ParquetFile(stream)
    except Exception as error:  # another library's: whatever damage can do
        raise DataError(f"{field}={path!r} is no Parquet file: {error}") from error
    check_columns(table.schema_arrow.names, f"{field}={path!r}")
    if table.metadata.num_rows == 0:
        raise DataError(f"{field}={path!r}: the file has no rows")
    try:
        for _ in _up_to(LITTLE, _batches(table, size)):
            pass  # a bomb is told before any row is looked at
    except Bomb as error:
        raise DataError(f"{field}={path!r} cannot be read: {error}") from error
    except Exception:  # damage is told with its place, when that is reached
        pass
    return arrow_rows(_batches(table, size), path)


def _batches(table: Any, size: int) -> Iterator[Any]:
    """Reads a Parquet file by so few rows that their values fit into the memory.

    A value that many rows share is stored once: what is stored of a column bounds each
    of its values, not their sum.

    Args:
      table: a `pyarrow.parquet.ParquetFile`.
      size: bytes of the file.

    Raises:
      Bomb: if the rows read so far hold absurdly more than the file, or a column more
        than `AT_ONCE` for each row.
    """
    metadata, seen = table.metadata, 0
    for group in range(metadata.num_row_groups):
        rows, largest = metadata.row_group(group).num_rows, 1
        for at in range(metadata.num_columns):
            column = metadata.row_group(group).column(at)
            largest = max(largest, column.total_uncompressed_size)
            if column.total_uncompressed_size > AT_ONCE * max(rows, 1):
                raise Bomb(f"{column.path_in_schema} has {AT_ONCE} bytes for each row")
        at_once = min(max(AT_ONCE // largest, 1), MOST_ROWS)
        for held in table.iter_batches(batch_size=at_once, row_groups=[group]):
            batch = _spelled_out(held)
            seen += batch.nbytes
            if seen > LITTLE and seen > MOST_TIMES * size:
                raise Bomb(f"it unpacks to more than {MOST_TIMES} times its size")
            yield batch


def _spelled_out(batch: Any) -> Any:
    """Returns a batch in which every row holds its values, not numbers of them."""
    import pyarrow

    columns = [
        c.dictionary_decode() if pyarrow.types.is_dictionary(c.type) else c
        for c in batch.columns
    ]
    return pyarrow.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _up_to(most: int, batches: Iterator[Any]) -> Iterator[Any]:
    """Yields batches until they hold more than `most` bytes."""
    seen = 0
    while seen <= most and (batch := next(batches, None)) is not None:
        seen += batch.nbytes
        yield batch


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
