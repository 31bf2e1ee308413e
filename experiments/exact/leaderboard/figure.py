"""Draws the leaderboard: a dot an entry and regime, sorted, beside `dpo`'s line."""

from typing import Any

from matplotlib.figure import Figure

from experiments.exact import output
from experiments.exact.leaderboard import table
from experiments.exact.leaderboard.regimes import REGIMES

BETTER, ALIKE, WORSE = 2, 7, 1  # colours by the paired difference from the baseline


def ink(line: table.Line) -> str:
    """Returns the colour: beyond two standard errors of the difference, or not."""
    mean, error = line.difference
    index = ALIKE if not abs(mean) > 2 * error else BETTER if mean < 0 else WORSE
    return output.color(index)


def draw(board: table.Board) -> Figure:
    """Draws one panel a regime; all share their entries, sorted by mean regret."""
    groups = table.by_entry(board)
    height = 1.4 + 0.19 * len(groups)
    canvas, axes = output.figure(1, len(REGIMES), 13.0, height)
    for ax, regime in zip(axes, REGIMES, strict=True):
        lines = {name: of[regime] for name, of in groups.items() if regime in of}
        draw_regime(ax, list(groups), lines)
        ax.set_title(regime.replace("_", " "))
    axes[0].set_yticks(range(len(groups)), list(groups))
    axes[len(REGIMES) // 2].set_xlabel(
        "regret at β = 1: best value of E[r] − KL less the policy's (mean ± standard "
        "error over seeds)\ngreen: better than dpo by more than two standard errors of "
        "the paired difference · grey: a tie · orange: worse"
    )
    return canvas


def draw_regime(ax: Any, names: list[str], lines: dict[str, table.Line]) -> None:
    """Draws the dots of a regime, and the baseline's regret as a line."""
    for name, line in lines.items():
        style = {"color": ink(line), "ms": 4, "lw": 1.2}
        at = (line.regret.mean, names.index(name))
        ax.errorbar(*at, xerr=line.regret.error, fmt="o", **style)
    if table.BASELINE in lines:
        base = lines[table.BASELINE].regret.mean
        ax.axvline(base, color=output.INK, lw=0.8, ls=":", zorder=0)
    ax.set(xscale="log", ylim=(len(names) - 0.4, -0.6))
    ax.set_yticks(range(len(names)), [""] * len(names))
    ax.grid(axis="y")
