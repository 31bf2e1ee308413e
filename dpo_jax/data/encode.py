"""From checked text to ids: strings apart or joined, chats by their template.

BOS stands where the tokenizer or the chat template puts it; EOS ends every string
response once; a chat ends as its template ends. Knows no records and cuts nothing.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

from dpo_jax.data.kinds import RawRow
from dpo_jax.data.sources.files import BadRow
from dpo_jax.errors import DataError, ModelError

CHUNK = 4096  # texts handed to the tokenizer at once

Ids = list[int]
Encoded = tuple[Ids, tuple[Ids, ...]]  # of a prompt, of its responses


def encode(
    row: RawRow, tokenizer: Any, *, join: str, chat_template: str | None
) -> Encoded:
    """Encodes one row, uncut; arguments and errors are those of `encode_all`."""
    (encoded,) = encode_all([row], tokenizer, join=join, chat_template=chat_template)
    if isinstance(encoded, BadRow):
        raise DataError(f"{row.where}: {encoded.detail}")
    return encoded


def encode_all(
    rows: Sequence[RawRow], tokenizer: Any, *, join: str, chat_template: str | None
) -> list[Encoded | BadRow]:
    """Encodes strings and chats in bulk and puts them back into the rows' order."""
    chats = [row for row in rows if not isinstance(row.prompt, str)]
    strings = [row for row in rows if isinstance(row.prompt, str)]
    if strings:
        check_eos(tokenizer, tokenizer.name_or_path)
    of_chats = iter(_encode_chats(chats, tokenizer, chat_template))
    of_strings = iter(JOINS[join](strings, tokenizer))
    return [
        _check_tokens(next(of_strings if isinstance(row.prompt, str) else of_chats))
        for row in rows
    ]


def _check_tokens(encoded: Encoded | BadRow) -> Encoded | BadRow:
    if isinstance(encoded, BadRow):
        return encoded
    if not encoded[0]:
        detail = "the prompt has no tokens, so nothing predicts the first of a response"
        return BadRow("no prompt tokens", detail)
    if not all(encoded[1]):
        return BadRow("no response tokens", "a response has no tokens")
    return encoded


def _encode_separately(rows: Sequence[RawRow], tokenizer: Any) -> Iterator[Encoded]:
    prompts = _ids(tokenizer, [row.prompt for row in rows], special=True)
    texts = [text for row in rows for text in row.responses]
    responses = iter(_ids(tokenizer, texts, special=False))
    for row, prompt in zip(rows, prompts, strict=True):
        endings = tuple(_ended(next(responses), tokenizer) for _ in row.responses)
        yield _without_end(prompt, tokenizer), endings


def _encode_jointly(rows: Sequence[RawRow], tokenizer: Any) -> Iterator[Encoded]:
    texts = [_whole_texts(row) for row in rows]
    ids = iter(_ids(tokenizer, list(chain.from_iterable(texts)), special=True))
    for row in rows:
        prompt = _without_end(next(ids), tokenizer)
        wholes = [_ended(next(ids), tokenizer) for _ in row.responses]
        yield _split(prompt, wholes)


def _whole_texts(row: RawRow) -> list[Any]:
    """Returns the prompt, and the prompt with each response."""
    prompt: Any = row.prompt
    return [prompt, *(prompt + response for response in row.responses)]


def _encode_chats(
    rows: Sequence[RawRow], tokenizer: Any, chat_template: str | None
) -> Iterator[Encoded | BadRow]:
    """Renders chats with the template, whose text holds all special tokens."""
    if rows and not (chat_template or tokenizer.chat_template):
        raise ModelError(
            f"{rows[0].where} is a chat, but the tokenizer has no chat template; set "
            "data.chat_template=FILE"
        )
    rendered = [_render_all(row, tokenizer, chat_template) for row in rows]
    texts = [row for row in rendered if not isinstance(row, BadRow)]
    encoded = iter(encode_alike(texts, tokenizer))
    for row in rendered:
        if isinstance(row, BadRow):
            yield row
        else:
            prompt, *wholes = next(encoded)
            yield _split(prompt, wholes)


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


def _render_all(
    row: RawRow, tokenizer: Any, template: str | None
) -> list[str] | BadRow:
    import jinja2

    render = partial(
        tokenizer.apply_chat_template, chat_template=template, tokenize=False
    )
    try:
        prompt, *wholes = _whole_texts(row)
        return [render(prompt, add_generation_prompt=True), *map(render, wholes)]
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(f"the chat template cannot be read: {error}") from error
    except (jinja2.TemplateError, TypeError) as error:
        return BadRow("refused by template", f"the chat template refuses it: {error}")


def _split(prompt: Ids, wholes: Sequence[Ids]) -> Encoded:
    """Cuts whole sequences at what they and the prompt all begin with."""
    end = 0
    for ids in zip(prompt, *wholes, strict=False):
        if len(set(ids)) > 1:
            break
        end += 1
    return prompt[:end], tuple(whole[end:] for whole in wholes)


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


JOINS: dict[str, Callable[[Sequence[RawRow], Any], Iterator[Encoded]]] = {
    "separate": _encode_separately,
    "joint": _encode_jointly,
}
