"""Draws win rates over the sampling temperature: a panel a judge, the paper's beside.

Knows numbers alone; `judged.py` brings them.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpo_jax.report.figures import color
from dpo_jax.report.sweep_figure import MARKS

Point = tuple[float, float, float]  # temperature, rate, standard error; NaN = unknown


def write(
    file: Path,
    rows: Sequence[Mapping[str, Any]],
    paper: Mapping[tuple[str, float], tuple[float, float]],
    names: Mapping[str, tuple[str, int]],
) -> None:
    """Writes the figure as a PNG.

    Of a method that is the best of N, where fewer were sampled, the best of as many as
    there are is drawn, under that name.

    Args:
      file: to write.
      rows: of `winrate.json`.
      paper: (method, temperature) -> the paper's rate and its standard error.
      names: method -> (trial, best of how many).
    """
    from matplotlib.figure import Figure

    panels = {}
    for judge in dict.fromkeys(row["judge"] for row in rows):
        own = [row for row in rows if row["judge"] == judge]
        panels[f"Ours, judged by {judge}"] = ours(own, names)
    panels["The paper's, by gpt-4-0314"] = theirs(paper)
    every = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    canvas = Figure(figsize=(4.2 * len(panels), 4), dpi=150, layout="constrained")
    (areas,) = canvas.subplots(1, len(panels), sharey=True, squeeze=False)
    for axes, (title, lines) in zip(areas, panels.items(), strict=True):
        axes.axhline(0.5, color="0.6", lw=0.8, ls=":")
        for name, points in lines.items():
            draw(axes, name, points, every.index(name))
        axes.set(title=title, xlabel="sampling temperature", ylim=(-0.02, 1.02))
        axes.grid(alpha=0.25)
    areas[0].set_ylabel("win rate ± one standard error")
    handles = {
        label: handle
        for axes in areas
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    canvas.legend(
        handles.values(), handles.keys(), loc="outside right upper", fontsize=8
    )
    canvas.savefig(file)


def draw(axes: Any, name: str, points: Sequence[Point], place: int) -> None:
    """Draws a method: a line, and bars where errors are known."""
    heats, rates, errors = zip(*sorted(points), strict=True)
    bars = [0.0 if math.isnan(error) else error for error in errors]
    style = {"color": color(place), "marker": MARKS[place % len(MARKS)]}
    axes.errorbar(heats, rates, bars, ms=4, lw=1, capsize=2, label=name, **style)


def ours(
    rows: Sequence[Mapping[str, Any]], names: Mapping[str, tuple[str, int]]
) -> dict[str, list[Point]]:
    """Finds what is drawn of one judge's rows: name -> its points."""
    found: dict[str, list[Point]] = {}
    for method, (trial, best_of) in names.items():
        of = [row for row in rows if Path(row["policy"]).parent.name == trial]
        sizes = {row["best_of"] for row in of if row["best_of"] <= best_of}
        most = max(sizes, default=0)
        if most not in (1, best_of):
            method = f"Best of {most}"
        points = [
            (row["temperature"], row["win_rate"], row["se"] or math.nan)
            for row in of
            if row["best_of"] == most
        ]
        if points:
            found.setdefault(method, points)
    return found


def theirs(
    paper: Mapping[tuple[str, float], tuple[float, float]],
) -> dict[str, list[Point]]:
    """Lists the paper's points by method."""
    found: dict[str, list[Point]] = {}
    for (method, heat), (rate, error) in paper.items():
        found.setdefault(method, []).append((heat, rate, error))
    return found
