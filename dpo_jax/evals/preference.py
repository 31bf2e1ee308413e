"""The objective's loss and metrics over a whole set, every record exactly once."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from dpo_jax import columns
from dpo_jax.types import Batch, Columns, Counts, Hyper, Objective, Reports, Stats

ScoreFn = Callable[[Batch], tuple[Columns, Reports, Counts]]


class Scored(NamedTuple):
    """What was scored of a microbatch, on the host.

    Attributes:
      columns: of its responses.
      reports: of the trunk.
      counts: what losses may be divided by.
    """

    columns: Columns
    reports: Reports
    counts: Counts


def evaluate(
    batches: Iterable[Batch],
    *,
    score: ScoreFn,
    objective: Objective,
    stats: Stats,
    hyper: Hyper,
    owners: Sequence[str] = (),
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
      owners: names the source of each batch; () = there is one.

    Returns:
      {metric: mean}; and of several sources {source/metric: mean}, each as if it were
      the whole set.
    """
    scored = [Scored(*jax.device_get(score(batch))) for batch in batches]

    def over(parts: Sequence[Scored]) -> dict[str, float]:
        return measured(parts, objective=objective, stats=stats, hyper=hyper)

    values = over(scored)
    for owner in dict.fromkeys(owners):
        both = zip(scored, owners, strict=True)
        own = over([part for part, name in both if name == owner])
        values |= {f"{owner}/{name}": value for name, value in own.items()}
    return values


def measured(
    parts: Sequence[Scored], *, objective: Objective, stats: Stats, hyper: Hyper
) -> dict[str, float]:
    """Computes the loss and metrics over all that was scored; as `evaluate` else."""
    flat: list[Columns] = []
    totals: dict[str, float] = {}
    slots = 0
    for part in parts:
        lead = jax.tree.map(lambda leaf: leaf[None], part.columns)
        flat.append(columns.flat(lead, slots))
        slots += part.columns.lengths.size
        for name, count in part.counts.items():
            totals[name] = totals.get(name, 0.0) + float(count)
    whole = columns.concatenate(flat)
    counted = {name: np.float32(total) for name, total in totals.items()}
    reports = jax.tree.map(
        lambda *each: np.sum(each, axis=0), *(part.reports for part in parts)
    )
    loss, sums = objective.loss(whole, reports, stats, hyper, counted)
    means = {name: float(s) / max(float(n), 1.0) for name, (s, n) in sums.items()}
    of_set = {name: float(v) for name, v in objective.of_set(whole).items()}
    return {"loss": float(loss), **means, **of_set}
