"""Lays records out as the loader does, one microbatch of them and no wider than due."""

import numpy as np

from dpo_jax.data import layouts, planning


def longest(layout, records):
    """Counts the tokens of the longest document."""
    documents = planning.LAYOUTS[layout].split(layouts.measure(records))
    return int(documents.tokens.max())


def rows_of(layout, records, row_tokens=0, **changed):
    """Plans and fills rows.

    Args:
      layout: a name of `planning.LAYOUTS`.
      records: what to lay out.
      row_tokens: T; 0 = the shortest that fits.
      changed: fields of the shape that are not the smallest.

    Returns:
      (rows of documents, shape, batch).
    """
    table = layouts.measure(records)
    row_tokens = row_tokens or longest(layout, records)
    together = np.zeros(len(records), np.int32)
    plan = planning.plan(layout, table, together, row_tokens)
    shape = layouts.shape_of(plan, row_tokens, int(table.groups.max()))
    shape, rows = shape._replace(**changed), layouts.rows_of(plan)
    return rows, shape, layouts.fill(rows, records, shape)
