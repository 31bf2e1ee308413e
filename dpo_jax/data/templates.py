"""Chat templates: whose counts, their clock, and what they make of a chat.

Knows no rows and no ids.
"""

import datetime
import json
from collections.abc import Sequence
from typing import Any

from dpo_jax.data import bounds
from dpo_jax.data.columns import Message
from dpo_jax.errors import ModelError

CLOCK = "strftime_now"  # what chat templates call for the date
DIRECTIVES = "aAwdbBmyYHIMSpfzZjUWcxXGuVeFDTR"  # of strftime

Tool = dict[str, Any]


def check_template(tokenizer: Any, where: str, *, with_tools: bool = False) -> None:
    """Raises ModelError, if the tokenizer has no template of its own for a chat.

    Args:
      tokenizer: whose.
      where: the chat stands.
      with_tools: whether it comes with tools.
    """
    own = tokenizer.chat_template
    if not own:
        raise ModelError(
            f"{where} is a chat, but the tokenizer has no chat template; set "
            "data.chat_template=FILE"
        )
    named = own if isinstance(own, dict) else {"default": own}
    if "default" not in named and not (with_tools and "tool_use" in named):
        raise ModelError(
            f"{where} is a chat, but the tokenizer has several chat templates "
            f"({', '.join(sorted(named))}) and none named 'default'; set "
            "data.chat_template to one of these names, or to a file"
        )


def template_text(
    tokenizer: Any, template: str | None, now: str, tools: Sequence[Tool] = ()
) -> str:
    """Finds the text of a chat template, with a clock that stands still.

    Args:
      tokenizer: whose template counts where none is given.
      template: a text, or None.
      now: what the template takes for the present, ISO 8601; '' = the present.
      tools: what the assistant can call; some tokenizers have a template for them.
    """
    text = tokenizer.get_chat_template(template, tools=list(tools) or None)
    if not now or CLOCK not in text:
        return text
    at = datetime.datetime.fromisoformat(now)
    marks = [f"%{dash}{letter}" for dash in ("-", "") for letter in DIRECTIVES]
    values = json.dumps({mark: at.strftime(mark) for mark in (*marks, "%%")})
    # transformers lets no function through, so the clock is a macro of the template
    return (
        f"{{%- macro {CLOCK}(format) -%}}{{%- set made = namespace(text=format) -%}}"
        f"{{%- for mark, value in {values}.items() -%}}"
        "{%- set made.text = made.text | replace(mark, value) -%}{%- endfor -%}"
        f"{{{{- made.text -}}}}{{%- endmacro %}}\n{text}"
    )


def render(
    tokenizer: Any,
    text: str,
    chat: Sequence[Message],
    *,
    tools: Sequence[Tool] = (),
    answer: bool = False,
) -> str:
    """Renders a chat as text; raises what a template may raise, which is anything.

    Args:
      tokenizer: knows the special tokens.
      text: of the template.
      chat: messages.
      tools: what the assistant can call.
      answer: whether the assistant is asked to speak next.
    """
    with bounds.bounded():
        shown = tokenizer.apply_chat_template(
            list(chat),
            chat_template=text,
            tokenize=False,
            add_generation_prompt=answer,
            tools=list(tools) or None,
        )
    return bounds.check_size(shown, given=len(str([*chat, *tools])))
