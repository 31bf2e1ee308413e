"""What readers of rows share: rows, bad rows, requests, and opened files.

What a reader yields is a pair (where, fields): `where` is `file:line` or
`file[row]`, `fields` a dict of columns, or a `BadRow` that says why there is none.
A fault of one row never ends the reading; a fault of the whole file is a `DataError`.
The readers are in `json_rows` and `tables`, all endings in `formats`. This room knows
no column names, no tokenizer and no jax.
"""

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple, cast

from dpo_jax.errors import DataError
from dpo_jax.files import is_local, unfit

MAX_LINE_BYTES = 16 * 2**20
SPLIT_WORDS = {"train": ("train",), "eval": ("eval", "test", "validation")}
LITERALS = {"True": "true", "False": "false"}  # of a `Cell`, as pandas writes them
MOST_TIMES = 100  # that a file may unpack to; text takes 20 at most
LITTLE = 64 * 2**20  # bytes that nobody minds
UNPACKED = 1 << 18  # bytes unpacked at once
READ_ERRORS = (OSError, EOFError, zlib.error)  # of a file that breaks off


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


class Cell(str):
    """A string that may stand for a number or a list where one is due, as in CSV."""

    def meant(self) -> Any:
        """Returns what it stands for: a number, a truth value, a list; '' is null."""
        try:
            return json.loads(LITERALS.get(self, self)) if self else None
        except (ValueError, RecursionError):
            return str(self)


class Request(NamedTuple):
    """What a source is asked for.

    Attributes:
      split: `train` or `eval`; it also names the config key in messages.
      kind: of `kinds.KINDS`; a generated source makes completions, or pairs for all
        other kinds.
      seed: of a generated source.
      rows: the first so many; 0 = all, or the default of generated data.
      labels: how generated pairs are labelled; '' = the source's default.
    """

    split: str
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

            far: Any = fsspec.open(path, "rb").open()  # pyright: ignore
            return io.BufferedReader(far)  # which reads lines of a given length, too
        if what := unfit(path):  # a pipe may wait for ever, a device never end
            raise DataError(f"{field}={path!r} {what}; give a file")
        return open(path, "rb")
    except FileNotFoundError as error:
        raise DataError(f"{field}={path!r}: there is no such file") from error
    except ImportError as error:
        raise missing_package(path, field, error) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{field}={path!r} cannot be opened: {error}") from error


def missing_package(path: str, field: str, error: ImportError) -> DataError:
    """Says how a remote path can be read."""
    return DataError(
        f"{field}={path!r} needs a missing package ({error}); install the extra "
        "`gcs` or copy the file to a local disk"
    )


def open_rows(path: str, field: str) -> IO[bytes]:
    """Opens a file as `open_binary` does and takes `.gz` and `.zst` off it.

    Raises:
      DataError: also if its beginning unpacks to too much; before any row is looked at,
        for rows take far longer than bytes.
    """
    if path.endswith((".gz", ".zst")):
        seen, stream = 0, _unpacked(path, field)
        try:
            while seen <= LITTLE and (data := stream.read(UNPACKED)):
                seen += len(data)
        except Bomb as error:
            raise DataError(f"{field}={path!r} cannot be read: {error}") from error
        except (OSError, EOFError, ValueError, zlib.error):
            pass  # damage is told with its place, when that is reached
        finally:
            stream.close()
    return _unpacked(path, field)


def _unpacked(path: str, field: str) -> IO[bytes]:
    stream = open_binary(path, field)
    if path.endswith(".gz"):
        return _bounded(gzip.GzipFile(fileobj=stream), stream)
    if path.endswith(".zst"):
        import pyarrow

        file = pyarrow.PythonFile(stream, mode="r")
        return _bounded(pyarrow.CompressedInputStream(file, "zstd"), stream)
    return stream


def _bounded(plain: Any, packed: IO[bytes]) -> IO[bytes]:
    return cast(IO[bytes], io.BufferedReader(_Unpacked(plain, packed), UNPACKED))


class Bomb(OSError):
    """A file that was made to fill memories."""


class _Unpacked(io.RawIOBase):
    """What is taken off a packed file; ends with one that was made to fill memories."""

    def __init__(self, plain: Any, packed: IO[bytes]):
        self._plain, self._packed, self._given = plain, packed, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._plain.read(len(buffer))
        buffer[: len(data)] = data
        self._given += len(data)
        held = max(self._packed.tell(), 1)
        if self._given > LITTLE and self._given > MOST_TIMES * held:
            raise Bomb(f"it unpacks to more than {MOST_TIMES} times its size")
        return len(data)
