"""What became of the trials of a sweep, read from their run folders alone."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dpo_jax.errors import NonFiniteError
from dpo_jax.report import runs
from dpo_jax.report.arms import Entry
from dpo_jax.report.runs import MEASURED, Run, series

FALLBACK = ("rollouts/reward", "rewards/accuracies")  # where prompts are not kept


class Outcome(NamedTuple):
    """What a finished trial was measured to be.

    Attributes:
      measure: what rewards are called.
      prompts: digest of the prompts it was sampled on; '' = a mean alone is known.
      values: f64[3, P], reward, KL in nats and length in tokens of each prompt; NaN =
        not known.
      rose: whether its last training loss lies above its first.
    """

    measure: str
    prompts: str
    values: np.ndarray
    rose: bool


def diverged(entry: Entry) -> bool:
    """Says whether a trial's last launch ended for a loss that is not finite."""
    return bool(entry.state) and entry.code == NonFiniteError.code


def outcomes_of(entries: Sequence[Entry]) -> tuple[dict[str, Outcome], list[str]]:
    """Reads the finished trials.

    All that are compared were measured on the same prompts by the same measure: that
    of most of them. Where some keep no prompts, only means are compared.

    Returns:
      Name of a trial -> what it was measured to be, and a line for each finished trial
      that is left out.

    Raises:
      DataError: if a file of a run cannot be read.
    """
    done = [entry for entry in entries if not entry.state]
    folders = {entry.name: runs.load(entry.folder) for entry in done}
    found = {name: of_prompts(run) for name, run in folders.items()}
    if not all(found.values()):
        found = {name: of_means(run) for name, run in folders.items()}
    kept = {name: outcome for name, outcome in found.items() if outcome is not None}
    kinds = [(o.measure, o.prompts, o.values.shape) for o in kept.values()]
    usual = max(kinds, key=kinds.count, default=None)
    lines = []
    for name, outcome in found.items():
        if outcome is None:
            lines.append(f"{name} was not evaluated")
        elif (outcome.measure, outcome.prompts, outcome.values.shape) != usual:
            lines.append(f"{name} was measured on other prompts or by another reward")
            del kept[name]
    return kept, lines


def of_prompts(run: Run) -> Outcome | None:
    """Reads what a run keeps of each prompt; None where it keeps nothing."""
    if not run.rollouts:
        return None
    policy = run.rollouts["policy"]
    columns = [[_number(value) for value in policy[name]] for name in MEASURED]
    return Outcome(
        run.rollouts["measure"], run.rollouts["prompts"], np.array(columns), _rose(run)
    )


def of_means(run: Run) -> Outcome | None:
    """Reads the means of a run's last evaluation; None where there was none."""
    for name in FALLBACK:
        if values := series(run, "eval", name)[1]:
            rest = ("rollouts/kl", "rollouts/length")
            more = [(series(run, "eval", key)[1] or [math.nan])[-1] for key in rest]
            return Outcome(name, "", np.array([[values[-1], *more]]).T, _rose(run))
    return None


def _rose(run: Run) -> bool:
    """Says whether the training loss ended above its start, or not finite."""
    lines = [line for line in run.metrics if line.get("split", "train") == "train"]
    losses = [float(line["loss"]) for line in lines if "loss" in line]
    return bool(losses) and not losses[-1] <= losses[0]


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
