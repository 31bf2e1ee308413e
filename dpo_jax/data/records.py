"""Checks rows of columns and brings them into one form, or says what is wrong.

Between the sources, which know files, and the tokenizer, which knows ids: this room
knows column names, chats and transcripts. Nothing is repaired or guessed here; a row
is kept as it is or refused with its place and reason.
"""

import difflib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from dpo_jax.data.sources.files import BadRow, Fields
from dpo_jax.data.sources.hh import ASSISTANT, split_transcripts
from dpo_jax.errors import ConfigError, DataError, unknown

Message = dict[str, Any]
Text = str | list[Message]

SHOWN_ROWS = 3  # bad rows named in one message
SHOWN_CHARACTERS = 220  # of each of them


class RawRow(NamedTuple):
    """A checked row of text.

    Attributes:
      where: `file:line` or `source[index]`.
      prompt: a string, or chat messages with `role` and `content`.
      responses: of the same type; (chosen, rejected) for a pair, (completion,) for
        SFT.
      index: position of the row in its source, bad rows counted too.
    """

    where: str
    prompt: Text
    responses: tuple[Text, ...]
    index: int


class Counts(NamedTuple):
    """How many rows were read, kept, and dropped for which reason."""

    read: int
    kept: int
    dropped: dict[str, int]

    def render(self) -> str:
        """Returns `dropped 9 (3 empty, 3 identical, 3 mismatched)`."""
        return f"dropped {self.read - self.kept}{_reasons(self.dropped)}"

    def as_dict(self) -> dict[str, Any]:
        """Returns what data.json holds."""
        return {"read": self.read, "kept": self.kept, "dropped": dict(self.dropped)}


def validate(
    rows: Iterable[tuple[str, Fields | BadRow]],
    *,
    kind: str,
    format: str,
    on_bad_row: str,
) -> tuple[list[RawRow], Counts]:
    """Checks every row and keeps the good ones.

    Args:
      rows: (where, columns) as the sources yield them.
      kind: `pairs` keeps (chosen, rejected); `completions` keeps (completion,), and of
        preference rows the chosen response (preferred-FT): such rows must pass as
        pairs, so that both objectives see the same rows.
      format: '' for `prompt` with `chosen` and `rejected` (or `completion`), strings
        or chats; `hh` for transcripts.
      on_bad_row: `error` or `drop`.

    Returns:
      The good rows in order, and the counts.

    Raises:
      DataError: on bad rows under `error`; if no row is left.
      ConfigError: if an option is not known.
    """
    _check_options(kind=kind, format=format, on_bad_row=on_bad_row)
    kept: list[RawRow] = []
    faults: list[tuple[str, BadRow]] = []
    read = 0
    for index, (where, fields) in enumerate(rows):
        read += 1
        try:
            prompt, responses = _check(fields, KINDS[kind], FORMATS[format])
        except BadRow as bad:
            faults.append((where, bad))
        else:
            kept.append(RawRow(where, prompt, responses, index))
    dropped = settle(faults, read=read, on_bad_row=on_bad_row)
    return kept, Counts(read, len(kept), dropped)


def settle(
    faults: Sequence[tuple[str, BadRow]], *, read: int, on_bad_row: str
) -> dict[str, int]:
    """Counts bad rows by reason, or refuses them all in one message.

    Args:
      faults: (where, fault) in order.
      read: rows that were looked at.
      on_bad_row: `error` or `drop`.

    Returns:
      Number of rows by reason, reasons sorted.

    Raises:
      DataError: on bad rows under `error`; if every row is bad, or there is none.
    """
    counted = Counter(bad.reason for _, bad in faults)
    dropped = dict(sorted(counted.items()))
    if read == 0:
        raise DataError("the data source has no rows")
    if not faults or (on_bad_row == "drop" and len(faults) < read):
        return dropped
    shown = [f"{w}: {bad.detail}"[:SHOWN_CHARACTERS] for w, bad in faults[:SHOWN_ROWS]]
    if len(faults) > len(shown):
        shown.append(f"and {len(faults) - len(shown)} more")
    if len(faults) == read:
        head, tail = "no row can be used: ", ""
    else:
        head, tail = "", "; mend them or set data.on_bad_row='drop'"
    total = f"bad rows: {len(faults)} of {read}{_reasons(dropped)}: "
    raise DataError(head + total + " · ".join(shown) + tail)


def _reasons(dropped: dict[str, int]) -> str:
    parts = [f"{number} {reason}" for reason, number in sorted(dropped.items())]
    return f" ({', '.join(parts)})" if parts else ""


def _check_options(*, kind: str, format: str, on_bad_row: str) -> None:
    assert kind in KINDS, kind
    if format not in FORMATS:
        raise ConfigError(unknown("data.format", format, map(repr, FORMATS)))
    if on_bad_row not in ("error", "drop"):
        raise ConfigError(unknown("data.on_bad_row", on_bad_row, ("error", "drop")))


def _check(
    fields: Fields | BadRow,
    parts: Callable[[Fields], tuple[Text, tuple[Text, ...]]],
    reformat: Callable[[Fields], Fields],
) -> tuple[Text, tuple[Text, ...]]:
    if isinstance(fields, BadRow):
        raise fields
    for name, value in fields.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise BadRow("not finite", f"column {name!r} is {value}")
    return parts(reformat(fields))


def _pair(fields: Fields) -> tuple[Text, tuple[Text, ...]]:
    """Takes a prompt, a chosen and a rejected response out of a row."""
    if "prompt" not in fields and _are_chats(fields):
        prompt, chosen, rejected = _shared_beginning(fields)
    else:
        chosen, rejected, prompt = _columns(fields, "chosen", "rejected", "prompt")
        _check_roles(chosen=chosen, rejected=rejected)
    _check_not_empty("prompt", prompt)
    _check_not_empty("chosen", chosen)
    _check_not_empty("rejected", rejected)
    if chosen == rejected:
        raise BadRow("identical", "columns 'chosen' and 'rejected' are identical")
    return prompt, (chosen, rejected)


def _completion(fields: Fields) -> tuple[Text, tuple[Text, ...]]:
    """Takes a prompt and one response; an empty prompt string is plain text."""
    if "completion" not in fields and "chosen" in fields:
        prompt, responses = _pair(fields)
        return prompt, responses[:1]
    completion, prompt = _columns(fields, "completion", "prompt")
    _check_roles(completion=completion)
    if not isinstance(prompt, str):
        _check_not_empty("prompt", prompt)
    _check_not_empty("completion", completion)
    return prompt, (completion,)


def _columns(fields: Fields, *names: str) -> list[Text]:
    """Reads columns that must all be strings or all be chats."""
    texts = [_column(fields, name) for name in names]
    if len({type(text) for text in texts}) > 1:
        pairs = zip(names, texts, strict=True)
        found = ", ".join(f"{name!r} is {_type(text)}" for name, text in pairs)
        raise BadRow("wrong type", f"all must be strings or all messages, but {found}")
    return texts


def _column(fields: Fields, name: str) -> Text:
    if name not in fields:
        raise BadRow("missing column", _missing(fields, name))
    value = fields[name]
    if value is None:
        raise BadRow("null", f"column {name!r} is null")
    if isinstance(value, str):
        return _check_unicode(name, value)
    if isinstance(value, list):
        return [_message(f"{name}[{i}]", message) for i, message in enumerate(value)]
    raise BadRow(
        "wrong type",
        f"column {name!r} is {_type(value)}; a string or a list of messages is due",
    )


def _missing(fields: Fields, name: str) -> str:
    columns = [str(column)[:40] for column in fields]
    spare = [c for c in columns if c not in ("prompt", "chosen", "rejected")]
    near = difflib.get_close_matches(name, spare, n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    if name == "prompt" and ASSISTANT in str(fields.get("chosen")):
        hint = "; set data.format='hh' for transcripts;"
    return f"column {name!r} is missing{hint} found: {', '.join(columns[:12])}"


def _message(name: str, message: Any) -> Message:
    """Checks a chat message; keys that are null are left out."""
    if not isinstance(message, dict):
        raise BadRow("wrong type", f"{name} is {_type(message)}; a message is due")
    for key in ("role", "content"):
        if message.get(key) is None:
            state = "null" if key in message else "missing"
            reason = "null" if key in message else "missing column"
            raise BadRow(reason, f"key {key!r} of {name} is {state}")
        if not isinstance(message[key], str):
            found = _type(message[key])
            raise BadRow("wrong type", f"key {key!r} of {name} is {found}, no string")
        _check_unicode(name, message[key])
    return {key: value for key, value in message.items() if value is not None}


def _check_unicode(name: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        detail = f"{name!r} holds half a character (surrogate) at {error.start + 1}"
        raise BadRow("invalid UTF-8", detail) from error
    return text


def _check_not_empty(name: str, text: Text) -> None:
    whole = text if isinstance(text, str) else "".join(m["content"] for m in text)
    if not whole.strip():
        raise BadRow("empty", f"column {name!r} is empty")


def _check_roles(**responses: Text) -> None:
    """A chat's response starts where the template asks the assistant to speak."""
    for name, chat in responses.items():
        if isinstance(chat, list) and chat and chat[0]["role"] != "assistant":
            raise BadRow(
                "wrong role",
                f"column {name!r} starts with role {chat[0]['role']!r}, not "
                "'assistant'; whole chats are given without column 'prompt'",
            )


def _are_chats(fields: Fields) -> bool:
    return isinstance(fields.get("chosen"), list)


def _shared_beginning(fields: Fields) -> tuple[Text, Text, Text]:
    """Splits two whole chats before their last assistant turn; both must agree."""
    chosen, rejected = _columns(fields, "chosen", "rejected")
    prompts, responses = [], []
    for name, chat in (("chosen", chosen), ("rejected", rejected)):
        if not chat:
            raise BadRow("empty", f"column {name!r} is empty")
        if chat[-1]["role"] != "assistant":  # pyright: ignore
            raise BadRow("wrong role", f"column {name!r} does not end with 'assistant'")
        prompts.append(chat[:-1])
        responses.append(chat[-1:])
    if prompts[0] != prompts[1]:
        raise BadRow(
            "mismatched", "'chosen' and 'rejected' differ before their last message"
        )
    return prompts[0], responses[0], responses[1]


def _type(value: Any) -> str:
    return type(value).__name__


KINDS: dict[str, Callable[[Fields], tuple[Text, tuple[Text, ...]]]] = {
    "pairs": _pair,
    "completions": _completion,
}
FORMATS: dict[str, Callable[[Fields], Fields]] = {
    "": dict,
    "hh": split_transcripts,
}
