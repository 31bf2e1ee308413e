"""Curves of metrics as inline SVG that takes its ink from the page.

Written by hand: a run ends with a report, and to import a plotting library would take
longer than all the rest of it.
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

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
MAX_POINTS = 1000  # of one drawn curve
WIDTH, HEIGHT = 331, 180
LEFT, RIGHT, TOP, BOTTOM = 50, 325, 6, 148  # the edges of the axes
MARGIN = 0.04  # of an axis, beyond the values


class Axis(NamedTuple):
    """Where values lie along one side of a figure.

    Attributes:
      low: the value at `start`.
      high: the value at `end`.
      start: its place.
      end: its place.
    """

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Returns the place of a value."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


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
        (color(index), split == "eval", *series(run, split, metric))
        for split in ("train", "eval")  # eval lies on top
        for index, run in enumerate(runs)
    ]
    if not any(entry[3] for entry in drawn):
        return ""
    x = axis([step for entry in drawn for step in entry[2]], LEFT, RIGHT)
    y = axis([value for entry in drawn for value in entry[3]], BOTTOM, TOP)
    parts = [*frame(x, y, ticks(x, 7, least_step=1.0), "step")]
    for ink, is_eval, steps, values in drawn:
        if values:
            steps, values = _thinned(steps), _thinned(values)
            parts += _curve(x, y, steps, values, ink, is_eval=is_eval)
    return svg(parts, WIDTH, HEIGHT)


def svg(parts: Iterable[str], width: int, height: int) -> str:
    """Puts elements together as an `<svg>` that fills the width it is given."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-size="9" fill="currentColor">{"".join(parts)}</svg>'
    )


def axis(values: Iterable[float], start: float, end: float) -> Axis:
    """Makes an axis with room for all values that are finite."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    room = MARGIN * (high - low) or abs(high) / 20 or 1.0
    return Axis(low - room, high + room, start, end)


def ticks(axis: Axis, most: int, least_step: float = 0.0) -> list[tuple[float, str]]:
    """Lists round values within an axis, with their text.

    Args:
      axis: from the lowest to the highest value.
      most: steps between them at most; a step is 1, 2 or 5 times a power of ten.
      least_step: how large it is at least.
    """
    wanted = max((axis.high - axis.low) / most, least_step)
    power = math.floor(math.log10(wanted))
    step = next(n for n in (1, 2, 5, 10) if n * 10.0**power >= wanted * (1 - 1e-9))
    step, power = (1, power + 1) if step == 10 else (step, power)
    step *= 10.0**power
    values = range(math.ceil(axis.low / step), math.floor(axis.high / step) + 1)
    largest = max((abs(n) for n in values), default=1) * step
    form = f".{max(0, -power)}f"
    if not 1e-3 <= largest < 1e6:
        form = f".{max(1, math.floor(math.log10(largest or 1.0)) - power + 1)}g"
    return [(n * step, f"{n * step:{form}}".replace("-", "−")) for n in values]


def frame(
    x: Axis, y: Axis, across: Iterable[tuple[float, str]], said: str
) -> Iterator[str]:
    """Draws the axes, their grid and their numbers.

    Args:
      x: the axis below.
      y: the axis to the left.
      across: values of `x` that are marked, with their text.
      said: what lies along `x`.
    """
    left, right, bottom, top = x.start, x.end, y.start, y.end
    for value, text in across:
        at = f"{x.at(value):.1f}"
        yield line(at, top, at, bottom, 0.12)
        yield f'<text x="{at}" y="{bottom + 12}" text-anchor="middle">{text}</text>'
    for value, text in ticks(y, 6):
        at = f"{y.at(value):.1f}"
        yield line(left, at, right, at, 0.12)
        yield (
            f'<text x="{left - 4}" y="{at}" dy=".35em" text-anchor="end">{text}</text>'
        )
    yield line(left, bottom, right, bottom, 1.0) + line(left, top, left, bottom, 1.0)
    middle = (left + right) / 2
    yield f'<text x="{middle}" y="{bottom + 26}" text-anchor="middle">{said}</text>'


def line(x1: object, y1: object, x2: object, y2: object, opacity: float) -> str:
    """Draws a thin straight line."""
    return (
        f'<path d="M{x1} {y1}L{x2} {y2}" stroke="currentColor" stroke-width=".6" '
        f'stroke-opacity="{opacity:g}"/>'
    )


def _curve(
    x: Axis,
    y: Axis,
    steps: list[int],
    values: list[float],
    ink: str,
    *,
    is_eval: bool,
) -> Iterator[str]:
    """Draws a curve, with dots where it is of eval or has one point."""
    path, places, pen = [], [], "M"
    for step, value in zip(steps, values, strict=True):
        if not math.isfinite(value):
            pen = "M"
            continue
        places.append((f"{x.at(step):.1f}", f"{y.at(value):.1f}"))
        path.append(f"{pen}{' '.join(places[-1])}")
        pen = "L"
    # eval stays legible over noise
    dashes = 'stroke-dasharray="5 2.5"' if is_eval else 'stroke-opacity="0.6"'
    yield (
        f'<path d="{"".join(path)}" fill="none" stroke="{ink}" stroke-width="1.4" '
        f'stroke-linejoin="round" {dashes}/>'
    )
    for across, down in places if is_eval or len(steps) == 1 else ():
        yield f'<circle cx="{across}" cy="{down}" r="1.7" fill="{ink}"/>'


def _thinned(values: list) -> list:
    """Keeps at most `MAX_POINTS` values at even distances, first and last included."""
    if len(values) <= MAX_POINTS:
        return values
    last = len(values) - 1
    return [values[round(i * last / (MAX_POINTS - 1))] for i in range(MAX_POINTS)]
