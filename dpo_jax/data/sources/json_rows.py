"""Reads rows of JSON: one a line, or the objects of an array.

The standard library reads them, so that places are exact and nothing is filled in. No
more is held than one row and the piece of the file that it stands in.
"""

import codecs
import json
from collections.abc import Iterator
from typing import IO, Any

from dpo_jax.data.sources.files import (
    MAX_LINE_BYTES,
    READ_ERRORS,
    BadRow,
    Fields,
    Rows,
    open_rows,
)
from dpo_jax.errors import DataError

PIECE = 1 << 16  # characters of an array read at once
BLANK = " \t\r\n"


def read_jsonl(path: str, field: str) -> Rows:
    """Reads a JSONL file; `where` is `file:line`, lines from 1, blank ones skipped."""
    return _line_rows(open_rows(path, field), path)


def read_json(path: str, field: str) -> Rows:
    """Reads a JSON array of objects, or what is JSONL in truth.

    `where` is `file[row]`, rows from 0, or as of `read_jsonl`.

    Raises:
      DataError: naming line and character, where the array is malformed.
    """
    return _array_or_lines(open_rows(path, field), path, field)


def _array_or_lines(stream: IO[bytes], path: str, field: str) -> Rows:
    text = _Text(stream, path)
    with stream:
        is_array = text.peek() == "["
        if is_array:
            yield from _array_rows(text, path)
    if is_array:
        return
    for at, (where, row) in enumerate(read_jsonl(path, field)):
        if at == 0 and isinstance(row, BadRow) and row.reason == "malformed":
            due = "a .json file is an array of objects, or one object a line"
            raise DataError(f"{where}: {row.detail}; {due}")
        yield where, row


def _array_rows(text: "_Text", path: str) -> Rows:
    """Yields the elements of an array; what breaks it off ends the reading."""
    decoder, index = _Decoder(), 0
    text.at += 1
    closed = text.peek() == "]"
    while not closed:
        yield f"{path}[{index}]", _element(text, decoder, index)
        index += 1
        if (mark := text.peek()) not in (",", "]"):
            what = f"',' or ']' is due behind row [{index - 1}]"
            raise DataError(f"{text.place()}: malformed JSON: {what}")
        closed = mark == "]"
        text.at += 1
    text.at += index == 0
    if text.peek():
        raise DataError(f"{text.place()}: malformed JSON: text behind the array")
    if index == 0:
        raise DataError(f"{path}:1: the array is empty; a row is an object in it")


def _element(text: "_Text", decoder: "_Decoder", index: int) -> Fields | BadRow:
    text.peek()
    while True:
        start = text.at
        try:
            value, end = decoder.raw_decode(text.window, start)
        except json.JSONDecodeError as error:
            fault = f"{error.msg} at character {error.colno} of the line"
            line = text.window.count("\n", start, error.pos)
        except (RecursionError, ValueError) as error:
            fault, line = str(error), 0
        else:
            if text.whole or end < len(text.window):
                text.at = end
                return _checked(text.window[start:end], value, decoder)
            fault, line = "", 0
        if text.whole:
            fault = f"malformed JSON in row [{index}]: {fault}"
            raise DataError(f"{text.place(line)}: {fault}")
        if len(text.window) - start > MAX_LINE_BYTES:
            limit = f"; a row of {MAX_LINE_BYTES // 2**20} MiB and more" * bool(fault)
            raise DataError(f"{text.place(line)}: row [{index}]: {fault}{limit}")
        text.more()


def _checked(raw: str, value: Any, decoder: "_Decoder") -> Fields | BadRow:
    if not raw.isascii():
        try:
            raw.encode("utf-8", "surrogateescape").decode()
        except UnicodeDecodeError as error:
            return _no_unicode(error)
    return decoder.row(value)


def _line_rows(stream: IO[bytes], path: str) -> Rows:
    decoder, number, empty = _Decoder(), 0, True
    try:
        with stream:
            for number, line in _lines(stream):
                if line is not None and not line.strip():
                    continue
                empty = False
                yield f"{path}:{number}", _parse(line, decoder)
    except READ_ERRORS as error:
        raise DataError(f"{path}:{number + 1}: reading failed: {error}") from error
    if empty:
        raise DataError(f"{path}:1: the file is empty; a row is a line of JSON")


def _lines(stream: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Yields (number, line) without ever holding more than the longest legal line."""
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if line.endswith(b"\n") or len(line) <= MAX_LINE_BYTES:
            yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            continue
        while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
            pass
        yield number, None


def _parse(line: bytes | None, decoder: "_Decoder") -> Fields | BadRow:
    if line is None:
        limit = MAX_LINE_BYTES // 2**20
        return BadRow("line too long", f"the line is longer than {limit} MiB")
    try:
        value = decoder.decode(line.decode())
    except UnicodeDecodeError as error:
        return _no_unicode(error)
    except json.JSONDecodeError as error:
        detail = f"malformed JSON: {error.msg} at character {error.pos + 1}"
        return BadRow("malformed", detail)
    except (RecursionError, ValueError) as error:
        return BadRow("malformed", f"malformed JSON: {error}")
    return decoder.row(value)


def _no_unicode(error: UnicodeDecodeError) -> BadRow:
    return BadRow("invalid UTF-8", f"invalid UTF-8 at byte {error.start + 1}")


class _Decoder(json.JSONDecoder):
    """Decodes JSON and remembers which keys an object had twice."""

    def __init__(self) -> None:
        self._twice: set[str] = set()
        super().__init__(object_pairs_hook=self._fields)

    def _fields(self, items: list[tuple[str, Any]]) -> Fields:
        fields = dict(items)
        if len(fields) < len(items):
            names = [name for name, _ in items]
            self._twice |= {name for name in names if names.count(name) > 1}
        return fields

    def row(self, value: Any) -> Fields | BadRow:
        """Returns a decoded row, or why it is none."""
        names = sorted(self._twice)
        self._twice.clear()
        if names:
            said = ", ".join(map(repr, names))
            return BadRow("duplicate key", f"duplicate key {said}")
        if not isinstance(value, dict):
            kind = type(value).__name__
            detail = f"malformed row: a JSON object is due, not {kind}"
            return BadRow("malformed", detail)
        return value


class _Text:
    """The text of a file, of which only a window is held.

    Attributes:
      window: what is held.
      at: the place in it that is read next.
      whole: whether it reaches to the end of the file.
    """

    def __init__(self, stream: IO[bytes], path: str):
        self._stream, self._path = stream, path
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._lines = 1
        self.window, self.at, self.whole = "", 0, False

    def more(self) -> None:
        """Lets go of what was read and doubles the window, or more."""
        self._lines += self.window.count("\n", 0, self.at)
        rest = self.window[self.at :]
        try:
            data = self._stream.read(max(PIECE, len(rest)))
        except READ_ERRORS as error:
            raise DataError(f"{self.place()}: reading failed: {error}") from error
        self.window = rest + self._decoder.decode(data, final=not data)
        self.at, self.whole = 0, not data

    def peek(self) -> str:
        """Steps over blanks and returns the next character; '' at the end."""
        while True:
            while self.at < len(self.window):
                if self.window[self.at] not in BLANK:
                    return self.window[self.at]
                self.at += 1
            if self.whole:
                return ""
            self.more()

    def place(self, lines: int = 0) -> str:
        """Returns `file:line` so many lines behind what is read next."""
        before = self.window.count("\n", 0, self.at)
        return f"{self._path}:{self._lines + before + lines}"
