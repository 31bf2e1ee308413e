"""The objective's loss and metrics over a whole set, every record exactly once."""

from collections.abc import Callable, Iterable

import numpy as np

from dpo_jax.types import Batch, Columns, Objective, Params

ScoreFn = Callable[[Params, Batch], Columns]


def evaluate(
    params: Params,
    batches: Iterable[Batch],
    *,
    score: ScoreFn,
    objective: Objective,
    hyper: dict,
) -> dict[str, float]:
    """Scores all batches, then computes the loss once over the set.

    Losses that couple the batch thus couple the whole set, and the result does not
    depend on how the set was cut into batches.

    Args:
      params: the policy's.
      batches: annotated microbatches that hold each record once.
      score: jitted `objective.score`, its result on every host.
      objective: whose `loss` is computed.
      hyper: float hyper-parameters.

    Returns:
      {metric: mean}.
    """
    parts: list[Columns] = []
    slots = 0
    for batch in batches:
        part = Columns(
            *(None if x is None else np.asarray(x) for x in score(params, batch))
        )
        pairs = np.where(part.pairs >= 0, part.pairs + slots, -1)
        slots += part.logps.size
        parts.append(_flat(part._replace(pairs=pairs)))
    whole = Columns(*(_join(values) for values in zip(*parts, strict=True)))
    sums, _ = objective.loss(whole, {}, hyper)
    return {name: float(s) / max(float(n), 1.0) for name, (s, n) in sums.items()}


def _flat(part: Columns) -> Columns:
    """Lays rows out as one slot each, so that batches of any R join."""
    values = [None if x is None else x.reshape(-1, 1) for x in part[:-1]]
    return Columns(*values, pairs=part.pairs.reshape(-1, 1, 2))


def _join(values: tuple) -> np.ndarray | None:
    return None if values[0] is None else np.concatenate(values)
