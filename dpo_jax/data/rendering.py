"""Rows of chats as texts, by their template, or why it makes nothing of one.

Knows texts and what of them would be scored, and no ids.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from dpo_jax.data import bounds
from dpo_jax.data.kinds import RawRow
from dpo_jax.data.sources.files import BadRow
from dpo_jax.data.templates import render
from dpo_jax.data.turns import Show
from dpo_jax.errors import ModelError, UserError

Made = TypeVar("Made")


def whole_texts(row: RawRow) -> list[Any]:
    """Returns the prompt, and the prompt with each response."""
    prompt: Any = row.prompt
    return [prompt, *(prompt + response for response in row.responses)]


def tried(
    make: Callable[..., Made],
    row: RawRow,
    tokenizer: Any,
    find: Callable[..., str],
) -> Made | BadRow:
    """Returns what a template makes of a row, or why it makes nothing of it.

    Args:
      make: `(row, tokenizer, template, show)`; see `answered`.
      row: a chat.
      tokenizer: knows the special tokens.
      find: tools -> text of the template.
    """
    import jinja2

    try:
        template = find(row.tools)
        show = bounds.within_row(partial(render, tokenizer, template))
        return make(row, tokenizer, template, show)
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(f"the chat template cannot be read: {error}") from error
    except UserError as error:  # of `bounds`: the next row would take as much
        raise type(error)(f"{row.where}: {error}") from error
    except BadRow as bad:
        return bad
    except Exception as error:  # whatever a template may raise
        return refused(f"refuses it: {error}")


def refused(fault: str) -> BadRow:
    """Says what a template does that it must not."""
    return BadRow("refused by template", f"the chat template {fault}")


def answered(row: RawRow, tokenizer: Any, template: str, show: Show) -> list[str]:
    """Renders the prompt, and the prompt with each response.

    Args:
      row: a chat.
      tokenizer: not looked at.
      template: likewise.
      show: renders messages.

    Raises:
      BadRow: if something is lost, or stands elsewhere once there is an answer.
    """
    del tokenizer, template
    prompt, *wholes = whole_texts(row)
    shown = show(prompt, answer=True, tools=row.tools)
    texts = [shown, *(show(whole, tools=row.tools) for whole in wholes)]
    fault = lost(row, shown, partial(show, prompt, answer=True))
    if fault := fault or _moved(row, texts, show):
        raise refused(fault)
    return texts


def whole(row: RawRow, tokenizer: Any, template: str, show: Show) -> list[str]:
    """Renders a chat of which everything counts, twice; as `answered` else."""
    del tokenizer, template
    _, chat = whole_texts(row)
    text = show(chat, tools=row.tools)
    if fault := lost(row, text, partial(show, chat)):
        raise refused(fault)
    return [text, text]


def lost(row: RawRow, shown: str, without_tools: Callable[[], str]) -> str:
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
