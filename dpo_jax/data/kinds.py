"""The kinds of rows: which columns each has, and what they become.

A function for each kind makes a `RawRow` of a row's columns, or raises `BadRow`. Rows
of pairs serve every kind, so that all objectives can be run on the same rows.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from dpo_jax.data import columns
from dpo_jax.data.columns import Text
from dpo_jax.data.sources.files import BadRow, Fields

SCORES = ("score_chosen", "score_rejected")
RATINGS = (*SCORES, "margin")
TOLD = ("prompt", "system", "tools")  # what every kind of row says before a response


class RawRow(NamedTuple):
    """A checked row of text.

    Attributes:
      prompt: a string, or chat messages with `role` and `content`.
      responses: of the same type; (chosen, rejected) for a pair, (completion,) for
        SFT, best first for a ranking.
      labels: of each response, 1 = desirable, −1 = undesirable; () = not judged so.
      ratings: the data's own score of each response; () = none.
      ranked: the responses are a ranking.
      scored: which tokens count: `completion` = all behind the prompt, `assistant` = of
        a chat, the assistant's behind the prompt; `all` = those of the prompt as well.
      tools: what a chat's template is told that the assistant can call.
      ended: of each response, whether it ended by itself; () = all. One that was cut
        short gets no EOS.
      ids: of the prompt and of each response, taken as they are; () = texts count.
      where: `file:line` or `source[index]`.
      index: position of the row in its source, bad rows counted too.
    """

    prompt: Text
    responses: tuple[Text, ...]
    labels: tuple[int, ...] = ()
    ratings: tuple[float, ...] = ()
    ranked: bool = False
    scored: str = "completion"
    tools: tuple[dict[str, Any], ...] = ()
    ended: tuple[bool, ...] = ()
    ids: tuple[list[int], ...] = ()
    where: str = ""
    index: int = 0


def pair(fields: Fields, scored: str = "") -> RawRow:
    """Takes a prompt, a chosen and a rejected response out of a row.

    Args:
      fields: the columns.
      scored: which tokens count, as in `RawRow`; '' = what is usual for such a row.
    """
    if _by_ids(fields, *PAIR):
        return _of_ids(fields, PAIR, scored)
    if "prompt" not in fields and isinstance(fields.get("chosen"), list):
        prompt, chosen, rejected = _shared_beginning(fields)
    else:
        chosen, rejected, prompt = columns.texts(fields, "chosen", "rejected", "prompt")
        columns.check_role("chosen", chosen)
        columns.check_role("rejected", rejected)
    columns.check_not_empty("prompt", prompt)
    columns.check_not_empty("chosen", chosen)
    columns.check_not_empty("rejected", rejected)
    if chosen == rejected:
        raise BadRow("identical", "columns 'chosen' and 'rejected' are identical")
    return RawRow(
        prompt,
        (chosen, rejected),
        ratings=_ratings(fields),
        scored=scored or "completion",
        ended=_ended(fields, prompt, "chosen_ended", "rejected_ended"),
    )


def completion(fields: Fields, scored: str = "") -> RawRow:
    """Takes a prompt and one response, a chat, or a text.

    An empty prompt string is plain text. Arguments are those of `pair`.
    """
    if _is_pair(fields, "completion"):
        both = pair(fields, scored)
        return _first(both)
    if _by_ids(fields, "completion"):
        return _of_ids(fields, ("completion",), scored)
    if alone := _alone(fields):
        return ALONE[alone](fields, scored)
    prompt, response = _prompt_and_completion(fields)
    if not isinstance(prompt, str):
        columns.check_not_empty("prompt", prompt)
    ended = _ended(fields, prompt, "ended")
    return RawRow(prompt, (response,), scored=scored or "completion", ended=ended)


def _first(both: RawRow) -> RawRow:
    """Leaves out the rejected response of a pair."""
    return both._replace(
        responses=both.responses[:1],
        ratings=both.ratings[:1],
        ended=both.ended[:1],
        ids=both.ids[:2],
    )


def _messages(fields: Fields, scored: str) -> RawRow:
    """Takes a chat; without a word on it, the assistant's turns count."""
    chat = columns.text("messages", columns.value_of(fields, "messages"))
    if isinstance(chat, str):
        raise BadRow(
            "wrong type", "column 'messages' is str; a list of messages is due"
        )
    columns.check_not_empty("messages", chat)
    roles = [message["role"] for message in chat]
    if scored == "all":
        first = int(roles[0] == "system")
        return RawRow(chat[:first], (chat[first:],), scored=scored)
    if "assistant" not in roles:
        raise BadRow("no answer", "column 'messages' has no turn of the assistant")
    first = roles.index("assistant")
    if scored == "completion":
        first = len(roles) - 1
        columns.check_last("messages", chat)
    return RawRow(chat[:first], (chat[first:],), scored="assistant")


def _text(fields: Fields, scored: str) -> RawRow:
    """Takes a text of which everything counts."""
    text = columns.text("text", columns.value_of(fields, "text"))
    if not isinstance(text, str):
        raise BadRow("wrong type", "column 'text' is a list; a string is due")
    columns.check_not_empty("text", text)
    if scored not in ("", "all"):
        detail = "column 'text' has neither turns nor a completion, but data.scored is"
        raise BadRow("no answer", f"{detail} {scored!r}; set it to 'all'")
    return RawRow("", (text,), scored="all")


def single(fields: Fields, scored: str = "") -> RawRow:
    """Takes a response that was judged by itself, or both of a pair so."""
    if _is_pair(fields, "completion"):
        return pair(fields, scored)._replace(labels=(1, -1))
    if _by_ids(fields, "completion"):
        row = _of_ids(fields, ("completion",), scored)
    else:
        prompt, response = _prompt_and_completion(fields)
        columns.check_not_empty("prompt", prompt)
        ended = _ended(fields, prompt, "ended")
        row = RawRow(prompt, (response,), scored=scored or "completion", ended=ended)
    return row._replace(labels=(columns.label(fields, "label"),))


def ranking(fields: Fields, scored: str = "") -> RawRow:
    """Takes responses in their order, best first; a pair is a ranking of two."""
    if _is_pair(fields, "responses"):
        return pair(fields, scored)._replace(ranked=True)
    found = columns.text_list(fields, "responses")
    (prompt,) = columns.texts(fields, "prompt")
    columns.check_same_type({"prompt": prompt, **found})
    columns.check_not_empty("prompt", prompt)
    for name, response in found.items():
        columns.check_role(name, response)
        columns.check_not_empty(name, response)
    responses = list(found.values())
    if len(responses) < 2:
        detail = f"column 'responses' holds {len(responses)}; a ranking has at least 2"
        raise BadRow("too few responses", detail)
    for (a, one), (b, other) in combinations(found.items(), 2):
        if one == other:
            raise BadRow("identical", f"{a!r} and {b!r} are identical")
    order = columns.permutation(fields, "ranking", of="responses", size=len(found))
    scores = columns.numbers(fields, "scores", of="responses", size=len(found))
    return RawRow(
        prompt,
        tuple(responses[i] for i in order),
        ratings=tuple(scores[i] for i in order if scores),
        ranked=True,
        scored=scored or "completion",
    )


def prompt(fields: Fields, scored: str = "") -> RawRow:
    """Takes the prompt out of a row, whatever stands beside it.

    Args:
      fields: the columns.
      scored: not read: what will be scored is drawn by the policy.
    """
    del scored
    if "prompt" not in fields and "chosen" in fields:
        return pair(fields)._replace(responses=())
    (prompt,) = columns.texts(fields, "prompt")
    columns.check_not_empty("prompt", prompt)
    return RawRow(prompt, ())


def told(row: RawRow, fields: Fields) -> RawRow:
    """Adds the columns `system` and `tools`, which only a chat has a place for."""
    system, tools = columns.system(fields), columns.tools(fields)
    if not (system.strip() or tools):
        return row
    if isinstance(row.prompt, str):
        name = "system" if system.strip() else "tools"
        detail = f"column {name!r} has no place beside a prompt that is a string; "
        detail += "write it into the prompt, or give chats"
        raise BadRow(f"{name} beside a string", detail)
    prompt = row.prompt
    if system.strip():
        message, own = {"role": "system", "content": system}, prompt[:1]
        if not own or own[0]["role"] != "system":
            prompt = [message, *prompt]
        elif own[0]["content"] != system:
            detail = "column 'system' and the prompt's own system message differ"
            raise BadRow("two system prompts", detail)
    return row._replace(prompt=prompt, tools=tuple(tools))


def readable(fields: Fields) -> Fields:
    """Leaves out ratings that are missing or no numbers; where no loss reads them."""
    try:
        _ratings(fields)
    except BadRow:
        return {name: x for name, x in fields.items() if name not in RATINGS}
    return fields


def names_read(kind: str, fields: Fields, *, rated: bool) -> set[str]:
    """Names the columns that a row of a kind is made of.

    Args:
      kind: of `KINDS`.
      fields: the columns.
      rated: whether ratings are read.
    """
    own = OWN[kind]
    if kind == "completions" and (alone := _alone(fields)):
        return {*TOLD[1:], alone}
    if own and not _is_pair(fields, own[0]):
        return {*TOLD, *own, PROMPT_IDS, f"{own[0]}_ids", "ended"}
    ratings = RATINGS[:2] if any(name in fields for name in SCORES) else RATINGS[2:]
    both = [f"{name}{end}" for name in PAIR for end in ("", "_ids", "_ended")]
    return {*TOLD, PROMPT_IDS, *both, *(ratings if rated else ())}


def _is_pair(fields: Fields, own: str) -> bool:
    if _by_ids(fields, own):
        return False
    return own not in fields and ("chosen" in fields or _by_ids(fields, "chosen"))


def _by_ids(fields: Fields, *responses: str) -> bool:
    """Says whether a row is made of ids: of its prompt and of responses."""
    return PROMPT_IDS in fields and any(f"{name}_ids" in fields for name in responses)


def _of_ids(fields: Fields, names: Sequence[str], scored: str) -> RawRow:
    """Takes token ids out of a row, which may give the prompt as text beside them."""
    ids = tuple(columns.ids(fields, f"{n}_ids") for n in ("prompt", *names))
    if len(set(map(tuple, ids[1:]))) < len(names):
        raise BadRow("identical", "'chosen_ids' and 'rejected_ids' are identical")
    prompt = columns.text("prompt", fields["prompt"]) if fields.get("prompt") else ""
    return RawRow(
        prompt,
        ("",) * len(names),
        ratings=_ratings(fields) if len(names) > 1 else (),
        scored=scored or "completion",
        ids=ids,
    )


def _ended(fields: Fields, prompt: Text, *names: str) -> tuple[bool, ...]:
    """Reads whether responses ended by themselves; () = all did."""
    ended = tuple(columns.ended(fields, name) for name in names)
    if all(ended):
        return ()
    if not isinstance(prompt, str):
        raise BadRow(
            "cut chat",
            f"column {names[ended.index(False)]!r} is false, but a chat template ends "
            "every answer; give a response that was cut short as ids",
        )
    return ended


def _alone(fields: Fields) -> str:
    """Names the column that is a whole row of completions; '' where there is none."""
    if "completion" in fields or "chosen" in fields:
        return ""
    if "messages" in fields:
        return "messages"
    return "text" if "text" in fields and "prompt" not in fields else ""


def _prompt_and_completion(fields: Fields) -> tuple[Text, Text]:
    response, prompt = columns.texts(fields, "completion", "prompt")
    columns.check_role("completion", response)
    columns.check_not_empty("completion", response)
    return prompt, response


def _ratings(fields: Fields) -> tuple[float, ...]:
    """Reads both scores; or a margin, which is a score above one of 0; or nothing."""
    if any(name in fields for name in SCORES):
        return tuple(columns.number(fields, name) for name in SCORES)
    return (columns.number(fields, "margin"), 0.0) if "margin" in fields else ()


def _shared_beginning(fields: Fields) -> tuple[Text, Text, Text]:
    """Splits two whole chats before their last assistant turn; both must agree."""
    chosen, rejected = columns.texts(fields, "chosen", "rejected")
    prompts, responses = [], []
    for name, chat in (("chosen", chosen), ("rejected", rejected)):
        if not chat:
            raise BadRow("empty", f"column {name!r} is empty")
        columns.check_last(name, chat)
        prompts.append(chat[:-1])
        responses.append(chat[-1:])
    if prompts[0] != prompts[1]:
        raise BadRow(
            "mismatched", "'chosen' and 'rejected' differ before their last message"
        )
    return prompts[0], responses[0], responses[1]


PAIR = ("chosen", "rejected")
PROMPT_IDS = "prompt_ids"
OWN = {  # the columns of rows that are no pairs; the first of them tells such a row
    "pairs": (),
    "completions": ("completion",),
    "singles": ("completion", "label"),
    "rankings": ("responses", "ranking"),
    "prompts": ("prompt",),
}
ALONE: dict[str, Callable[[Fields, str], RawRow]] = {
    "messages": _messages,
    "text": _text,
}
KINDS: dict[str, Callable[[Fields, str], RawRow]] = {
    "pairs": pair,
    "completions": completion,
    "singles": single,
    "rankings": ranking,
    "prompts": prompt,
}
