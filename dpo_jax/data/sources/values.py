r"""Finds values in a row by what a mapping says: a column, a path, a template.

* `question`, `info.post`, `answers[].answer`, `messages[0].content`: a column, or what
  lies in it; `[]` takes a list of all;
* `summaries[].text:spaced`: changed by a function of the tables below, or `ids`;
* `Q: {question}\n\nA:`: a template, with any of the above between braces;
* `A || B`: the first of them of which the row has all, and nothing empty if it can be.
"""

import difflib
import re
import string
from collections.abc import Callable
from typing import Any

from dpo_jax.data.sources.files import BadRow, Cell, Fields

Getter = Callable[[Fields], Any]
Decode = Callable[[list[int]], str]

DIGITS = 15  # of the place in a list, at most
STEP = re.compile(r"([^.\[\]]+)|\[(\d*)\]")
WORD = re.compile(r":([a-z]+)$")
GPT2_IDS = 50257
LARGEST = 1e300
ABSENT = ("missing column", "null")


def getter(spec: str, said: str, decode: Decode) -> Getter:
    """Returns what finds a value in a row.

    Args:
      spec: see above.
      said: the field and its value, for messages.
      decode: token ids -> text, for the function `ids`.

    Raises:
      ValueError: saying what is wrong with the spec; the getter raises BadRow.
    """
    ways = [_one(part, said, decode) for part in spec.split("||")]
    parts = [_parts(part, said, decode) for part in spec.split("||")]
    if len(ways) == 1:
        return ways[0]

    def first(fields: Fields) -> Any:
        for empty in (False, True):
            for way, finds in zip(ways, parts, strict=True):
                try:
                    if empty or all(find(fields) != "" for find in finds):
                        return way(fields)
                except BadRow as bad:
                    if bad.reason not in ABSENT:
                        raise
        return ways[-1](fields)

    return first


def roots(spec: str) -> set[str]:
    """Names the columns that a spec looks into."""
    found = set()
    for part in spec.split("||"):
        paths = [f for _, f, _, _ in string.Formatter().parse(part) if f]
        for path in paths if "{" in part else [WORD.sub("", part.strip())]:
            found |= {path, re.split(r"[.\[]", path)[0]}
    return found


def _one(spec: str, said: str, decode: Decode) -> Getter:
    return (
        _template(spec, said, decode) if "{" in spec else _parts(spec, said, decode)[0]
    )


def _parts(spec: str, said: str, decode: Decode) -> list[Getter]:
    """Returns the getters of a spec's columns: one, or those of its template."""
    if "{" in spec:
        named = [(f, n or "") for _, f, n, _ in string.Formatter().parse(spec) if f]
    else:
        match = WORD.search(spec.strip())
        path = spec.strip()[: match.start()] if match else spec.strip()
        named = [(path, match[1] if match else "")]
    return [_with(path, name, said, decode) for path, name in named]


def _with(path: str, name: str, said: str, decode: Decode) -> Getter:
    """Returns the getter of a path with a function's name behind it."""
    if not path:
        raise ValueError("a column's name is missing")
    if not name:
        return lambda fields: _at(fields, path, said)
    if name not in (known := [*OF_TEXTS, *OF_LISTS, "ids"]):
        raise ValueError(f"function {name!r} is not known; known: {', '.join(known)}")

    def value(fields: Fields) -> Any:
        found, what = _at(fields, path, said), f"{said}: {path!r}"
        if name in OF_TEXTS:
            return _changed_texts(OF_TEXTS[name], found, what)
        if name in OF_LISTS:
            return _of_numbers(OF_LISTS[name], found, what)
        return _decoded(decode, found, what)

    return value


def _template(spec: str, said: str, decode: Decode) -> Getter:
    text = spec.replace("\\n", "\n").replace("\\t", "\t")
    parts = [
        (before, _with(path, name or "", said, decode) if path is not None else None)
        for before, path, name, _ in string.Formatter().parse(text)
    ]

    def value(fields: Fields) -> str:
        made = ""
        for before, part in parts:
            found = "" if part is None else part(fields)
            if not isinstance(found, str | int | float):
                kind = type(found).__name__
                raise BadRow("wrong type", f"{said}: {kind} has no place in a text")
            made += before + str(found)
        return made

    return value


def _at(fields: Fields, path: str, said: str) -> Any:
    if path in fields:
        value = fields[path]
        if value is None:
            raise BadRow("null", f"{said}: column {path!r} is null")
        return value
    return _walk(fields, STEP.findall(path), path, said)


def _walk(value: Any, steps: list[tuple[str, str]], path: str, said: str) -> Any:
    for at, (name, place) in enumerate(steps):
        if name:
            if not isinstance(value, dict) or name not in value:
                raise BadRow("missing column", _missing(value, name, said))
            value = value[name]
        elif not isinstance(value, list):
            kind = type(value).__name__
            raise BadRow("wrong type", f"{said}: {path!r} is {kind}; a list is due")
        elif not place:
            return [_walk(each, steps[at + 1 :], path, said) for each in value]
        elif len(place) > DIGITS or int(place) >= len(value):
            detail = f"{said}: {path!r} is beyond a list of {len(value)}"
            raise BadRow("missing column", detail)
        else:
            value = value[int(place)]
    if value is None:
        raise BadRow("null", f"{said}: {path!r} is null")
    return value


def _missing(value: Any, name: str, said: str) -> str:
    if not isinstance(value, dict):
        return f"{said}: {type(value).__name__} has no key {name!r}"
    columns = [str(column)[:40] for column in value]
    near = difflib.get_close_matches(name, columns, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"{said}: column {name!r} is missing{hint} found: {', '.join(columns[:12])}"


def _changed_texts(change: Callable[[str], str], value: Any, said: str) -> Any:
    if isinstance(value, list):
        return [_changed_texts(change, each, said) for each in value]
    if not isinstance(value, str):
        detail = f"{said} is {type(value).__name__}; a string is due"
        raise BadRow("wrong type", detail)
    return change(value)


def _of_numbers(pick: Callable[[Any], Any], value: Any, said: str) -> float:
    if not isinstance(value, list) or not value:
        raise BadRow("wrong type", f"{said}: a list of numbers is due")
    return pick(number(each, said) for each in value)


def _decoded(decode: Decode, value: Any, said: str) -> str:
    ids = value if isinstance(value, list) else [None]
    if not all(type(each) is int and 0 <= each < GPT2_IDS for each in ids):
        raise BadRow("wrong type", f"{said}: ids of GPT-2, 0…{GPT2_IDS - 1}, are due")
    return decode(value)


def no_ids(ids: list[int]) -> str:
    """Stands where no tokenizer is at hand: there are no ids to decode."""
    raise BadRow("wrong type", f"{len(ids)} token ids, but no tokenizer to decode them")


def number(value: Any, said: str) -> float:
    """Reads a finite number, or what stands for one in a CSV file."""
    value = value.meant() if isinstance(value, Cell) else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        kind = type(value).__name__
        raise BadRow("wrong type", f"{said}: a number is due, not {kind}")
    if not abs(value) <= LARGEST:
        raise BadRow("not finite", f"{said}: a number is beyond all bounds, or none")
    return value


OF_TEXTS: dict[str, Callable[[str], str]] = {
    "spaced": lambda text: text if text.startswith(" ") else " " + text,
    "rstrip": str.rstrip,
    "fold": lambda text: text.replace("\n\n", "\n"),
    "breaks": lambda text: text.replace("<br />", " "),
}
OF_LISTS: dict[str, Callable[[Any], float]] = {"max": max, "min": min}
