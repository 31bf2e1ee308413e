"""The prompts that an on-policy run samples, and what the data say beside them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dpo_jax.data import tokenize
from dpo_jax.data.encode import encode_prompt
from dpo_jax.data.prepare import Questions, Source, questions_of
from dpo_jax.data.records import Faults, RowCounts
from dpo_jax.data.sources.files import BadRow
from dpo_jax.data.tokens import fingerprint
from dpo_jax.types import Record
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
    rows, counts = how.asked()
    template = tokenize.read_chat_template(section["chat_template"], tokenizer)
    found, kept, faults = list[Record](), list[Any](), Faults()
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
        found.append(Record(row.index, np.asarray(ids, np.int32), ()))
        kept.append((row, fields))
    long = faults.settle(read=len(rows), on_bad_row=section["on_bad_row"])
    total = RowCounts(counts.read, len(found), {**counts.dropped, **long})
    report = {"source": name, **total._asdict(), "summary": total.render()}
    data = Data(tokenizer, found, [], {"train": report}, fingerprint(found))
    return data, questions_of(kept)
