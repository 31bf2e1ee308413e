"""Tables and the figure of a tier, from its run folders.

    python -m experiments.fig2_imdb_frontier.table --out=runs/fig2/quick

writes `points.csv` (every evaluation), `table.csv` and `table.md` (a line a method, a
line a trial) and `figure.png` beside the run folders. Errors are standard errors over
the evaluation prompts, which all methods share.
"""

import argparse
import csv
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from dpo_jax import markdown
from experiments.fig2_imdb_frontier import claims, figure
from experiments.fig2_imdb_frontier import points as points_lib
from experiments.fig2_imdb_frontier.figure import Paper
from experiments.fig2_imdb_frontier.points import METHODS, Best, Experiment, Point

BUDGETS = (0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0)  # nats
Rows = list[list[str]]


def plus_minus(value: float, error: float) -> str:
    """Writes a mean with its standard error."""
    return f"{value:.3f} ± {error:.3f}"


def methods_table(found: Experiment) -> Rows:
    """Returns the best reward of each method within each KL, and what bounds it."""
    rows = [["within KL", *(f"{kl:g}" for kl in BUDGETS), "most, at KL"]]
    if curve := found.bounds.trusted:
        kls, rewards = np.array([place[:2] for place in curve]).T
        at = [f"{np.interp(k, kls, rewards):.3f}" for k in BUDGETS if k <= kls[-1]]
        at += ["–"] * (len(BUDGETS) - len(at))
        rows.append(["frontier", *at, f"{rewards[-1]:.3f}, {kls[-1]:.1f} (trusted)"])
    bests = {"best-of-N": found.bounds.best_of}
    bests["best-of-N, learned reward"] = found.bounds.best_of_learned
    for name, best in bests.items():
        if best:
            rows.append([name, *best_of_cells(best)])
    for method, name in METHODS.items():
        of = [point for point in found.points if point.method == method]
        if of:
            rows.append([name, *method_cells(of)])
    return rows


def best_of_cells(best: Sequence[Best]) -> list[str]:
    """Returns what the largest N within each KL reaches, and the largest of all."""
    cells = []
    for budget in BUDGETS:
        within = [of for of in best if of.kl <= budget]
        cells.append(best_cell(within[-1]) if within else "–")
    return [*cells, f"{best_cell(best[-1])}, ≤ {best[-1].kl:.1f}"]


def best_cell(best: Best) -> str:
    """Writes the reward of best-of-N."""
    return f"{plus_minus(best.reward, best.reward_se)} (N={best.n})"


def method_cells(of: Sequence[Point]) -> list[str]:
    """Returns the best reward within each KL, and the best of all."""
    within = [points_lib.best_within(of, budget) for budget in BUDGETS]
    cells = [plus_minus(p.reward, p.reward_se) if p else "–" for p in within]
    most = max(of, key=lambda point: point.reward)
    return [*cells, f"{plus_minus(most.reward, most.reward_se)}, {most.kl:.1f}"]


def paper_table(paper: Paper) -> Rows:
    """Returns the best reward of the paper's points within each KL."""
    rows = [["the paper's, within KL", *(f"{kl:g}" for kl in BUDGETS), "most, at KL"]]
    for name, places in paper.items():
        within = [[r for kl, r in places if kl <= budget] for budget in BUDGETS]
        cells = [f"{max(rewards):.3f}" if rewards else "–" for rewards in within]
        kl, most = max(places, key=lambda place: place[1])
        rows.append([name, *cells, f"{most:.3f}, {kl:.1f}"])
    return rows


def trials_table(points: Sequence[Point]) -> Rows:
    """Returns where each trial ended, and how far beneath the frontier."""
    rows = [
        ["trial", "steps", "KL", "reward", "frontier − reward", "highest reward, at KL"]
        + ["above by > 3 errors", "seconds", "samples drawn"]
    ]
    for trial in dict.fromkeys(point.trial for point in points):
        of = [point for point in points if point.trial == trial]
        last, most = of[-1], max(of, key=lambda point: point.reward)
        gap = "–"
        if last.excess is not None and last.excess_se is not None:
            gap = plus_minus(-last.excess, last.excess_se)
            gap += "" if last.trusted else " (tangent)"
        rows.append(
            [
                trial,
                str(last.step),
                plus_minus(last.kl, last.kl_se),
                plus_minus(last.reward, last.reward_se),
                gap,
                f"{most.reward:.3f}, {most.kl:.2f}",
                f"{sum(point.flagged for point in of)} of {len(of)}",
                f"{last.seconds:.1f}",
                f"{last.samples:,}",
            ]
        )
    return rows


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Writes rows, the names of the columns first."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def write(out: Path) -> str:
    """Writes tables and figure; returns the tables for a terminal."""
    found = points_lib.read(out)
    paper = points_lib.read_paper(Path(__file__).with_name("expected.csv"))
    methods, trials = methods_table(found), trials_table(found.points)
    write_csv(out / "points.csv", [Point._fields, *found.points])
    write_csv(out / "table.csv", [*methods, [], *trials])
    held = [["", "claim", "seen"], *map(claims.row, claims.check(found))]
    text = "\n".join(
        markdown.table(head, rows)
        for head, *rows in (methods, paper_table(paper), trials, held)
    )
    (out / "table.md").write_text(text, encoding="utf-8")
    figure.draw(found, paper).savefig(out / "figure.png")
    return text


def main(arguments: Sequence[str]) -> None:
    """Writes the tables and the figure of a folder, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of a tier")
    sys.stdout.write(write(parser.parse_args(arguments).out))


if __name__ == "__main__":
    main(sys.argv[1:])
