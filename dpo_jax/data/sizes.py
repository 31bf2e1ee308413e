"""Sizes that are compiled: how long rows are, and how many of them a step may have."""

import math
from collections.abc import Sequence

import numpy as np

MOST_BUCKETS = 6
SHORT_RUN = 32  # steps; a shorter run compiles one number of rows
WORTH_COMPILING = 0.25  # steps of the most rows: what a further bucket must save
MAX_CHOSEN_TOKENS = 2048
SHORT_ROW = 128  # tokens; what compiles fastest, and enough where two documents fit


def round_up(value: int, multiple: int) -> int:
    """Returns the smallest multiple that is at least `value`."""
    return -(-value // multiple) * multiple


def row_token_choices(layout: str, longest: int) -> list[int]:
    """Lists sizes of T to choose from, ascending: sizes that tile well.

    Args:
      layout: padded rows hold one document, so that longer ones are waste.
      longest: tokens of the longest document.
    """
    most = SHORT_ROW if 2 * longest <= SHORT_ROW else MAX_CHOSEN_TOKENS
    most = longest if layout == "padded" else max(longest, most)
    sizes = range(round_up(longest, 8), round_up(most, 8) + 1, 8)
    return sorted({round_up(size, 128 if size > 128 else 8) for size in sizes})


def row_cost(rows: int, tokens: int, even_tokens: float) -> float:
    """Weighs rows: every place costs, and one in a long row more if attention is dense.

    Args:
      rows: B.
      tokens: T.
      even_tokens: length of a row at which attention costs as much as all the rest;
        infinite where it skips what lies between documents.
    """
    return rows * tokens * (1.0 + tokens / even_tokens)


def row_buckets(
    counts: Sequence[int] | np.ndarray, shards: int, most: int = 0
) -> tuple[int, ...]:
    """Chooses the numbers of rows to compile for, so that the run has fewest in all.

    Args:
      counts: rows that each step's plan needs.
      shards: devices that rows are spread over; the numbers are multiples of it.
      most: numbers at most. 0 = `MOST_BUCKETS`, of which each must save as many rows as
        `WORTH_COMPILING` of the largest steps have, and one in a run shorter than
        `SHORT_RUN`.

    Returns:
      Numbers in ascending order; the last holds every step.
    """
    needed = [round_up(int(count), shards) for count in counts]
    sizes, steps = np.unique(needed, return_counts=True)
    if not most and len(needed) < SHORT_RUN:
        return (int(sizes[-1]),)
    price = 0.0 if most else WORTH_COMPILING * sizes[-1]
    before = np.concatenate([[0], np.cumsum(steps)])
    # least[i]: rows and price of the steps of the i smallest sizes, in buckets best[i]
    least, best = np.where(before == 0, 0.0, math.inf), [()] * len(before)
    choices = []
    for _ in range(min(most or MOST_BUCKETS, len(sizes))):
        totals = least[:, None] + sizes * (before[1:] - before[:, None]) + price
        totals[np.tri(len(before), len(sizes), -1, bool)] = math.inf  # would hold none
        begins = zip(totals.argmin(0), sizes.tolist(), strict=True)  # the last bucket
        best = [(), *((*best[i], size) for i, size in begins)]
        least = np.append(math.inf, totals.min(0))
        choices.append((least[-1], best[-1]))
    return min(choices)[1]


def bucketed(needed: np.ndarray, buckets: tuple[int, ...]) -> np.ndarray:
    """Rounds numbers of rows up to the next bucket."""
    return np.array(buckets)[np.searchsorted(buckets, needed)]
