"""The objective's loss and metrics over a whole set, every record exactly once."""

from collections.abc import Callable, Iterable

import jax
import numpy as np

from dpo_jax import columns
from dpo_jax.types import Batch, Columns, Counts, Hyper, Objective, Reports, Stats

ScoreFn = Callable[[Batch], tuple[Columns, Reports, Counts]]


def evaluate(
    batches: Iterable[Batch],
    *,
    score: ScoreFn,
    objective: Objective,
    stats: Stats,
    hyper: Hyper,
) -> dict[str, float]:
    """Scores all batches, then computes the loss once over the set.

    Losses that couple the batch thus couple the whole set, and the result does not
    depend on how the set was cut into batches. Running statistics are those of the
    training; evaluation does not move them.

    Args:
      batches: annotated microbatches that hold each record once.
      score: jitted `objective.score` and `objective.counts`, results on every host.
      objective: whose `loss` is computed.
      stats: running statistics as training left them.
      hyper: float hyper-parameters.

    Returns:
      {metric: mean}.
    """
    parts: list[Columns] = []
    reported: list[Reports] = []
    totals: dict[str, float] = {}
    slots = 0
    for batch in batches:
        part, reports, counts = jax.device_get(score(batch))
        reported.append(reports)
        lead = jax.tree.map(lambda leaf: leaf[None], part)
        parts.append(columns.flat(lead, slots))
        slots += part.lengths.size
        for name, count in counts.items():
            totals[name] = totals.get(name, 0.0) + float(count)
    whole = columns.concatenate(parts)
    counted = {name: np.float32(total) for name, total in totals.items()}
    reports = jax.tree.map(lambda *parts: np.sum(parts, axis=0), *reported)
    loss, sums = objective.loss(whole, reports, stats, hyper, counted)
    means = {name: float(s) / max(float(n), 1.0) for name, (s, n) in sums.items()}
    of_set = {name: float(v) for name, v in objective.of_set(whole).items()}
    return {"loss": float(loss), **means, **of_set}
