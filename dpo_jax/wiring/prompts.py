"""The prompts that an on-policy run samples, and what the data say beside them."""

from collections.abc import Iterator, Mapping
from typing import Any

from dpo_jax.data import records, tokenize
from dpo_jax.data.columns import Text
from dpo_jax.data.prepare import Questions, Source, questions_of
from dpo_jax.data.records import Faults, Located
from dpo_jax.data.sources.files import BadRow
from dpo_jax.data.tokens import fingerprint
from dpo_jax.types import Record
from dpo_jax.wiring import generation
from dpo_jax.wiring.data import Data


def load_prompts(
    how: Source, name: str, section: Mapping[str, Any], tokenizer: Any
) -> tuple[Data, Questions]:
    """Reads and tokenizes the prompts of data.train.

    A prompt beyond data.max_prompt_tokens is a bad row: cut, it would be another for
    the policy than for the reward.

    Args:
      how: rows are read and checked.
      name: of the source.
      section: `config.data`.
      tokenizer: of the policy.

    Raises:
      DataError: if the source or a row is bad (under data.on_bad_row='error').
    """
    fields = list[dict[str, Any]]()
    reading = how.check(_kept(how.read(), fields))
    template = tokenize.read_chat_template(section["chat_template"], tokenizer)
    found, texts, kept, faults = list[Record](), list[Text](), list[int](), Faults()
    for row in reading:
        ids = generation.encode(
            tokenizer,
            row.prompt,
            join=section["join"],
            template=template,
            now=section["now"],
        )
        if len(ids) > section["max_prompt_tokens"]:
            detail = (
                f"the prompt has {len(ids)} tokens, beyond data.max_prompt_tokens="
                f"{section['max_prompt_tokens']}"
            )
            faults.add(row.where, BadRow("prompt too long", detail))
            continue
        found.append(Record(row.index, ids, ()))
        texts.append(row.prompt)
        kept.append(row.index)
    read = len(found) + len(faults)
    dropped = faults.settle(read=read, on_bad_row=section["on_bad_row"])
    dropped = {**reading.counts.dropped, **dropped}
    total = records.RowCounts(reading.counts.read, len(found), dropped)
    report = {"source": name, **total._asdict(), "summary": total.render()}
    data = Data(tokenizer, found, [], {"train": report}, fingerprint(found))
    told = [fields[at] for at in kept]
    return data, questions_of(list(zip(texts, told, strict=True)))


def _kept(rows: Located, fields: list[dict[str, Any]]) -> Iterator[Any]:
    """Passes rows on, and keeps what they say."""
    for where, said in rows:
        fields.append(said if isinstance(said, dict) else {})
        yield where, said
