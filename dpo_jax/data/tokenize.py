"""Turns rows of text into token ids of a prompt and its responses.

BOS stands where the tokenizer or the chat template puts it; EOS ends every string
response once; a chat ends as its template ends. Masks follow from the lengths made
here, never from ids. This room knows tokenizers, but no arrays of a batch and no jax.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpo_jax.data.records import RawRow, settle
from dpo_jax.data.sources.files import BadRow
from dpo_jax.errors import ConfigError, DataError, ModelError, unknown
from dpo_jax.types import Record

CHUNK = 4096  # texts handed to the tokenizer at once
CONFIGS = ("config.json", "tokenizer_config.json", "processor_config.json")
SIDES = ("keep_end", "keep_start")
ROOMS = ("rest", "fixed")

Ids = list[int]
Encoded = tuple[Ids, tuple[Ids, ...]]


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

    def render(self) -> str:
        """Returns `cut 2 of 9 rows (30 prompt, 5 response tokens)`."""
        tokens = f"{self.prompt_tokens_cut} prompt, {self.response_tokens_cut} response"
        return f"cut {self.cut_rows} of {self.kept} rows ({tokens} tokens)"

    def as_dict(self) -> dict[str, Any]:
        """Returns what data.json holds."""
        return self._asdict()


def load_tokenizer(path: str, revision: str = "") -> Any:
    """Loads a tokenizer from a folder or the hub.

    Args:
      path: an HF folder or hub id.
      revision: of the hub; '' = its newest.

    Raises:
      ModelError: if it cannot be loaded, asks for remote code or has no EOS token.
    """
    folder = Path(path)
    _refuse_remote_code(folder)
    if not folder.is_dir() and (path.startswith((".", "/", "~")) or folder.exists()):
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
    _check_eos(tokenizer, path)
    return tokenizer


def read_chat_template(path: str) -> str | None:
    """Reads the file of `data.chat_template`, or raises DataError; '' gives None."""
    if not path:
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        what = f"data.chat_template={path!r} cannot be read"
        raise DataError(f"{what}: {error}") from error


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


def encode(
    row: RawRow, tokenizer: Any, *, join: str, chat_template: str | None
) -> Record:
    """Encodes one row, uncut; arguments and errors are those of `tokenize`."""
    (encoded,) = _encode_all([row], tokenizer, join=join, chat_template=chat_template)
    if isinstance(encoded, BadRow):
        raise DataError(f"{row.where}: {encoded.detail}")
    return _record(row, *encoded)


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
    rows: Sequence[RawRow],
    tokenizer: Any,
    *,
    join: str,
    chat_template: str | None,
    max_tokens: int,
    max_prompt_tokens: int,
    truncate_prompt: str,
    on_bad_row: str,
    truncate_response: str = "rest",
) -> tuple[list[Record], TokenCounts]:
    """Encodes and cuts all rows.

    Args:
      rows: checked rows.
      tokenizer: as `load_tokenizer` returns.
      join: `separate` tokenizes prompt and responses apart; `joint` together, and
        the prompt is what all of them begin with. Chats are always joint.
      chat_template: its text; None = the tokenizer's own.
      max_tokens: of a prompt with one response.
      max_prompt_tokens: of the prompt, where it must be cut.
      truncate_prompt: `keep_end` or `keep_start`.
      on_bad_row: `error` or `drop`.
      truncate_response: `rest` or `fixed`; see `room` of `truncate`.

    Returns:
      Records in order, with the rows' `index`, and the counts.

    Raises:
      DataError: on bad rows under `error`; if no row is left.
      ModelError: if a chat has no template, or strings have no EOS to end with.
      ConfigError: if an option is not known.
    """
    _check_option("data.truncate_prompt", truncate_prompt, SIDES)
    _check_option("data.truncate_response", truncate_response, ROOMS)
    _check_option("data.on_bad_row", on_bad_row, ("error", "drop"))
    shorten = partial(
        truncate,
        max_tokens=max_tokens,
        max_prompt_tokens=max_prompt_tokens,
        side=truncate_prompt,
        room=truncate_response,
    )
    records, cuts, faults = [], [], []
    encoded_rows = _encode_all(rows, tokenizer, join=join, chat_template=chat_template)
    for row, encoded in zip(rows, encoded_rows, strict=True):
        try:
            record, cut = _cut(row, encoded, shorten)
        except BadRow as bad:
            faults.append((row.where, bad))
        else:
            records.append(record)
            cuts.append(cut)
    dropped = settle(faults, read=len(rows), on_bad_row=on_bad_row)
    cut_rows = sum(cut != (0, 0) for cut in cuts)
    lost = sum(cut.prompt for cut in cuts), sum(cut.responses for cut in cuts)
    return records, TokenCounts(len(records), dropped, cut_rows, *lost)


def _cut(
    row: RawRow, encoded: Encoded | BadRow, shorten: Callable[..., Any]
) -> tuple[Record, Cut]:
    if isinstance(encoded, BadRow):
        raise encoded
    prompt, responses, cut = shorten(*encoded)
    if not prompt or not all(responses):
        detail = "data.max_tokens and data.max_prompt_tokens leave nothing of a part"
        raise BadRow("cut to nothing", detail)
    return _record(row, prompt, responses), cut


def _record(row: RawRow, prompt: Ids, responses: Sequence[Ids]) -> Record:
    arrays = tuple(np.asarray(ids, np.int32) for ids in (prompt, *responses))
    better = () if row.labels else tuple(combinations(range(len(responses)), 2))
    columns = {"labels": row.labels, "ratings": row.ratings}
    known = {name: values for name, values in columns.items() if values}
    record = Record(row.index, arrays[0], arrays[1:], better, row.ranked)
    return record._replace(response=known)


def _encode_all(
    rows: Sequence[RawRow], tokenizer: Any, *, join: str, chat_template: str | None
) -> list[Encoded | BadRow]:
    """Encodes strings and chats in bulk and puts them back into the rows' order."""
    _check_option("data.join", join, JOINS)
    chats = [row for row in rows if not isinstance(row.prompt, str)]
    strings = [row for row in rows if isinstance(row.prompt, str)]
    if strings:
        _check_eos(tokenizer, tokenizer.name_or_path)
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
        own = tuple(_ended(next(responses), tokenizer) for _ in row.responses)
        yield _without_end(prompt, tokenizer), own


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
    texts = [_render_all(row, tokenizer, chat_template) for row in rows]
    flat = [text for row in texts if not isinstance(row, BadRow) for text in row]
    ids = iter(_ids(tokenizer, flat, special=False))
    for row in texts:
        if isinstance(row, BadRow):
            yield row
        else:
            prompt, *wholes = (next(ids) for _ in row)
            yield _split(prompt, wholes)


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
    found: list[Ids] = []
    for start in range(0, len(texts), CHUNK):
        try:
            found += tokenizer(
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
    return found


def _check_option(field: str, value: str, known: Any) -> None:
    if value not in known:
        raise ConfigError(unknown(field, value, known))


def _check_eos(tokenizer: Any, path: str) -> None:
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {path!r} has no EOS token to end responses with; name "
            "one as eos_token in its tokenizer_config.json"
        )


def _refuse_remote_code(folder: Path) -> None:
    for path in (folder / name for name in CONFIGS):
        try:
            config = json.loads(path.read_bytes())
        except OSError:
            continue
        except ValueError as error:
            raise ModelError(f"{path} is no JSON: {error}") from error
        if isinstance(config, dict) and "auto_map" in config:
            raise ModelError(
                f"{path} holds `auto_map`: dpo_jax refuses remote code; use a "
                "tokenizer that transformers knows, or remove the key"
            )


JOINS: dict[str, Callable[[Sequence[RawRow], Any], Iterator[Encoded]]] = {
    "separate": _encode_separately,
    "joint": _encode_jointly,
}
