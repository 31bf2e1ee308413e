"""Mismatched responses: behind each prompt, the response of another.

KTO estimates KL(policy‖ref) from prompts with responses that were not written for them.
This room works on the tokenized records of one whole step, or of a whole evaluation
set, before anything is laid out; it knows no layouts, microbatches or hosts, so what it
makes depends on none.
"""

from collections.abc import Sequence

import numpy as np

from dpo_jax.data.layouts import scored_of
from dpo_jax.data.tokens import SCORED
from dpo_jax.types import Record


def mismatch(records: Sequence[Record], *, max_tokens: int) -> list[Record]:
    """Gives each record, as its last response, one that belongs to another prompt.

    It is the first response of the next of the records, the first following the last;
    records of the same prompt are passed over. Where all have the same, nothing is
    borrowed.

    Args:
      records: of a step or a set, with a label for each response.
      max_tokens: of a prompt with one response; what is borrowed is cut to fit.

    Returns:
      As many records in the same order; the columns of what is borrowed are 0.

    Source: arXiv:2402.01306 section 4.1, the mismatched pairs (x, y') of its z0.
    """
    return [
        record if lender is None else _lend(record, records[lender], max_tokens)
        for record, lender in zip(records, _lenders(records), strict=True)
    ]


def _lenders(records: Sequence[Record]) -> list[int | None]:
    """Finds for each record the next one of another prompt, going round once."""
    prompts = [np.asarray(record.prompt, np.int32).tobytes() for record in records]
    count = len(records)
    lenders: list[int | None] = [None] * count
    following = None
    for at in reversed(range(2 * count - 1)):
        here, after = at % count, (at + 1) % count
        if prompts[after] != prompts[here]:
            following = after
        lenders[here] = following
    return lenders


def _lend(record: Record, lender: Record, max_tokens: int) -> Record:
    room = max_tokens - len(record.prompt)
    assert room > 0 and "labels" in record.response, record.index
    scored = (*scored_of(record), scored_of(lender)[0][:room])
    return record._replace(
        responses=(*record.responses, lender.responses[0][:room]),
        token={SCORED: scored} if SCORED in record.token else {},
        response={name: (*each, 0.0) for name, each in record.response.items()},
    )
