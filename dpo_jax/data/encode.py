"""From checked text to ids: strings apart or joined, chats by their template.

BOS stands where the tokenizer or the chat template puts it; EOS ends every string
response once; a chat ends as its template ends. Knows no records and cuts nothing.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

from dpo_jax.data import turns
from dpo_jax.data.kinds import RawRow
from dpo_jax.data.sources.files import BadRow
from dpo_jax.data.templates import check_template, render, template_text
from dpo_jax.errors import DataError, ModelError, UserError

CHUNK = 4096  # texts handed to the tokenizer at once

Ids = list[int]


class Encoded(NamedTuple):
    """A row's ids.

    Attributes:
      prompt: what is not scored, at least the first token.
      responses: each behind the prompt.
      scored: which tokens of each response count; () = all.
    """

    prompt: Ids
    responses: tuple[Ids, ...]
    scored: tuple[list[bool], ...] = ()


def encode(
    row: RawRow,
    tokenizer: Any,
    *,
    join: str,
    chat_template: str | None,
    now: str = "",
) -> Encoded:
    """Encodes one row, uncut; arguments and errors are those of `encode_all`."""
    (encoded,) = encode_all(
        [row], tokenizer, join=join, chat_template=chat_template, now=now
    )
    if isinstance(encoded, BadRow):
        raise DataError(f"{row.where}: {encoded.detail}")
    return encoded


def encode_all(
    rows: Sequence[RawRow],
    tokenizer: Any,
    *,
    join: str,
    chat_template: str | None,
    now: str = "",
) -> list[Encoded | BadRow]:
    """Encodes strings and chats in bulk and puts them back into the rows' order.

    Args:
      rows: checked.
      tokenizer: as `tokenize.load_tokenizer` returns.
      join: see `tokenize.tokenize`, as for what follows.
      chat_template: likewise.
      now: likewise.
    """
    chats = [row for row in rows if _form(row) == "chat"]
    strings = [row for row in rows if _form(row) == "string"]
    if strings:
        check_eos(tokenizer, tokenizer.name_or_path)
    ways = {
        "chat": iter(_encode_chats(chats, tokenizer, chat_template, now)),
        "string": iter(JOINS[join](strings, tokenizer)),
        "ids": iter(_take_ids([row for row in rows if row.ids], tokenizer)),
    }
    encoded = (next(ways[_form(row)]) for row in rows)
    return [
        _check_tokens(_opened(each) if row.scored == "all" else each)
        for row, each in zip(rows, encoded, strict=True)
    ]


def _form(row: RawRow) -> str:
    """Says what a row is made of."""
    if row.ids:
        return "ids"
    return "string" if isinstance(row.prompt, str) else "chat"


def _take_ids(rows: Sequence[RawRow], tokenizer: Any) -> Iterator[Encoded | BadRow]:
    """Takes ids as they are: what was sampled is what is trained on."""
    most = max(tokenizer.get_vocab().values()) if rows else 0
    for row in rows:
        largest = max(map(max, row.ids))
        if largest > most:
            detail = f"holds id {largest}, but the tokenizer's largest is {most}"
            yield BadRow("wrong ids", detail)
        else:
            yield Encoded(row.ids[0], row.ids[1:])


def _opened(encoded: Encoded | BadRow) -> Encoded | BadRow:
    """Leaves the first token alone to the prompt: nothing predicts it."""
    if isinstance(encoded, BadRow):
        return encoded
    (response,) = encoded.responses
    whole = [*encoded.prompt, *response]
    return Encoded(whole[:1], (whole[1:],))


def _check_tokens(encoded: Encoded | BadRow) -> Encoded | BadRow:
    if isinstance(encoded, BadRow):
        return encoded
    if not encoded.prompt:
        detail = "the prompt has no tokens, so nothing predicts the first of a response"
        return BadRow("no prompt tokens", detail)
    if not all(encoded.responses):
        return BadRow("no response tokens", "a response has no tokens")
    return encoded


def _encode_separately(rows: Sequence[RawRow], tokenizer: Any) -> Iterator[Encoded]:
    prompts = _ids(tokenizer, [row.prompt for row in rows], special=True)
    texts = [text for row in rows for text in row.responses]
    ids = iter(_ids(tokenizer, texts, special=False))
    for row, prompt in zip(rows, prompts, strict=True):
        responses = tuple(_endings(row, ids, tokenizer))
        yield Encoded(_without_end(prompt, tokenizer), responses)


def _encode_jointly(rows: Sequence[RawRow], tokenizer: Any) -> Iterator[Encoded]:
    texts = [_whole_texts(row) for row in rows]
    ids = iter(_ids(tokenizer, list(chain.from_iterable(texts)), special=True))
    for row in rows:
        prompt = _without_end(next(ids), tokenizer)
        yield _split(prompt, *_endings(row, ids, tokenizer))


def _whole_texts(row: RawRow) -> list[Any]:
    """Returns the prompt, and the prompt with each response."""
    prompt: Any = row.prompt
    return [prompt, *(prompt + response for response in row.responses)]


def _encode_chats(
    rows: Sequence[RawRow], tokenizer: Any, chat_template: str | None, now: str
) -> Iterator[Encoded | BadRow]:
    """Renders chats with the template, whose text holds all special tokens."""
    if rows and not chat_template:
        with_tools = all(row.tools for row in rows)
        check_template(tokenizer, rows[0].where, with_tools=with_tools)
    find = partial(template_text, tokenizer, chat_template, now)
    rendered = [_tried(RENDERED[row.scored], row, tokenizer, find) for row in rows]
    texts = [row for row in rendered if isinstance(row, list)]
    encoded = iter(encode_alike(texts, tokenizer))
    for row in rendered:
        yield _split(*next(encoded)) if isinstance(row, list) else row


def encode_alike(groups: Sequence[list[str]], tokenizer: Any) -> list[list[Ids]]:
    """Encodes texts that begin alike, what they share once.

    A text is cut at a special token, which stands on both sides of the cut: a tokenizer
    takes these tokens out first and treats what lies between them piece by piece, so
    the ids are those of the whole text. Where a side does not come out so, and where a
    tokenizer is none of the fast ones, each text is encoded whole.

    Args:
      groups: texts; those of a group begin alike.
      tokenizer: as `load_tokenizer` returns.

    Returns:
      The ids of each text of each group, without tokens that a template adds.
    """
    marks = _marks(tokenizer)
    cuts = [_last_mark(os.path.commonprefix(texts), marks) for texts in groups]
    pieces = [
        texts if cut is None else [texts[0][: cut[1]], *(t[cut[0] :] for t in texts)]
        for texts, cut in zip(groups, cuts, strict=True)
    ]
    ids = iter(_ids(tokenizer, list(chain.from_iterable(pieces)), special=False))
    encoded = []
    for texts, cut, parts in zip(groups, cuts, pieces, strict=True):
        ids_of_texts = [next(ids) for _ in parts]
        if cut is not None:
            mark, (head, *tails) = cut[2], ids_of_texts
            whole = all(part[:1] == [mark] for part in tails) and head[-1:] == [mark]
            ids_of_texts = [head + part[1:] for part in tails] if whole else []
        encoded.append(ids_of_texts or _ids(tokenizer, texts, special=False))
    return encoded


def _marks(tokenizer: Any) -> dict[str, int]:
    """Maps the special tokens that a text may be cut at to their ids.

    They are taken out of the raw text, whatever stands beside them, and no other token
    holds one of them: so nothing that begins before a cut ends behind it.
    """
    added = tokenizer.added_tokens_decoder if tokenizer.is_fast else {}
    texts = [token.content for token in added.values()]
    return {
        token.content: number
        for number, token in added.items()
        if token.special
        and not (token.normalized or token.single_word)
        and sum(token.content in text for text in texts) == 1
    }


def _last_mark(text: str, marks: dict[str, int]) -> tuple[int, int, int] | None:
    """Finds the last mark of a text: where it begins and ends, and its id."""
    begins, mark = max(((text.rfind(m), m) for m in marks), default=(-1, ""))
    return None if begins < 0 else (begins, begins + len(mark), marks[mark])


def _tried(
    make: Callable[..., Encoded | list[str]],
    row: RawRow,
    tokenizer: Any,
    find: Callable[..., str],
) -> Encoded | list[str] | BadRow:
    """Returns what a template makes of a row, or why it makes nothing of it."""
    import jinja2

    try:
        template = find(row.tools)
        return make(row, tokenizer, template, partial(render, tokenizer, template))
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(f"the chat template cannot be read: {error}") from error
    except UserError as error:  # of `bounds`: the next row would take as much
        raise type(error)(f"{row.where}: {error}") from error
    except BadRow as bad:
        return bad
    except Exception as error:  # whatever a template may raise
        return _refused(f"refuses it: {error}")


def _refused(fault: str) -> BadRow:
    return BadRow("refused by template", f"the chat template {fault}")


def _render_answered(
    row: RawRow, tokenizer: Any, template: str, show: turns.Show
) -> list[str]:
    """Renders the prompt, and the prompt with each response."""
    del tokenizer, template
    prompt, *wholes = _whole_texts(row)
    shown = show(prompt, answer=True, tools=row.tools)
    texts = [shown, *(show(whole, tools=row.tools) for whole in wholes)]
    fault = _lost(row, shown, partial(show, prompt, answer=True))
    if fault := fault or _moved(row, texts, show):
        raise _refused(fault)
    return texts


def _encode_turns(
    row: RawRow, tokenizer: Any, template: str, show: turns.Show
) -> Encoded:
    """Encodes chats of which the assistant's turns behind the prompt count."""
    _, *wholes = _whole_texts(row)
    text = show(wholes[0], tools=row.tools)
    if fault := _lost(row, text, partial(show, wholes[0])):
        raise _refused(fault)
    show = partial(show, tools=row.tools)
    ids, masks = zip(
        *(
            turns.masked(
                whole, len(row.prompt), tokenizer, template, show, tools=row.tools
            )
            for whole in wholes
        ),
        strict=True,
    )
    if not all(map(any, masks)):
        raise _refused("marks nothing of an answer with {% generation %}")
    at = min(_alike(*ids), *(mask.index(True) for mask in masks))
    scored = tuple(mask[at:] for mask in masks)
    return Encoded(ids[0][:at], tuple(own[at:] for own in ids), scored)


def _render_whole(
    row: RawRow, tokenizer: Any, template: str, show: turns.Show
) -> list[str]:
    """Renders a chat of which everything counts."""
    del tokenizer, template
    _, whole = _whole_texts(row)
    text = show(whole, tools=row.tools)
    if fault := _lost(row, text, partial(show, whole)):
        raise _refused(fault)
    return [text, text]


def _lost(row: RawRow, shown: str, without_tools: Callable[[], str]) -> str:
    """Says what the template leaves out of a prompt; '' if nothing."""
    prompt: Any = row.prompt
    for message in prompt:
        if message["role"] == "system" and message["content"].strip() not in shown:
            return "leaves out the system message"
    if row.tools and shown == without_tools():
        return "leaves out the column 'tools'"
    return ""


def _moved(row: RawRow, texts: Sequence[str], show: Callable[..., str]) -> str:
    """Says whether an answer changes how its prompt is rendered; '' if not.

    Only what asks the assistant to speak (`<think>` and the like) may differ: all else
    that is not in front of the answer would be scored as a part of it.
    """
    shown, *wholes = texts
    if all(whole.startswith(shown) for whole in wholes):
        return ""
    prompt: Any = row.prompt
    unasked = show(prompt, tools=row.tools)
    told = os.path.commonprefix([shown, unasked])
    last = prompt[-1]["content"].strip()
    if last in told and all(whole.startswith(told) for whole in wholes):
        return ""
    return (
        "renders the prompt otherwise once it is answered, so that a part of the "
        "prompt would be scored; set data.chat_template to one that does not"
    )


def _split(prompt: Ids, *wholes: Ids) -> Encoded:
    """Cuts whole sequences at what they and the prompt all begin with."""
    end = _alike(prompt, *wholes)
    return Encoded(prompt[:end], tuple(whole[end:] for whole in wholes))


def _alike(*texts: Ids) -> int:
    """Counts the ids that all begin with."""
    end = 0
    for ids in zip(*texts, strict=False):
        if len(set(ids)) > 1:
            break
        end += 1
    return end


def _endings(row: RawRow, ids: Iterator[Ids], tokenizer: Any) -> list[Ids]:
    """Takes the next ids of each response, with EOS behind those that ended."""
    ended = row.ended or (True,) * len(row.responses)
    return [_ended(next(ids), tokenizer) if end else next(ids) for end in ended]


def _ended(ids: Ids, tokenizer: Any) -> Ids:
    end = tokenizer.eos_token_id
    return ids if ids and ids[-1] == end else [*ids, end]


def _without_end(ids: Ids, tokenizer: Any) -> Ids:
    """Takes off an EOS that the tokenizer put; a lone BOS that equals it stays."""
    end = tokenizer.eos_token_id
    lone = len(ids) == 1 and end == tokenizer.bos_token_id
    return ids[:-1] if ids and ids[-1] == end and not lone else ids


def _ids(tokenizer: Any, texts: Sequence[Any], *, special: bool) -> list[Ids]:
    encoded: list[Ids] = []
    for start in range(0, len(texts), CHUNK):
        try:
            encoded += tokenizer(
                list(texts[start : start + CHUNK]),
                add_special_tokens=special,
                padding=False,
                truncation=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )["input_ids"]
        except Exception as error:  # another library's, e.g. a word it does not know
            raise DataError(f"the tokenizer cannot encode the data: {error}") from error
    return encoded


def check_eos(tokenizer: Any, path: str) -> None:
    """Raises ModelError, if strings have no EOS to end with."""
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {path!r} has no EOS token to end responses with; name "
            "one as eos_token in its tokenizer_config.json"
        )


RENDERED = {  # which tokens count -> what a template makes of such a chat
    "completion": _render_answered,
    "assistant": _encode_turns,
    "all": _render_whole,
}
JOINS: dict[str, Callable[[Sequence[RawRow], Any], Iterator[Encoded]]] = {
    "separate": _encode_separately,
    "joint": _encode_jointly,
}
