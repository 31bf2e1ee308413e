"""Draws the leaderboard: a dot an entry and regime, sorted, beside `dpo`'s line."""

from typing import Any

from matplotlib.figure import Figure

from experiments.exact import output
from experiments.exact.leaderboard import methods, table
from experiments.exact.leaderboard.methods import ENTRIES
from experiments.exact.leaderboard.regimes import REGIMES

TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
MORE_TICKS = (0.3, 0.7, 1.5)  # where the axis spans less than `NARROW`-fold
NARROW = 8.0
LEAST = 0.01  # what lies below it stands at it, as an arrow head
CAPTION = (
    "regret at β = 1, nats of reward: the largest E[r] − KL less the policy's; "
    "mean ± standard error over seeds\n"
    "vertical lines: dpo (dotted), no training (solid), best of the policy's class "
    "where that is not 0 (dashed)\n"
    "green: better than dpo by more than two standard errors of the paired difference; "
    "orange: worse; grey: neither · * sees the true rewards"
)
BETTER, ALIKE, WORSE = 2, 7, 1  # colours by the paired difference from the baseline


def ink(line: table.Line) -> str:
    """Returns the colour: beyond two standard errors of the difference, or not."""
    mean, error = line.difference
    index = ALIKE if not abs(mean) > 2 * error else BETTER if mean < 0 else WORSE
    return output.color(index)


def draw(board: table.Board, bounds: table.Bounds) -> Figure:
    """Draws one panel a regime; all share their entries, sorted by mean regret."""
    groups = table.by_entry(board)
    height = 1.5 + 0.19 * len(groups)
    canvas, axes = output.figure(1, len(REGIMES), 13.0, height)
    for ax, regime in zip(axes, REGIMES, strict=True):
        lines = {name: of[regime] for name, of in groups.items() if regime in of}
        draw_regime(ax, list(groups), lines, *bounds[regime])
        ax.set_title(regime.replace("_", " "))
    names = [name + " *" * methods.sees_rewards(ENTRIES[name]) for name in groups]
    axes[0].set_yticks(range(len(groups)), names)
    canvas.supxlabel(CAPTION, fontsize=9)
    return canvas


def draw_regime(
    ax: Any,
    names: list[str],
    lines: dict[str, table.Line],
    nothing: float,
    least: float,
) -> None:
    """Draws the dots of a regime, and as lines the baseline's regret and the bounds."""
    ax.axvline(nothing, color=output.INK, lw=0.8, zorder=0)
    if least > 1e-3:
        ax.axvline(least, color=output.INK, lw=0.8, ls="--", zorder=0)
    for name, line in lines.items():
        style = {"color": ink(line), "ms": 4, "lw": 1.2}
        if line.regret.mean < LEAST:
            ax.plot(LEAST, names.index(name), "<", clip_on=False, **style)
            continue
        at = (line.regret.mean, names.index(name))
        ax.errorbar(*at, xerr=line.regret.error, fmt="o", **style)
    if table.BASELINE in lines:
        base = lines[table.BASELINE].regret.mean
        ax.axvline(base, color=output.INK, lw=0.8, ls=":", zorder=0)
    ax.set(xscale="log", ylim=(len(names) - 0.4, -0.6))
    ax.set_xlim(left=max(ax.get_xlim()[0], LEAST))
    low, high = ax.get_xlim()
    known = TICKS + (MORE_TICKS if high < NARROW * low else ())
    ticks = [tick for tick in known if low <= tick <= high]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set_yticks(range(len(names)), [""] * len(names))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y")
