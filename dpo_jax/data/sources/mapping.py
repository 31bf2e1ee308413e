r"""Makes prompts, responses and pairs of the columns that a data set happens to have.

One declarative record serves the published sets (`published.py`) and a user's own
`data.columns.*`: where the prompt is, how a pair is formed, which rows are kept, and
which faults are dropped and counted. What it says in words is read by `values.py`.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from dpo_jax.data.sources.files import BadRow, Cell, Fields, Rows
from dpo_jax.data.sources.values import Decode, Getter, getter, no_ids, number, roots
from dpo_jax.errors import unknown


class ColumnMap(NamedTuple):
    """Where a row's parts are; '' = in the column of that name, if there is one.

    Attributes:
      prompt: a value as `values.py` has it; `implicit` = all but the last message of
        the chats.
      chosen: a value, as are `rejected`, `completion`, `label`, `messages`, `text`,
        `ranking`, `score_chosen`, `score_rejected`, `margin`, `system` and `tools`.
      responses: a value that lists all responses, or several joined by commas.
      scores: likewise, of `responses`.
      pair: how `responses` make pairs. `sign:C`: a number below 0 prefers the first of
        two, above 0 the second, 0 is a tie, and its size is the margin. `index:C`: the
        place of the best, from 0. `rank:C`: a rank for each, 1 = best. `each`: every
        one of the list `chosen` against every one of the list `rejected`.
      chat: `wrap` makes messages of strings; '' = only of those beside a chat.
      keep: conditions joined by commas, such as `status!=tie,score>=8`,
        `score_chosen>=2*score_rejected`; other rows are left out and counted.
      drop: faults that are left out and counted, of `DROPS`, joined by commas.
      pairs_per_prompt: the first so many pairs of each prompt; 0 = all.
    """

    prompt: str = ""
    chosen: str = ""
    rejected: str = ""
    completion: str = ""
    label: str = ""
    messages: str = ""
    text: str = ""
    responses: str = ""
    ranking: str = ""
    scores: str = ""
    score_chosen: str = ""
    score_rejected: str = ""
    margin: str = ""
    system: str = ""
    tools: str = ""
    pair: str = ""
    chat: str = ""
    keep: str = ""
    drop: str = ""
    pairs_per_prompt: int = 0

    def drops(self) -> tuple[str, ...]:
        """Returns how the reasons begin that are dropped and counted, not errors."""
        return (*filter(None, self.drop.split(",")), FILTERED, BEYOND)


NO_COLUMNS = ColumnMap()
FILTERED, BEYOND = "filtered", "beyond"  # how the reasons of `keep` and of many begin
DROPS = ("tie", "identical", "null", "empty", "mismatched", "wrong role", "cut")
VALUES = (
    *("chosen", "rejected", "completion", "label", "messages", "text", "ranking"),
    *("score_chosen", "score_rejected", "margin", "system", "tools"),
)
LISTS = ("responses", "scores")
OPTIONAL = ("system", "tools")
IMPLICIT = "implicit"
CONDITION = re.compile(r"\s*([^<>=!]+?)\s*(>=|<=|!=|==|=|<|>)\s*(.*?)\s*")
TIMES = re.compile(r"(\d+\.?\d*|\.\d+)\*(.+)")


class Rule(NamedTuple):
    """How responses make pairs.

    Attributes:
      ranks: (what its column holds, number of responses, what it is called) -> a rank
        for each response, lower is better.
      all_pairs: also those without the best.
      margin: the size of the column's value is the margin.
    """

    ranks: Callable[[Any, int, str], list[float]]
    all_pairs: bool = False
    margin: bool = False


def faults_of(columns: ColumnMap, owner: str) -> list[str]:
    """Complains of what a mapping says that cannot be meant.

    Args:
      columns: it.
      owner: what it is part of, such as `data.columns`.
    """
    faults = []
    try:
        _Reader(columns, owner, "pairs", no_ids)
    except ValueError as error:
        faults.append(str(error))
    for reason in filter(None, columns.drop.split(",")):
        if reason not in DROPS:
            faults.append(unknown(f"{owner}.drop", reason, DROPS))
    if columns.chat not in ("", "wrap"):
        faults.append(unknown(f"{owner}.chat", columns.chat, ["wrap"]))
    return faults


def mapped(
    rows: Rows, columns: ColumnMap, owner: str, *, kind: str, decode: Decode
) -> Rows:
    """Yields rows with the columns that `kinds` knows, several for one where they pair.

    Args:
      rows: as a file has them.
      columns: what they become.
      owner: see `faults_of`.
      kind: of `kinds.KINDS`; a ranking stays one for `rankings`, and `completions` get
        the best response once.
      decode: GPT-2's token ids -> text.
    """
    reader, seen = _Reader(columns, owner, kind, decode), Counter[bytes]()
    for where, fields in rows:
        if isinstance(fields, BadRow):
            yield where, fields
            continue
        try:
            made = list(reader.made(fields))
        except BadRow as bad:
            made = [("", bad)]
        for suffix, row in made:
            if columns.pairs_per_prompt and not isinstance(row, BadRow):
                row = _counted(row, seen, columns.pairs_per_prompt)
            yield where + suffix, row


class _Reader:
    """Reads rows by a mapping whose words were understood once."""

    def __init__(self, columns: ColumnMap, owner: str, kind: str, decode: Decode):
        """Understands the mapping.

        Raises:
          ValueError: naming the field that cannot be understood.
        """
        self._columns, self._kind = columns, kind
        given = columns._asdict()
        find = partial(_understood, owner, decode)
        named = bool(columns.prompt) and columns.prompt != IMPLICIT
        self._prompt = find("prompt", columns.prompt) if named else None
        self._values = {n: find(n, given[n]) for n in VALUES if given[n]}
        self._lists = {n: find(n, given[n]) for n in LISTS if given[n]}
        self._rule, self._by = RULES["index"], None
        name, _, spec = columns.pair.partition(":")
        if columns.pair and columns.pair != "each":
            if name not in RULES or not spec:
                known = [*(f"{rule}:COLUMN" for rule in RULES), "each"]
                raise ValueError(unknown(f"{owner}.pair", columns.pair, known))
            self._rule, self._by = RULES[name], find("pair", spec)
        self._by_name = f"{owner}.pair={columns.pair!r}"
        self._keep = [
            _condition(text, f"{owner}.keep") for text in _split(columns.keep)
        ]
        self._used = _columns_used(columns)

    def made(self, fields: Fields) -> Iterator[tuple[str, Fields | BadRow]]:
        """Yields (suffix of the place, columns or why there are none)."""
        values = {}
        for name, find in self._values.items():
            try:
                values[name] = find(fields)
            except BadRow:
                if name not in OPTIONAL:
                    raise
        lists = {name: find(fields) for name, find in self._lists.items()}
        rest = {k: v for k, v in fields.items() if k not in self._used}
        if self._prompt is not None:
            values["prompt"] = self._prompt(fields)
        for suffix, more in self._responses(fields, values, lists):
            if isinstance(more, BadRow):
                yield suffix, more
                continue
            row = self._shaped(rest | values | more)
            yield suffix, self._judged(fields | row) or row

    def _responses(
        self, fields: Fields, values: Fields, lists: Fields
    ) -> Iterator[tuple[str, Fields | BadRow]]:
        if self._columns.pair == "each":
            yield from self._each(fields | values)
        elif self._by is None:
            yield "", lists
        else:
            yield from self._pairs(fields, lists)

    def _each(self, fields: Fields) -> Iterator[tuple[str, Fields | BadRow]]:
        chosen, rejected = (fields.get(name) for name in ("chosen", "rejected"))
        if not (isinstance(chosen, list) and isinstance(rejected, list)):
            detail = f"{self._by_name}: lists 'chosen' and 'rejected' are due"
            raise BadRow("wrong type", detail)
        pairs = [(i, j) for i in range(len(chosen)) for j in range(len(rejected))]
        for i, j in pairs[: 1 if self._kind == "completions" else None]:
            yield f"({i}>{j})", {"chosen": chosen[i], "rejected": rejected[j]}

    def _pairs(
        self, fields: Fields, lists: Fields
    ) -> Iterator[tuple[str, Fields | BadRow]]:
        responses, scores = lists.get("responses"), lists.get("scores")
        if not isinstance(responses, list) or len(responses) < 2:
            detail = f"{self._by_name}: a list of at least 2 'responses' is due"
            raise BadRow("too few responses", detail)
        assert self._by is not None
        value, size = self._by(fields), len(responses)
        ranks = self._rule.ranks(value, size, self._by_name)
        order = sorted(range(size), key=ranks.__getitem__)
        if self._kind == "rankings" and self._rule.all_pairs:
            if len(set(ranks)) < size:
                raise BadRow("tie", f"{self._by_name}: two responses have one rank")
            yield "", lists | {"ranking": order}
            return
        bests = order[:-1] if self._rule.all_pairs else order[:1]
        pairs = [(i, j) for at, i in enumerate(bests) for j in order[at + 1 :]]
        for i, j in pairs[: 1 if self._kind == "completions" else None]:
            suffix = f"({i}>{j})" if size > 2 else ""
            if ranks[i] == ranks[j]:
                yield suffix, BadRow("tie", f"{self._by_name}: a tie of two responses")
                continue
            row = {"chosen": responses[i], "rejected": responses[j]}
            if isinstance(scores, list) and len(scores) == size:
                row |= {"score_chosen": scores[i], "score_rejected": scores[j]}
            elif self._rule.margin:
                row["margin"] = abs(number(value, self._by_name))
            yield suffix, row

    def _shaped(self, row: Fields) -> Fields:
        """Finds the prompt of chats, and makes messages of strings beside chats."""
        if self._columns.prompt == IMPLICIT:
            row = _implicit(row)
        prompt = row.get("prompt")
        if isinstance(prompt, str) and self._columns.chat:
            prompt = [{"role": "user", "content": str(prompt)}]
            row = row | {"prompt": prompt}
        if isinstance(prompt, list):
            names = ("chosen", "rejected", "completion", "responses")
            row = row | {name: _spoken(row[name]) for name in names if name in row}
        return row

    def _judged(self, row: Fields) -> BadRow | None:
        """Says why a row is left out, if it is."""
        for text, holds in self._keep:
            if not holds(row):
                return BadRow(f"{FILTERED} by {text}", f"{text} does not hold")
        both = row.get("score_chosen"), row.get("score_rejected")
        if "tie" in self._columns.drop and None not in both and both[0] == both[1]:
            return BadRow(
                "tie", "columns 'score_chosen' and 'score_rejected' are equal"
            )
        return None


def _understood(owner: str, decode: Decode, name: str, spec: str) -> Getter:
    said = f"{owner}.{name}={spec!r}"
    try:
        if name not in LISTS or "," not in spec:
            return getter(spec, said, decode)
        finds = [getter(part, said, decode) for part in spec.split(",")]
    except ValueError as error:
        raise ValueError(f"{said}: {error}") from error
    return lambda fields: [find(fields) for find in finds]


def _columns_used(columns: ColumnMap) -> set[str]:
    """Names the columns that have gone into others; those of a known name stay."""
    given = columns._asdict()
    specs = [given[name] for name in VALUES]
    specs += [part for name in LISTS for part in given[name].split(",")]
    specs += [columns.pair.partition(":")[2]]
    specs += [columns.prompt] * (columns.prompt != IMPLICIT)
    used = {name for spec in specs if spec for name in roots(spec)}
    conditions = [CONDITION.fullmatch(text) for text in _split(columns.keep)]
    used |= {m[1] for m in conditions if m}
    return used - {"prompt", *VALUES, *LISTS} | used & set(OPTIONAL)


def _implicit(row: Fields) -> Fields:
    """Leaves the prompt to whole chats; a completion is one if a user begins it."""
    chat = row.get("completion")
    if isinstance(chat, list) and chat and isinstance(chat[0], dict):
        if chat[0].get("role") != "assistant":
            return row | {"prompt": chat[:-1], "completion": chat[-1:]}
    if isinstance(row.get("chosen"), list):
        return {name: value for name, value in row.items() if name != "prompt"}
    return row


def _spoken(value: Any) -> Any:
    """Makes messages of the assistant of strings."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": str(value)}]
    if isinstance(value, list) and value and isinstance(value[0], str):
        return [_spoken(each) for each in value]
    return value


def _counted(row: Fields, seen: Counter[bytes], most: int) -> Fields | BadRow:
    prompt = row.get("prompt")
    if prompt is None and isinstance(row.get("chosen"), list):
        prompt = row["chosen"][:-1]
    text = json.dumps(prompt, sort_keys=True, default=str)
    digest = hashlib.blake2b(text.encode(errors="replace"), digest_size=16).digest()
    seen[digest] += 1
    if seen[digest] > most:
        detail = f"the prompt has {most} pairs already"
        return BadRow(f"{BEYOND} {most} pairs of a prompt", detail)
    return row


def _split(keep: str) -> list[str]:
    return [part.strip() for part in keep.split(",") if part.strip()]


def _condition(text: str, said: str) -> tuple[str, Callable[[Fields], bool]]:
    match = CONDITION.fullmatch(text)
    if not match or not match[3]:
        raise ValueError(f"{said}={text!r} is no condition such as score>=8")
    left, sign, right = match.groups()
    times = TIMES.fullmatch(right)
    find = getter(left, f"{said}={text!r}", no_ids)
    other = getter(times[2], f"{said}={text!r}", no_ids) if times else None

    def holds(fields: Fields) -> bool:
        try:
            value = find(fields)
            bound = Cell(right).meant()
            if times and other is not None:
                bound = float(times[1]) * number(other(fields), text)
        except BadRow as bad:
            if bad.reason != "null":
                raise
            return sign == "!="
        value = value.meant() if isinstance(value, Cell) else value
        if sign in ("=", "==", "!="):
            return (value == bound) == (sign != "!=")
        return COMPARED[sign](number(value, text), number(bound, text))

    return text, holds


def _by_sign(value: Any, size: int, said: str) -> list[float]:
    sign = number(value, said)
    if size != 2:
        raise BadRow("too many responses", f"{said}: 2 are due, not {size}")
    return [sign, -sign]


def _by_index(value: Any, size: int, said: str) -> list[float]:
    best = number(value, said)
    if best not in range(size):
        raise BadRow("wrong index", f"{said} is {value}; 0…{size - 1} is due")
    return [float(place != best) for place in range(size)]


def _by_rank(value: Any, size: int, said: str) -> list[float]:
    if not isinstance(value, list) or len(value) != size:
        raise BadRow("wrong ranking", f"{said}: a rank for each of {size} is due")
    return [number(rank, said) for rank in value]


COMPARED: dict[str, Callable[[float, float], bool]] = {
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
}
RULES: dict[str, Rule] = {
    "sign": Rule(_by_sign, margin=True),
    "index": Rule(_by_index),
    "rank": Rule(_by_rank, all_pairs=True),
}
