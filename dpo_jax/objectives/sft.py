"""Completions: every response counts as a chosen one, judged by losses of its tokens.

The record of a loss is that of pairs without a rejected response: what a loss may read
here are `chosen`, `chosen_lengths` and `mask`.
"""

import jax.numpy as jnp

from dpo_jax.objectives import terms
from dpo_jax.objectives.judged import Kind
from dpo_jax.types import Array, Batch, Columns, Counts, Hyper, PairLogps, Sums


def take_completions(columns: Columns) -> tuple[PairLogps, Array]:
    """Takes the responses one by one, N = B·R, and which of them are there."""
    logps, lengths = columns.response["logps"].reshape(-1), columns.lengths.reshape(-1)
    mask, none = lengths > 0, None
    record = PairLogps(logps, none, none, none, lengths, none, mask)
    if "prompt_logps" in columns.response:
        prompts = columns.response["prompt_logps"].reshape(-1)
        record = record._replace(chosen_prompt=prompts)
    return record, mask


def metrics(columns: Columns, record: PairLogps, hyper: Hyper) -> Sums:
    """Averages over the responses, and over their tokens."""
    del hyper
    means = {"logps/chosen": record.chosen, "lengths/chosen": record.chosen_lengths}
    sums = terms.masked_means(means, columns.lengths.reshape(-1) > 0)
    return sums | terms.token_metrics(columns)


def counts(batch: Batch) -> Counts:
    """Counts all responses as chosen ones."""
    counted, lengths = terms.counts(batch), terms.lengths(batch)
    whole = jnp.where(lengths > 0, lengths + terms.prompt_lengths(batch), 0.0).sum()
    pairs = (lengths > 0).sum().astype(jnp.float32)
    chosen = {"chosen_tokens": counted["tokens"], "whole_tokens": whole}
    return counted | chosen | {"pairs": pairs}


COMPLETIONS = Kind(
    "completions",
    "pairs",
    take_completions,
    metrics,
    counts,
    per="chosen_tokens",
    reference=False,
)
