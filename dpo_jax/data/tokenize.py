"""Turns rows of text into records of token ids, cut to what a run takes.

Masks follow from the lengths made here, never from ids. Knows tokenizers, but no arrays
of a batch and no jax.
"""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from dpo_jax.data.encode import Encoded, Ids, check_eos, encode_all
from dpo_jax.data.kinds import RawRow
from dpo_jax.data.records import Faults
from dpo_jax.data.sources.files import BadRow
from dpo_jax.data.templates import CLOCK
from dpo_jax.data.tokens import Gathered, Records
from dpo_jax.errors import DataError, ModelError
from dpo_jax.files import read_json, read_small, unfit

CHUNK = 1024  # rows encoded at once; their text is forgotten before the next are read
MOST_LAYERS = 100_000  # and labels: transformers makes lists of them as it reads
CONFIGS = ("config.json", "tokenizer_config.json", "processor_config.json")

LARGEST = 256 * 2**20  # bytes of a file of a tokenizer
ENDINGS = (".json", ".jinja", ".txt", ".model", ".tiktoken")  # of such files


class Cut(NamedTuple):
    """Tokens cut off one row: from the prompt, and from all responses together."""

    prompt: int
    responses: int


class TokenCounts(NamedTuple):
    """What tokenizing did to the rows; tokens are sums over the kept rows."""

    kept: int
    dropped: dict[str, int]  # rows by reason
    cut_rows: int  # rows that lost at least a token
    prompt_tokens_cut: int
    response_tokens_cut: int
    double_bos: int = 0  # rows whose prompt starts with BOS twice
    other_turns_scored: int = 0  # rows with turns of others behind their prompt

    def render(self) -> str:
        """Returns `cut 2 of 9 rows (30 prompt, 5 response tokens)`."""
        tokens = f"{self.prompt_tokens_cut} prompt, {self.response_tokens_cut} response"
        said = f"cut {self.cut_rows} of {self.kept} rows ({tokens} tokens)"
        if self.double_bos:
            said += f"; BOS twice before {self.double_bos} prompts"
        if self.other_turns_scored:
            said += f"; turns of others scored in {self.other_turns_scored} rows"
        return said


def load_tokenizer(path: str, revision: str = "") -> Any:
    """Loads a tokenizer from a folder or the hub.

    Args:
      path: an HF folder or hub id.
      revision: of the hub; '' = its newest.

    Raises:
      ModelError: if it cannot be loaded, asks for remote code, has no EOS token, or a
        chat template that is no text.
    """
    folder = Path(path)
    _check_configs(folder)
    _check_files(path)
    if not os.path.isdir(path) and (path[:1] in "./~" or os.path.exists(path)):
        raise ModelError(f"tokenizer.path={path!r} is no folder with a tokenizer")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=revision or None, trust_remote_code=False, use_fast=True
        )
    except Exception as error:  # another library's: hub, network, formats
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        raise ModelError(
            f"tokenizer.path={path!r} cannot be loaded ({reason}); give a folder that "
            "holds tokenizer.json"
        ) from error
    check_eos(tokenizer, path)
    named = tokenizer.chat_template
    for template in named.values() if isinstance(named, dict) else [named or ""]:
        if not isinstance(template, str):
            kind = type(template).__name__
            raise ModelError(
                f"tokenizer.path={path!r}: chat_template is {kind}; a text is due"
            )
    return tokenizer


def read_chat_template(path: str, tokenizer: Any) -> str | None:
    """Reads `data.chat_template`, or raises DataError; '' gives None.

    Args:
      path: a file, or the name of one of the tokenizer's templates.
      tokenizer: whose.
    """
    if not path:
        return None
    if isinstance(tokenizer.chat_template, dict) and path in tokenizer.chat_template:
        return tokenizer.chat_template[path]
    try:
        return read_small(path).decode()
    except (OSError, ValueError) as error:
        what = f"data.chat_template={path!r} cannot be read"
        raise DataError(f"{what}: {error}") from error


def is_dated(chat_template: str | None, tokenizer: Any) -> bool:
    """Says whether a chat template asks for the date."""
    own = tokenizer.chat_template or ""
    texts = list(own.values()) if isinstance(own, dict) else [own]
    return any(CLOCK in text for text in ([chat_template] if chat_template else texts))


def max_token_id(tokenizer: Any) -> int:
    """Returns the largest id that the tokenizer can give, added tokens included."""
    return max(tokenizer.get_vocab().values())


def check_ids(max_id: int, table_rows: int) -> None:
    """Raises ModelError if ids up to `max_id` do not fit V = `table_rows` rows."""
    if max_id >= table_rows:
        raise ModelError(
            f"the tokenizer's largest id {max_id} lies outside the embedding table of "
            f"{table_rows} rows; use the model's own tokenizer (tokenizer.path='')"
        )


def truncate(
    prompt: Ids,
    responses: Sequence[Ids],
    *,
    max_tokens: int,
    max_prompt_tokens: int,
    side: str,
    room: str = "rest",
) -> tuple[Ids, tuple[Ids, ...], Cut]:
    """Cuts a row that does not fit: first its prompt, then its responses.

    Args:
      prompt: [P] ids.
      responses: ids of each.
      max_tokens: of the prompt with one response.
      max_prompt_tokens: of the prompt, where it must be cut.
      side: `keep_end` or `keep_start` of the prompt; responses keep their start.
      room: what is left to a response that must be cut: `rest` gives it
        `max_tokens` − P, `fixed` gives it `max_tokens` − `max_prompt_tokens` even
        beside a shorter prompt, as the DPO paper's code does.

    Returns:
      The prompt, the responses, and how much was cut off them.
    """
    longest = max(map(len, responses))
    if len(prompt) + longest <= max_tokens:
        return prompt, tuple(responses), Cut(0, 0)
    surplus = max(len(prompt) - max_prompt_tokens, 0)
    kept = prompt[surplus:] if side == "keep_end" else prompt[: len(prompt) - surplus]
    if len(kept) + longest <= max_tokens:
        return kept, tuple(responses), Cut(surplus, 0)
    taken = len(kept) if room == "rest" else max_prompt_tokens
    shorter = tuple(response[: max(max_tokens - taken, 0)] for response in responses)
    lost = sum(map(len, responses)) - sum(map(len, shorter))
    return kept, shorter, Cut(surplus, lost)


def tokenize(
    rows: Iterable[RawRow],
    tokenizer: Any,
    *,
    join: str,
    chat_template: str | None,
    max_tokens: int,
    max_prompt_tokens: int,
    truncate_prompt: str,
    on_bad_row: str,
    truncate_response: str = "rest",
    now: str = "",
    drops: tuple[str, ...] = (),
) -> tuple[Records, TokenCounts]:
    """Encodes and cuts all rows.

    Args:
      rows: checked rows; read a few at a time.
      tokenizer: as `load_tokenizer` returns.
      join: `separate` tokenizes prompt and responses apart; `joint` together, and
        the prompt is what all of them begin with. Chats are always joint.
      chat_template: its text; None = the tokenizer's own.
      max_tokens: of a prompt with one response.
      max_prompt_tokens: of the prompt, where it must be cut.
      truncate_prompt: `keep_end` or `keep_start`.
      on_bad_row: `error` or `drop`.
      truncate_response: `rest` or `fixed`; see `room` of `truncate`.
      now: what a chat template takes for the present, ISO 8601; '' = the present.
      drops: see `records.Faults`.

    Returns:
      Records in order, with the rows' `index`, and the counts.

    Raises:
      DataError: on bad rows under `error`; if no row is left.
      ModelError: if a chat has no template, or strings have no EOS to end with.
    """
    shorten = partial(
        truncate,
        max_tokens=max_tokens,
        max_prompt_tokens=max_prompt_tokens,
        side=truncate_prompt,
        room=truncate_response,
    )
    gathered, faults, rows, cuts = Gathered(), Faults(drops), iter(rows), []
    bos, twice, others = tokenizer.bos_token_id, list[str](), list[str]()
    while chunk := list(islice(rows, CHUNK)):
        rows_ids = encode_all(
            chunk, tokenizer, join=join, chat_template=chat_template, now=now
        )
        for row, encoded in zip(chunk, rows_ids, strict=True):
            try:
                (prompt, responses, scored), cut = _cut(encoded, shorten)
            except BadRow as bad:
                faults.add(row.where, bad)
                continue
            others += [row.where] * _scores_others(row)
            twice += [row.where] * (bos is not None and prompt[:2] == [bos, bos])
            unrated = (math.nan,) * len(responses)  # where no loss reads ratings
            judged = {"labels": row.labels, "ratings": row.ratings or unrated}
            gathered.add(
                row.index,
                (prompt, *responses),
                judged,
                ranked=row.ranked,
                scored=scored,
            )
            cuts += [cut] if any(cut) else []
    kept = len(gathered)
    dropped = faults.settle(read=kept + len(faults), on_bad_row=on_bad_row)
    lost = sum(cut.prompt for cut in cuts), sum(cut.responses for cut in cuts)
    _warn(twice, others)
    counts = TokenCounts(kept, dropped, len(cuts), *lost, len(twice), len(others))
    return gathered.records(), counts


def _warn(twice: Sequence[str], others: Sequence[str]) -> None:
    """Warns of rows, by where they stand, that hold a second BOS or others' turns."""
    if twice:
        logging.warning(
            "BOS stands twice before %d prompts, first before that of %s: the text "
            "holds one, the tokenizer or template adds another; take it off the text",
            len(twice),
            twice[0],
        )
    if others:
        logging.warning(
            "turns of others stand behind the prompts of %d rows, first of %s, and are "
            "scored with the assistant's, as TRL does; data.scored='assistant' leaves "
            "them out",
            len(others),
            others[0],
        )


def _cut(
    encoded: Encoded | BadRow, shorten: Callable[..., tuple[Ids, tuple[Ids, ...], Cut]]
) -> tuple[Encoded, Cut]:
    if isinstance(encoded, BadRow):
        raise encoded
    prompt, responses, cut = shorten(encoded.prompt, encoded.responses)
    both = zip(encoded.scored, responses, strict=False)
    scored = tuple(mask[: len(response)] for mask, response in both)
    if not prompt or not all(responses) or not all(map(any, scored)):
        detail = "data.max_tokens and data.max_prompt_tokens leave nothing of a part"
        raise BadRow("cut to nothing", detail)
    if len(set(map(tuple, responses))) < len(responses):
        when = "after cutting (data.max_tokens)" if cut.responses else "once tokenized"
        raise BadRow(f"identical {when}", f"two responses are identical {when}")
    return Encoded(prompt, responses, scored), cut


def _scores_others(row: RawRow) -> bool:
    """Says whether turns that are not the assistant's count beside its own."""
    if isinstance(row.prompt, str) or row.scored != "completion":
        return False
    chats: Any = row.responses
    return any(m["role"] != "assistant" for chat in chats for m in chat)


def _check_files(folder: str) -> None:
    """Refuses what a tokenizer would wait for, or fill the memory with."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    read = [name for name in sorted(names) if name.endswith(ENDINGS)]
    wrong = {name: unfit(os.path.join(folder, name), LARGEST) for name in read}
    if wrong := [f"{name} {why}" for name, why in wrong.items() if why]:
        raise ModelError(f"tokenizer.path={folder!r}: {', '.join(wrong)}")


def _check_configs(folder: Path) -> None:
    """Refuses, before transformers reads them, files that ask it for code or lists."""
    for path in (folder / name for name in CONFIGS):
        try:
            config = read_json(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} is no JSON: {error}") from error
        if isinstance(config, dict) and "auto_map" in config:
            raise ModelError(
                f"{path} holds `auto_map`: dpo_jax refuses remote code; use a "
                "tokenizer that transformers knows, or remove the key"
            )
        if endless := _endless(config):
            raise ModelError(
                f"{path}: {', '.join(endless)} is more than {MOST_LAYERS}, and "
                "transformers makes a list of as many; give the model's own number"
            )


def _endless(config: Any) -> list[str]:
    """Lists the attributes that count layers or labels, and count too many."""
    parts = [config, *config.values()] if isinstance(config, dict) else []
    return [
        f"{name}={str(value)[:40]}"
        for part in parts
        if isinstance(part, dict)
        for name, value in part.items()
        if ("layer" in name or "label" in name)
        and isinstance(value, int | float)
        and value > MOST_LAYERS
    ]
