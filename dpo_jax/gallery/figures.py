"""Pictures of a loss: its curve, its pull on either response, its map over both.

Numbers come ready; nothing here knows a formula. DPO stands in grey behind each curve,
scaled so that both fall equally steeply where a = b = 0. matplotlib is imported inside.
"""

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpo_jax.gallery.curves import LossCurve

INK = "#010203"  # stands for the text colour of the page until the SVG is written
CHOSEN = "#3b82c4"
REJECTED = "#d9772b"
DPO = "#9aa2ab"
LEVEL = "#8a6fd1"  # of the map: the fainter, the lower the loss
LEVELS = 14
ARROWS = 8  # along a side of the map
SIZE = (3.7, 2.6)  # inches
PLACE = (0.17, 0.185, 0.80, 0.755)  # of the axes: left, bottom, width, height
SQUARE = (3.0, 2.6)
SQUARE_PLACE = (0.19, 0.185, 0.755, 0.755)
ROOM = 0.08  # above and below a curve
TINY = (116.0, 58.0)  # width and height of a thumbnail


def style(ink: str) -> dict[Any, Any]:
    """Returns matplotlib's settings for plain figures in one colour of ink."""
    inked = ("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    return {
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.formatter.useoffset": False,
        "grid.color": ink,
        "grid.alpha": 0.12,
        "grid.linewidth": 0.6,
        **dict.fromkeys(inked, ink),
    }


def is_of_margin(curve: LossCurve) -> bool:
    """Says whether a loss depends on Δ alone: both responses are pulled equally."""
    pulls = np.abs(curve.map_to_chosen), np.abs(curve.map_to_rejected)
    both = np.abs(curve.map_to_chosen + curve.map_to_rejected).max()
    return bool(both <= 1e-3 * max(p.max() for p in pulls))


def yardstick(curve: LossCurve) -> float:
    """Returns by what DPO is multiplied to be as steep at Δ = 0."""
    middle = len(curve.delta) // 2
    own = abs(curve.to_chosen[middle] - curve.to_rejected[middle]) / 2
    return float(own / abs(curve.dpo_slope[middle])) or 1.0


def touching(curve: LossCurve) -> np.ndarray:
    """Returns DPO, scaled and shifted to touch the loss at Δ = 0, [P]."""
    middle = len(curve.delta) // 2
    shape = curve.dpo_loss - curve.dpo_loss[middle]
    return curve.loss[middle] + yardstick(curve) * shape


def loss_figure(curve: LossCurve, salt: str) -> str:
    """Draws the loss over Δ; returns an `<svg>` element."""
    with _style(salt):
        figure, axes = _axes(SIZE, PLACE)
        axes.plot(curve.delta, touching(curve), color=DPO, linewidth=1.3)
        axes.plot(curve.delta, curve.loss, color=INK, linewidth=1.8)
        _frame(axes, curve, [curve.loss])
        return _svg(figure)


def pull_figure(curve: LossCurve, salt: str) -> str:
    """Draws −∂L/∂Δ, or −∂L/∂a and −∂L/∂b where they differ; returns `<svg>`."""
    grey = -yardstick(curve) * curve.dpo_slope
    with _style(salt):
        figure, axes = _axes(SIZE, PLACE)
        axes.axhline(0.0, color=INK, alpha=0.35, linewidth=0.8)
        axes.plot(curve.delta, grey, color=DPO, linewidth=1.3)
        if is_of_margin(curve):
            lines = [-curve.to_chosen]
            axes.plot(curve.delta, lines[0], color=INK, linewidth=1.8)
        else:
            lines = [-curve.to_chosen, -curve.to_rejected]
            axes.plot(curve.delta, -grey, color=DPO, linewidth=1.3)
            axes.plot(curve.delta, lines[0], color=CHOSEN, linewidth=1.8)
            axes.plot(curve.delta, lines[1], color=REJECTED, linewidth=1.8)
        _frame(axes, curve, [*lines, np.zeros(1)])
        return _svg(figure)


def map_figure(curve: LossCurve, salt: str) -> str:
    """Draws the loss over (a, b) with the direction of descent; returns `<svg>`."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    low, high = np.quantile(curve.map, [0.01, 0.97])
    levels = np.linspace(low, max(high, low + 1e-9), LEVELS)
    ink = to_rgb(LEVEL)
    shades = LinearSegmentedColormap.from_list("", [(*ink, 0.02), (*ink, 0.85)])
    with _style(salt):
        figure, axes = _axes(SQUARE, SQUARE_PLACE)
        axes.grid(False)
        side = curve.side
        axes.contourf(side, side, curve.map, levels, cmap=shades, extend="both")
        for line in (axes.axhline, axes.axvline):
            line(0.0, color=INK, alpha=0.35, linewidth=0.8)
        axes.plot(
            side, -side, color=INK, alpha=0.55, linewidth=0.9, linestyle=(0, (4, 3))
        )
        _arrows(axes, curve)
        axes.set_xlim(side[0], side[-1])
        axes.set_ylim(side[0], side[-1])
        axes.set_xlabel("a, chosen", color=CHOSEN)
        axes.set_ylabel("b, rejected", color=REJECTED, labelpad=1)
        _ticks(axes)
        return _svg(figure)


def _arrows(axes: Any, curve: LossCurve) -> None:
    """Draws directions of descent; an arrow's length grows with the root of its size.

    The root, because sizes differ by orders of magnitude within a map.
    """
    step = len(curve.side) // ARROWS
    at = slice(step // 2, None, step)
    right, up = -curve.map_to_chosen[at, at], -curve.map_to_rejected[at, at]
    size = np.hypot(right, up)
    length = np.sqrt(size / max(size.max(), 1e-30))
    length = np.where(length > 0, np.maximum(length, 0.25), 0.0)
    unit = length / np.maximum(size, 1e-30)
    span = curve.side[-1] - curve.side[0]
    axes.quiver(
        curve.side[at],
        curve.side[at],
        right * unit,
        up * unit,
        color=INK,
        alpha=0.8,
        angles="xy",
        scale_units="xy",
        scale=ARROWS * 1.15 / span,
        width=0.006,
        headwidth=4,
        headlength=4.5,
        headaxislength=4,
        minlength=0,
        pivot="middle",
    )


def thumbnail(curve: LossCurve) -> str:
    """Draws the loss and DPO over Δ, small and without scales; returns `<svg>`."""
    width, height = TINY
    low, high = curve.loss.min(), curve.loss.max()
    every = slice(None, None, 4)
    left, right = curve.delta[0], curve.delta[-1]
    room = ROOM * height

    def line(values: np.ndarray, style: str) -> str:
        across = (curve.delta[every] - left) / (right - left) * width
        share = (values[every] - low) / max(high - low, 1e-30)
        down = np.clip(height - room - share * (height - 2 * room), -99, 199)
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, down, strict=True))
        return f'<polyline points="{points}" fill="none" {style}/>'

    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" aria-hidden="true">'
        f'<path d="M{width / 2:g} 0V{height:g}" stroke="currentColor" opacity=".18"/>'
        + line(touching(curve), f'stroke="{DPO}" stroke-width="1.4"')
        + line(curve.loss, 'stroke="currentColor" stroke-width="1.9"')
        + "</svg>"
    )


def _style(salt: str) -> Any:
    import matplotlib

    return matplotlib.rc_context({**style(INK), "svg.hashsalt": salt})


def _axes(
    size: tuple[float, float], place: tuple[float, float, float, float]
) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    axes = figure.add_axes(place)
    axes.grid(True)
    axes.set_axisbelow(True)
    return figure, axes


def _frame(axes: Any, curve: LossCurve, lines: Sequence[np.ndarray]) -> None:
    """Sets limits to those of the loss's own lines, and the scale of Δ."""
    low, high = min(v.min() for v in lines), max(v.max() for v in lines)
    room = ROOM * max(high - low, 1e-6)
    axes.axvline(0.0, color=INK, alpha=0.35, linewidth=0.8)
    axes.set_xlim(curve.delta[0], curve.delta[-1])
    axes.set_ylim(low - room, high + room)
    axes.set_xlabel(f"Δ = a − b, {curve.unit}")
    _ticks(axes)


def _ticks(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))


def tick(value: float) -> str:
    """Writes a number beside an axis, short."""
    units = ((1e6, "M"), (1e3, "k"))
    unit, suffix = next((u for u in units if abs(value) >= u[0]), (1.0, ""))
    return f"{value / unit:.6g}{suffix}".replace("-", "−")


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    return re.sub(r'<g id="[^"]*">', "<g>", inline(buffer.getvalue()))  # none is used


def inline(svg: str) -> str:
    """Cuts an SVG file down to an element that fits its place in a page."""
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
