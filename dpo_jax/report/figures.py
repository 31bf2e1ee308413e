"""Curves of metrics as inline SVG that takes its ink from the page.

matplotlib is imported inside, so that reading runs stays quick.
"""

import io
import re
from typing import Any

from dpo_jax.report.runs import Run, series

# Told apart on white and on near-black, and by most colour-blind readers.
COLORS = (
    "#3b82c4",
    "#d9772b",
    "#3f9e6b",
    "#c2527a",
    "#8a6fd1",
    "#9a8530",
    "#2fa3a3",
    "#808890",
)
INK = "#010203"  # stands for the text colour of the page until the SVG is written
MAX_POINTS = 1000  # of one drawn curve
SIZE = (4.6, 2.5)  # inches
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
}


def color(index: int) -> str:
    """Returns the colour of the run at `index` of a report."""
    return COLORS[index % len(COLORS)]


def curves(runs: list[Run], metric: str) -> str:
    """Draws a metric over steps: one colour a run, train solid, eval dashed with dots.

    Curves of more than `MAX_POINTS` values are thinned evenly; values that are not
    finite leave a gap.

    Args:
      runs: the runs, in the order that gives them their colours.
      metric: its name in `metrics.jsonl`, without the split.

    Returns:
      An `<svg>` element without width and height; '' if no run has the metric.
    """
    drawn = [
        (index, split, *series(run, split, metric))
        for index, run in enumerate(runs)
        for split in ("train", "eval")
    ]
    drawn = [entry for entry in drawn if entry[3]]
    return _svg(drawn, metric) if drawn else ""


def _svg(drawn: list[tuple[int, str, list[int], list[float]]], salt: str) -> str:
    """Draws (colour index, split, steps, values) tuples."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}):
        figure = Figure(figsize=SIZE, layout="tight")
        axes = figure.subplots()
        axes.grid(True)
        axes.set_axisbelow(True)
        axes.margins(x=0.02)
        for index, split, steps, values in drawn:
            steps, values = _thinned(steps), _thinned(values)
            is_eval = split == "eval"
            axes.plot(
                steps,
                values,
                color=color(index),
                alpha=1.0 if is_eval else 0.6,  # eval stays legible over noise
                linestyle="--" if is_eval else "-",
                linewidth=1.4,
                marker="o" if is_eval or len(steps) == 1 else None,
                markersize=3,
                zorder=3 if is_eval else 2,
            )
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        buffer = io.StringIO()
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    return inline(buffer.getvalue())


def _thinned(values: list) -> list:
    """Keeps at most `MAX_POINTS` values at even distances, first and last included."""
    if len(values) <= MAX_POINTS:
        return values
    last = len(values) - 1
    return [values[round(i * last / (MAX_POINTS - 1))] for i in range(MAX_POINTS)]


def inline(svg: str) -> str:
    """Cuts an SVG file down to an element that fits its place in a page."""
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
