"""Reads the columns of a row, or says what is wrong with them.

This room knows what a text, a chat, a number, a label or an order looks like; which of
them a row must have is said in `kinds.py`, what becomes of bad rows in `records.py`.
Nothing is repaired or guessed.
"""

import difflib
import json
import math
from typing import Any

import numpy as np

from dpo_jax.data.sources.files import BadRow, Cell, Fields
from dpo_jax.data.sources.hh import ASSISTANT

Message = dict[str, Any]
Text = str | list[Message]

KNOWN = {  # columns that mean something, and so are no misspelling of another
    *("prompt", "chosen", "rejected", "score_chosen", "score_rejected", "margin"),
    *("completion", "label", "responses", "ranking", "system", "tools"),
    *("messages", "text", "prompt_ids", "chosen_ids", "rejected_ids"),
    *("completion_ids", "ended", "chosen_ended", "rejected_ended"),
}
REPEATED = "if the chats hold the prompt as well, set data.columns.prompt=implicit"
LARGEST = float(np.finfo(np.float32).max)


def value_of(fields: Fields, name: str) -> Any:
    """Returns a column's value; BadRow if it is missing or null."""
    if name not in fields:
        raise BadRow("missing column", _missing(fields, name))
    if fields[name] is None:
        raise BadRow("null", f"column {name!r} is null")
    return fields[name]


def _meant(fields: Fields, name: str) -> Any:
    """Returns a column's value where no text is due: a cell of CSV is what it says."""
    value = value_of(fields, name)
    return value_of({name: value.meant()}, name) if isinstance(value, Cell) else value


def texts(fields: Fields, *names: str) -> list[Text]:
    """Reads columns that must all be strings or all be chats."""
    named = {name: text(name, value_of(fields, name)) for name in names}
    check_same_type(named)
    return list(named.values())


def text(name: str, value: Any) -> Text:
    """Checks a string or a list of messages."""
    if isinstance(value, str):
        return _check_unicode(name, str(value))
    if isinstance(value, list):
        return [_message(f"{name}[{i}]", message) for i, message in enumerate(value)]
    raise _wrong_type(name, value, "a string or a list of messages")


def text_list(fields: Fields, name: str) -> dict[str, Text]:
    """Reads a column that lists texts, each under a name such as `responses[0]`."""
    values = _list(fields, name, "strings or of chats")
    named = {}
    for i, value in enumerate(values):
        if value is None:
            raise BadRow("null", f"'{name}[{i}]' is null")
        named[f"{name}[{i}]"] = text(f"{name}[{i}]", value)
    return named


def permutation(fields: Fields, name: str, *, of: str, size: int) -> list[int]:
    """Reads a column that names each place of another column `of` exactly once."""
    values = _list(fields, name, "whole numbers")
    wrong = [v for v in values if isinstance(v, bool) or not isinstance(v, int)]
    if wrong:
        raise BadRow("wrong type", f"column {name!r} holds {_type(wrong[0])}, no place")
    if sorted(values) != list(range(size)):
        rule = f"names each of 0…{size - 1} (places in {of!r}, best first) once"
        raise BadRow("wrong ranking", f"column {name!r} is {values}; a ranking {rule}")
    return values


def number(fields: Fields, name: str) -> float:
    """Reads a column that holds a number which float32 can hold."""
    value = _meant(fields, name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(name, value, "a number")
    if not abs(value) <= LARGEST:
        no_number = isinstance(value, float) and not math.isfinite(value)
        far = value if no_number else "beyond what float32 can hold"
        raise BadRow("not finite", f"column {name!r} is {far}")
    return float(value)


def numbers(fields: Fields, name: str, *, of: str, size: int) -> list[float]:
    """Reads a column of one number for each place of another column `of`, or none."""
    if name not in fields:
        return []
    values = _list(fields, name, "numbers")
    if len(values) != size:
        detail = f"column {name!r} holds {len(values)} numbers for {size} {of}"
        raise BadRow("wrong number of scores", detail)
    named = {f"{name}[{i}]": value for i, value in enumerate(values)}
    return [number(named, place) for place in named]


def label(fields: Fields, name: str) -> int:
    """Reads true or 1 as desirable (1), false or 0 as undesirable (−1)."""
    value = _meant(fields, name)
    if not isinstance(value, int):
        raise _wrong_type(name, value, "true or false")
    if value not in (0, 1):
        detail = f"column {name!r} is {value}; true, false, 1 or 0 is due"
        raise BadRow("wrong label", detail)
    return 1 if value else -1


def ids(fields: Fields, name: str) -> list[int]:
    """Reads a column of token ids, at least one."""
    values = _list(fields, name, "token ids")
    if wrong := [v for v in values if isinstance(v, bool) or not isinstance(v, int)]:
        raise BadRow("wrong type", f"column {name!r} holds {_type(wrong[0])}, no id")
    if not values or min(values) < 0:
        state = f"holds {min(values)}; ids are ≥ 0" if values else "is empty"
        raise BadRow("wrong ids" if values else "empty", f"column {name!r} {state}")
    return values


def ended(fields: Fields, name: str) -> bool:
    """Reads whether a response ended by itself; where nothing is said, it did."""
    return fields.get(name) is None or label(fields, name) == 1


def check_same_type(named: dict[str, Text]) -> None:
    """Refuses strings beside chats."""
    if len({type(value) for value in named.values()}) > 1:
        said = ", ".join(f"{name!r} is {_type(v)}" for name, v in named.items())
        hint = f"; {REPEATED}" * isinstance(named.get("prompt"), str)
        what = "all must be strings or all messages"
        raise BadRow("wrong type", f"{what}, but {said}{hint}")


def check_not_empty(name: str, value: Text) -> None:
    """Refuses a text without a visible character."""
    chat = [] if isinstance(value, str) else value
    whole = value if isinstance(value, str) else "".join(m["content"] for m in value)
    if not whole.strip() and not any(m.get("tool_calls") for m in chat):
        raise BadRow("empty", f"column {name!r} is empty")


def check_role(name: str, chat: Text) -> None:
    """A chat's response starts where the template asks the assistant to speak."""
    if isinstance(chat, list) and chat and chat[0]["role"] != "assistant":
        raise BadRow(
            "wrong role",
            f"column {name!r} starts with role {chat[0]['role']!r}, not "
            f"'assistant'; {REPEATED}",
        )


def check_last(name: str, chat: Text) -> None:
    """A chat that is to be learned from ends with what the assistant says."""
    if isinstance(chat, list) and chat[-1]["role"] != "assistant":
        raise BadRow("wrong role", f"column {name!r} does not end with 'assistant'")


def system(fields: Fields) -> str:
    """Reads the column `system`; '' where a row has none."""
    value = fields.get("system")
    if value is not None and not isinstance(value, str):
        found = _type(value)
        raise BadRow("wrong type", f"column 'system' is {found}; a string is due")
    return _check_unicode("system", value or "")


def tools(fields: Fields) -> list[dict[str, Any]]:
    """Reads the column `tools`, a list or its JSON; [] where a row has none.

    Keys that are null are left out of a list: tables put them where another row has
    a value.
    """
    value = fields.get("tools")
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            detail = f"column 'tools' is a string, but no JSON: {error}"
            raise BadRow("malformed", detail) from error
    else:
        value = _without_nulls(value)
    found = value or []
    if not isinstance(found, list) or not all(isinstance(t, dict) for t in found):
        detail = f"column 'tools' is {_type(value)}; a list of objects, or its JSON, is"
        raise BadRow("wrong type", f"{detail} due")
    return found


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value


def _list(fields: Fields, name: str, of: str) -> list[Any]:
    value = _meant(fields, name)
    if not isinstance(value, list):
        raise _wrong_type(name, value, f"a list of {of}")
    return value


def _missing(fields: Fields, name: str) -> str:
    columns = [str(column)[:40] for column in fields]
    spare = [column for column in columns if column not in KNOWN]
    near = difflib.get_close_matches(name, spare, n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    if name == "prompt" and ASSISTANT in str(fields.get("chosen")):
        hint = "; set data.format='hh' for transcripts;"
    return f"column {name!r} is missing{hint} found: {', '.join(columns[:12])}"


def _message(name: str, message: Any) -> Message:
    """Checks a chat message; keys that are null are left out.

    A message that calls tools may say nothing: its content is then ''.
    """
    if not isinstance(message, dict):
        raise BadRow("wrong type", f"{name} is {_type(message)}; a message is due")
    if message.get("tool_calls") and message.get("content") is None:
        message = message | {"content": ""}
    for key in ("role", "content"):
        if message.get(key) is None:
            state = "null" if key in message else "missing"
            reason = "null" if key in message else "missing column"
            raise BadRow(reason, f"key {key!r} of {name} is {state}")
        if not isinstance(message[key], str):
            kind = _type(message[key])
            raise BadRow("wrong type", f"key {key!r} of {name} is {kind}, no string")
        _check_unicode(name, message[key])
    return _without_nulls(message)


def _check_unicode(name: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        detail = f"{name!r} holds half a character (surrogate) at {error.start + 1}"
        raise BadRow("invalid UTF-8", detail) from error
    return text


def _wrong_type(name: str, value: Any, due: str) -> BadRow:
    return BadRow("wrong type", f"column {name!r} is {_type(value)}; {due} is due")


def _type(value: Any) -> str:
    return type(value).__name__
