"""Responses ranked from best to worst.

A ranking is also a set of pairs, every better response with every worse one; the
metrics are those of the pairs.
"""

import jax
import jax.numpy as jnp

from dpo_jax.objectives import preference
from dpo_jax.objectives.judged import Kind
from dpo_jax.types import Array, Columns, Hyper, ListLogps, Sums


def take_lists(columns: Columns) -> tuple[ListLogps, Array]:
    """Takes the responses of each ranking side by side; N = B·M."""
    assert columns.groups is not None
    index = columns.groups.reshape(-1, columns.groups.shape[-1])  # [N, K]
    mask = index >= 0
    response = columns.response
    ratios = response["logps"] - jax.lax.stop_gradient(response["ref_logps"])
    at = lambda values: jnp.where(mask, values.reshape(-1)[index], 0.0)  # noqa: E731
    rated = response.get("ratings")
    record = ListLogps(at(ratios), mask, None if rated is None else at(rated))
    return record, mask[:, 0]


def metrics(columns: Columns, record: ListLogps, hyper: Hyper) -> Sums:
    """Averages what the field reports of pairs over all pairs of the rankings."""
    del record
    return preference.metrics(columns, preference.gather_pairs(columns), hyper)


LISTS = Kind("rankings", "lists", take_lists, metrics)
