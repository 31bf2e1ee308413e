"""Which tokens of a rendered chat are the assistant's: its answers, and their ends.

A template that marks them with `{% generation %}` is believed, and transformers says
where the marks lie. Of any other, each turn is found by rendering the chat up to it: up
to where the assistant is asked to speak, and up to where it has spoken. Both must be
beginnings of the whole, or the turn cannot be told from the rest.
"""

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from absl import logging

from dpo_jax.data.columns import Message
from dpo_jax.data.sources.files import BadRow
from dpo_jax.data.templates import Tool
from dpo_jax.errors import ModelError

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

Span = tuple[int, int]  # of characters: where it begins and ends
Show = Callable[..., str]  # renders messages; see `templates.render`


def masked(
    chat: Sequence[Message],
    first: int,
    tokenizer: Any,
    template: str,
    show: Show,
    *,
    tools: Sequence[Tool] = (),
) -> tuple[list[int], list[bool]]:
    """Encodes a chat and says which tokens are the assistant's.

    Args:
      chat: messages.
      first: the messages before this one are not looked at.
      tokenizer: a fast one.
      template: its text.
      show: `(messages, *, answer=False) -> text` by the template, with the tools.
      tools: what the assistant can call.

    Returns:
      Ids, and bool of each.

    Raises:
      BadRow: where the template leaves open which they are.
      ModelError: if the tokenizer cannot say where its tokens lie.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            "data.scored='assistant' needs a tokenizer that says where its tokens lie, "
            f"and that of {tokenizer.name_or_path!r} is none of the fast ones; give a "
            "folder with tokenizer.json"
        )
    whole = show(chat)
    encoded = tokenizer(
        whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    if not GENERATION.search(template):
        ends = [token.content for token in tokenizer.added_tokens_decoder.values()]
        spans = answers(chat, first, whole, show)
        spans = [(begin, _end_of_turn(whole, begin, end, ends)) for begin, end in spans]
        return ids, within(offsets, spans)
    mask = _marked(chat, tokenizer, template, tools)
    if any(message["role"] == "assistant" for message in chat[:first]):
        behind = within(offsets, [(_begin(chat, first, whole, show), len(whole))])
        mask = [both == (True, True) for both in zip(mask, behind, strict=True)]
    return ids, mask


def _marked(
    chat: Sequence[Message], tokenizer: Any, template: str, tools: Sequence[Tool]
) -> list[bool]:
    """Asks transformers for the tokens between the marks of a template."""
    encoded = tokenizer.apply_chat_template(
        list(chat),
        chat_template=template,
        tools=list(tools) or None,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    ids, mask = encoded["input_ids"], [m == 1 for m in encoded["assistant_masks"]]
    after = zip(mask, mask[1:], ids[1:], strict=False)
    if any(
        here and not then and i == tokenizer.eos_token_id for here, then, i in after
    ):
        logging.log_first_n(
            logging.WARNING,
            "the chat template's {%% generation %%} leaves out the EOS behind an "
            "answer: the policy does not learn to end its turn",
            1,
        )
    return mask


def answers(chat: Sequence[Message], first: int, whole: str, show: Show) -> list[Span]:
    """Finds the assistant's turns in a rendered chat.

    Args:
      chat: messages.
      first: the messages before this one are not looked at.
      whole: the chat, rendered.
      show: as in `masked`.

    Raises:
      BadRow: if the template renders what comes before a turn, or the turn, otherwise
        once more follows.
    """
    return [
        (_begin(chat, at, whole, show), _end(chat, at, whole, show))
        for at in range(first, len(chat))
        if chat[at]["role"] == "assistant"
    ]


def _begin(chat: Sequence[Message], at: int, whole: str, show: Show) -> int:
    """Finds where an answer begins: behind what asks the assistant to speak.

    What asks (`<think>` and the like) may be another once it is answered; what is
    behind the part that stays the same is the answer.
    """
    if not at:
        return _begin_of_all(chat[:1], whole, show)
    asked = show(chat[:at], answer=True)
    if whole.startswith(asked):
        return len(asked)
    told = os.path.commonprefix([asked, show(chat[:at])])
    if chat[at - 1]["content"].strip() in told and whole.startswith(told):
        return len(os.path.commonprefix([asked, whole]))
    raise _unclear(f"what comes before message {at} (from 0, role 'assistant')")


def _begin_of_all(first: Sequence[Message], whole: str, show: Show) -> int:
    """Finds where an answer begins that nothing comes before: no template renders that.

    What asks the assistant to speak is read off behind the answer itself.
    """
    through, asked = show(first), show(first, answer=True)
    asks = asked[len(through) :] if asked.startswith(through) else ""
    head, found, _ = whole.partition(asks) if asks else ("", "", "")
    if found and first[0]["content"].strip() not in head:
        return len(head + found)
    raise _unclear("message 0")


def _end(chat: Sequence[Message], at: int, whole: str, show: Show) -> int:
    through = show(chat[: at + 1])
    if whole.startswith(through):
        return len(through)
    raise _unclear(f"message {at} (from 0, role 'assistant')")


def _unclear(what: str) -> BadRow:
    return BadRow(
        "turns not clear",
        f"the chat template renders {what} otherwise where more follows, so that its "
        "tokens cannot be told from the rest; set data.chat_template to one that marks "
        "them with {% generation %}, or data.scored to 'completion' or 'all'",
    )


def _end_of_turn(whole: str, begin: int, end: int, marks: Sequence[str]) -> int:
    """Leaves out white space behind the token that ends a turn: nobody must say it."""
    text = whole[begin:end].rstrip()
    return begin + len(text) if text.endswith(tuple(marks)) else end


def within(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Says which tokens hold a character of a span.

    A token of white space alone may lie nowhere, at the end of its characters.

    Args:
      offsets: characters of each token, in order.
      spans: likewise in order.
    """
    return [
        any(
            begin < span_end and end > span_begin
            if begin < end
            else span_begin < end <= span_end
            for span_begin, span_end in spans
        )
        for begin, end in offsets
    ]
