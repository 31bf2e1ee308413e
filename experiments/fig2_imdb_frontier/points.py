"""What the trials of figure 2 measured: a point an evaluation, and the bounds on all.

Everything is read from run folders; nothing here imports jax.
"""

import csv
import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dpo_jax.report import runs
from dpo_jax.report.runs import Run

METHODS = {  # how the name of a trial begins -> what the method is called
    "dpo": "DPO",
    "dpo_bt": "DPO, Bradley-Terry labels",
    "unlikelihood": "Unlikelihood",
    "preferred_ft": "Preferred-FT",
    "ppo": "PPO, learned reward",
    "ppo_gt": "PPO-GT",
}
BEST_NAME = re.compile(r"best of (\d+) of the reference")  # of results.json
BEST_KL = "KL to reference at most (nats)"
LEARNED = ("ppo",)  # methods whose reward was learned from the pairs before
ON_POLICY = ("ppo", "ppo_gt")


class Point(NamedTuple):
    """One evaluation of one trial; errors are standard errors over prompts.

    Attributes:
      trial: its name.
      method: key of `METHODS`.
      step: optimizer steps taken.
      kl: sequence KL to the reference, nats.
      kl_se: its error.
      reward: expected true reward.
      reward_se: its error.
      frontier: the largest reward at this KL; None where it was not estimated.
      excess: E[r] − β·KL − V_β where it is largest; None likewise.
      excess_se: its error.
      flagged: whether that is more than 3 errors above 0.
      trusted: whether enough samples carry the frontier at this KL.
      seconds: of training until then: steps × the median of a step, evaluation and
        compiling left out.
      samples: drawn by then for the method to learn from.
    """

    trial: str
    method: str
    step: int
    kl: float
    kl_se: float
    reward: float
    reward_se: float
    frontier: float | None
    excess: float | None
    excess_se: float | None
    flagged: bool
    trusted: bool
    seconds: float
    samples: int


class Optimum(NamedTuple):
    """A place on the frontier.

    Attributes:
      kl: of the policy that is optimal for its β, nats.
      reward: its expected true reward.
      reward_se: standard error of that.
      trusted: whether enough samples carry the estimate.
    """

    kl: float
    reward: float
    reward_se: float
    trusted: bool


class Best(NamedTuple):
    """The best of N samples of the reference.

    Attributes:
      n: samples of which the best is kept.
      kl: ln N − (N − 1)/N, which its KL does not exceed.
      reward: expected true reward.
      reward_se: its standard error.
    """

    n: int
    kl: float
    reward: float
    reward_se: float


class Bounds(NamedTuple):
    """What no policy exceeds, and what the reference's own best samples reach.

    Attributes:
      curve: along the frontier, by rising KL.
      best_of: chosen by the truth.
      best_of_learned: chosen by the learned reward; [] without one.
    """

    curve: list[Optimum]
    best_of: list[Best]
    best_of_learned: list[Best]

    @property
    def trusted(self) -> list[Optimum]:
        """The part of the frontier that enough samples carry."""
        return [optimum for optimum in self.curve if optimum.trusted]


class Experiment(NamedTuple):
    """All that a folder of trials says.

    Attributes:
      points: in the order of trials and steps.
      bounds: of all trials.
      data: `data.json`: samples drawn for the pairs, and what they are worth.
      first_losses: trial -> its loss before any update.
    """

    points: list[Point]
    bounds: Bounds
    data: dict[str, Any]
    first_losses: dict[str, float]


def read(out: Path) -> Experiment:
    """Reads the folder of a tier; trials that have measured nothing are left out."""
    data = json.loads((out / "data" / "data.json").read_text(encoding="utf-8"))
    files = sorted(out.glob("*/metrics.jsonl"))
    folders = [file.parent for file in files if file.stat().st_size]
    found = {folder.name: runs.load(folder) for folder in folders}
    points = [
        point
        for name, run in found.items()
        if method_of(name) in METHODS
        for point in points_of(run, data["samples"])
    ]
    first = {
        name: losses[0]
        for name, run in found.items()
        if (losses := runs.series(run, "train", "loss")[1])
    }
    return Experiment(points, bounds_of(found), data, first)


def method_of(trial: str) -> str:
    """Returns the method that the name of a trial begins with."""
    return trial.partition(".")[0]


def points_of(run: Run, offline_samples: int) -> list[Point]:
    """Lists the evaluations of a trial.

    Args:
      run: its folder.
      offline_samples: drawn from the reference for all methods that learn from pairs.
    """
    train = [line for line in run.metrics if line["split"] == "train"]
    if not train:  # it has just begun
        return []
    method = method_of(run.name)
    turn = statistics.median(line["step_seconds"] for line in train)
    updates = min(line["step"] for line in train) if method in ON_POLICY else 1
    rollout = run.config["rollout"]
    of_turn = rollout["prompts"] * rollout["samples"]

    def drawn(step: int) -> int:
        online = step // updates * of_turn if method in ON_POLICY else 0
        offline = method not in ON_POLICY or method in LEARNED
        return online + offline * offline_samples

    return [
        Point(
            run.name,
            method,
            line["step"],
            line["rollouts/kl"],
            line["rollouts/kl_se"],
            line["rollouts/reward"],
            line["rollouts/reward_se"],
            line.get("frontier/reward"),
            line.get("frontier/excess"),
            line.get("frontier/excess_se"),
            bool(line.get("frontier/flagged", 0.0)),
            bool(line.get("frontier/trusted", 0.0)),
            line["step"] / updates * turn,
            drawn(line["step"]),
        )
        for line in run.metrics
        if line["split"] == "eval" and "rollouts/kl" in line
    ]


def bounds_of(found: dict[str, Run]) -> Bounds:
    """Reads the frontier, which is one for all trials, and best-of-N."""
    told = [run.frontier for run in found.values() if run.frontier]
    if not told:
        return Bounds([], [], [])
    said = told[0]
    keys = Optimum._fields
    curve = sorted(Optimum(*(place[k] for k in keys)) for place in said["frontier"])
    keys = ("m", "kl_bound", "reward", "reward_se")
    best = [Best(*(row[k] for k in keys)) for row in said["best_of"]]
    learned = learned_best(found["best_of"].results) if "best_of" in found else []
    return Bounds(curve, best, learned)


def learned_best(results: dict[str, Any]) -> list[Best]:
    """Reads what the best of the reference's samples by a learned reward is worth."""
    found = []
    for row in results.get("rows", []):
        named = BEST_NAME.fullmatch(row["name"])
        if named:
            bound = row["values"][BEST_KL]
            (measure,) = set(row["values"]) - {BEST_KL}
            found.append(Best(int(named[1]), bound, *row["values"][measure]))
    return found


def best_within(points: Sequence[Point], kl: float) -> Point | None:
    """Returns the point of the highest reward among those of at most this KL."""
    within = [point for point in points if point.kl <= kl]
    return max(within, key=lambda point: point.reward, default=None)


def read_paper(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Reads the paper's points, by method: (KL, reward)."""
    found: dict[str, list[tuple[float, float]]] = {}
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            place = float(row["kl_nats"]), float(row["reward"])
            found.setdefault(row["method"], []).append(place)
    return found
