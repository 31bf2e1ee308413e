"""The prompts that an on-policy run samples, and what the data say beside them."""

from collections.abc import Mapping
from typing import Any

from dpo_jax.data import mixture, tokenize
from dpo_jax.data.encode import encode_prompt
from dpo_jax.data.prepare import Prepared, Questions, Source, questions_of
from dpo_jax.data.records import Faults, RowCounts
from dpo_jax.data.sources.files import BadRow
from dpo_jax.data.tokens import Gathered, fingerprint
from dpo_jax.wiring.data import Data
from dpo_jax.wiring.reading import Found


def load_prompts(
    found: Mapping[str, Found], name: str, section: Mapping[str, Any], tokenizer: Any
) -> tuple[Data, Questions]:
    """Reads and tokenizes the prompts of data.train.

    Args:
      found: its sources by name, in order.
      name: of them all.
      section: `config.data`.
      tokenizer: of the policy.

    Returns:
      Their records, and the prompts with the columns of all sources, None where a row
      has none.

    Raises:
      DataError: if a source or a row is bad (under data.on_bad_row='error').
    """
    parts, rows = dict[str, Prepared](), list[Any]()
    for source, each in found.items():
        parts[source], kept = _prompts_of(each.source, section, tokenizer)
        rows += kept
    weights = [each.weight for each in found.values() if each.weight is not None]
    read, made_of = mixture.together(parts, weights)
    report = {"train": {"source": name, **read.report}}
    split = {"train": made_of}
    data = Data(tokenizer, read.records, [], report, read.fingerprint, split)
    return data, questions_of(rows)


def _prompts_of(
    how: Source, section: Mapping[str, Any], tokenizer: Any
) -> tuple[Prepared, list[Any]]:
    """Reads the prompts of one source, and its rows that are kept.

    A prompt beyond data.max_prompt_tokens is a bad row: cut, it would be another for
    the policy than for the reward.
    """
    rows, counts = how.asked()
    template = tokenize.read_chat_template(section["chat_template"], tokenizer)
    found, kept, faults = Gathered(), list[Any](), Faults()
    for row, fields in rows:
        ids = encode_prompt(
            row,
            tokenizer,
            join=section["join"],
            chat_template=template,
            now=section["now"],
        )
        if len(ids) > section["max_prompt_tokens"]:
            detail = (
                f"the prompt has {len(ids)} tokens, beyond data.max_prompt_tokens="
                f"{section['max_prompt_tokens']}"
            )
            faults.add(row.where, BadRow("prompt too long", detail))
            continue
        found.add(row.index, (ids,), {}, ranked=False)
        kept.append((row, fields))
    long = faults.settle(read=len(rows), on_bad_row=section["on_bad_row"])
    total = RowCounts(counts.read, len(found), {**counts.dropped, **long})
    report = {**total._asdict(), "summary": total.render(), "unread_columns": []}
    records = found.records()
    return Prepared(records, report, fingerprint(records)), kept
