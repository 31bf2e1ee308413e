"""From trained cells to the leaderboard: choice of trials, means, differences.

A trial is chosen by its mean regret over the tuning seeds; everything that is reported
comes from the other seeds. Differences from `dpo` are paired: a seed is the same data
and the same minibatches for all.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dpo_jax import markdown
from experiments.exact.leaderboard import methods
from experiments.exact.leaderboard.methods import ENTRIES
from experiments.exact.leaderboard.regimes import REGIMES

Cells = dict[tuple[str, str], dict[str, np.ndarray]]
BASELINE = "dpo"
BOUNDS = ("no training", "best of the class")
MAIN = 1.0  # the β of the objective that the leaderboard is sorted by


class Estimate(NamedTuple):
    """A mean over seeds and its standard error."""

    mean: float
    error: float


class Line(NamedTuple):
    """An entry in a regime, at the trial that was chosen for it.

    Attributes:
      entry: its name.
      regime: its name.
      regret: of J at β = `MAIN`.
      difference: from the baseline's regret, paired; NaN without a baseline.
      kl: KL(π‖ref), nats.
      reward: E_π[r].
      gap: the frontier's reward at this KL − E_π[r].
      lr: of the chosen trial.
      scale: of the chosen trial; NaN if the entry has none.
      edge: ends of the grid where the trial lies, as `methods.at_edge`.
      median: regret of the median trial, mean over the scored seeds: how much it
        depends on the tuning.
      others: regret at the other β, each with a trial of its own.
    """

    entry: str
    regime: str
    regret: Estimate
    difference: Estimate
    kl: Estimate
    reward: Estimate
    gap: Estimate
    lr: float
    scale: float
    edge: str
    median: float
    others: dict[float, Estimate]


Board = list[Line]
Bounds = dict[str, tuple[float, float]]  # regime -> regret of the reference, the least


def estimate(values: np.ndarray) -> Estimate:
    """Returns mean and standard error of f[seeds]."""
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(float(values.mean()), float(error))


def choose(regrets: np.ndarray, seeds: int) -> int:
    """Returns the trial of least mean regret over the tuning seeds.

    Args:
      regrets: f[seeds + tuning, trials]; one that is not finite never wins.
      seeds: that are scored, the first.
    """
    means = regrets[seeds:].mean(0)
    return int(np.argmin(np.where(np.isfinite(means), means, np.inf)))


def tabulate(cells: Cells, seeds: int, betas: Sequence[float]) -> Board:
    """Summarises all cells, in their order.

    Args:
      cells: what was trained.
      seeds: that are scored, the first.
      betas: of the objectives, the last axis of `regret`.
    """
    lines = []
    for (name, regime), cell in cells.items():
        trial, mine = scored(cell, seeds, betas.index(MAIN))
        base = np.full(seeds, math.nan)
        if (BASELINE, regime) in cells:
            base = scored(cells[BASELINE, regime], seeds, betas.index(MAIN))[1]
        others = {
            beta: estimate(scored(cell, seeds, b)[1])
            for b, beta in enumerate(betas)
            if beta != MAIN
        }
        means = cell["regret"][:seeds, :, betas.index(MAIN)].mean(0)
        lrs, scales = methods.trials(ENTRIES[name])
        line = Line(
            entry=name,
            regime=regime,
            regret=estimate(mine),
            difference=estimate(mine - base),
            kl=estimate(cell["kl"][:seeds, trial]),
            reward=estimate(cell["reward"][:seeds, trial]),
            gap=estimate(cell["gap"][:seeds, trial]),
            lr=float(lrs[trial]),
            scale=float(scales[trial]),
            edge=methods.at_edge(ENTRIES[name], trial),
            median=float(np.median(np.where(np.isfinite(means), means, np.inf))),
            others=others,
        )
        lines.append(line)
    return lines


def scored(
    cell: Mapping[str, np.ndarray], seeds: int, beta: int
) -> tuple[int, np.ndarray]:
    """Returns the trial chosen for an objective, and its regrets, f[seeds]."""
    regrets = cell["regret"][..., beta]
    trial = choose(regrets, seeds)
    return trial, regrets[:seeds, trial]


def write_csv(path: Path, board: Board) -> None:
    """Writes one row a line, estimates as two columns."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        for row, line in enumerate(board):
            fields = {}
            for name, value in line._asdict().items():
                if name == "scale":
                    fields["scale_name"] = ENTRIES[line.entry].scale
                if name == "others":
                    for beta, other in value.items():
                        fields[f"regret_at_{beta:g}"] = f"{other.mean:.5f}"
                        fields[f"regret_at_{beta:g}_se"] = f"{other.error:.5f}"
                elif isinstance(value, Estimate):
                    fields[name] = f"{value.mean:.5f}"
                    fields[f"{name}_se"] = f"{value.error:.5f}"
                else:
                    fields[name] = f"{value:g}" if isinstance(value, float) else value
            if row == 0:
                writer.writerow(fields)
            writer.writerow(fields.values())


def by_entry(board: Board) -> dict[str, dict[str, Line]]:
    """Groups lines by entry, the least mean regret over the regimes first."""
    groups: dict[str, dict[str, Line]] = {}
    for line in board:
        groups.setdefault(line.entry, {})[line.regime] = line

    def mean(name: str) -> float:
        return float(np.mean([line.regret.mean for line in groups[name].values()]))

    return {name: groups[name] for name in sorted(groups, key=mean)}


def leaders(board: Board) -> set[tuple[str, str]]:
    """Finds what is within one standard error (its own) of the best of its regime.

    Entries that see the true rewards do not compete.
    """
    found = set()
    for regime in REGIMES:
        lines = [line for line in board if line.regime == regime]
        lines = [x for x in lines if not methods.sees_rewards(ENTRIES[x.entry])]
        best = min((line.regret.mean for line in lines), default=math.nan)
        found |= {
            (line.entry, regime)
            for line in lines
            if line.regret.mean <= best + line.regret.error
        }
    return found


def title_of(name: str) -> str:
    """Returns the name of an entry, starred if it sees the true rewards."""
    return f"`{name}`" + " \\*" * methods.sees_rewards(ENTRIES[name])


def setting_of(line: Line) -> str:
    """Writes the chosen trial, its values at a grid's end with a dagger."""
    lr = f"{line.lr:.2g}" + "†" * ("lr" in line.edge)
    if not ENTRIES[line.entry].scale:
        return lr
    return f"{lr}; {line.scale:g}" + "†" * ("scale" in line.edge)


def as_markdown(board: Board, bounds: Bounds) -> str:
    """Renders regrets, differences from the baseline, places and chosen trials."""
    groups, best = by_entry(board), leaders(board)

    def regret(line: Line) -> str:
        text = f"{line.regret.mean:.3f} ± {line.regret.error:.3f}"
        return f"**{text}**" if (line.entry, line.regime) in best else text

    def difference(line: Line) -> str:
        return f"{line.difference.mean:+.4f} ± {line.difference.error:.4f}"

    def place(line: Line) -> str:
        return f"{line.kl.mean:.2f}, {line.gap.mean:.3f}"

    parts = []
    for row, (title, cell) in enumerate(
        {
            "Regret at β = 1, nats of reward": regret,
            f"Paired difference from `{BASELINE}`": difference,
            "KL(π‖ref), and the frontier's reward at that KL − E[r]": place,
            "Chosen lr; scale († an end of its grid)": setting_of,
        }.items()
    ):
        rows = [
            [title_of(name), *(cell(lines[r]) if r in lines else "" for r in REGIMES)]
            for name, lines in groups.items()
        ]
        rows += [
            [name, *(f"{bounds[regime][which]:.3f}" for regime in REGIMES)]
            for which, name in enumerate(BOUNDS if row == 0 else ())
        ]
        parts.append(f"**{title}**\n\n{markdown.table(['entry', *REGIMES], rows)}")
    return "\n".join(parts)
