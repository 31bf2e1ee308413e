"""The figure of reward against KL: runs, beneath the frontier and beside best-of-N.

KL is drawn on a scale of √KL, in which reward grows about evenly at first
(arXiv:2210.10760), so that careful runs and those that went far fit in one figure.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import markupsafe

from dpo_jax.report import figures
from dpo_jax.report.figures import Axis
from dpo_jax.report.runs import Run, plain, series

WIDTH, HEIGHT = 680, 340
LEFT, RIGHT, TOP, BOTTOM = 52, 664, 10, 298  # the edges of the axes
NATS = (0, 0.1, 0.5, 1, 2, 4, 7, 10, 15, 20, 30, 50, 100, 200, 500, 1000)  # ticks
CLOSEST = 18  # pixels between two of them, or two numbers of best-of-N


class Point(NamedTuple):
    """Where a run lay at an evaluation; errors are standard errors, 0 = none known."""

    kl: float
    kl_se: float
    reward: float
    reward_se: float


def points(run: Run) -> list[Point]:
    """Lists where a run lay, in order of its steps."""
    names = ("kl", "kl_se", "reward", "reward_se")
    columns = [
        dict(zip(*series(run, "eval", f"rollouts/{name}"), strict=True))
        for name in names
    ]
    steps = [step for step in columns[0] if step in columns[2]]
    found = [Point(*(column.get(step, 0.0) for column in columns)) for step in steps]
    return [point for point in found if all(map(math.isfinite, point))]


def frontiers(runs: list[Run]) -> list[tuple[str, dict[str, Any]]]:
    """Lists the frontiers that differ, each with the name of its run; '' = of all."""
    found: list[tuple[str, dict[str, Any]]] = []
    for run in runs:
        if run.frontier and run.frontier not in [held for _, held in found]:
            found.append((run.name, run.frontier))
    return [("", found[0][1])] if len(found) == 1 else found


def draw(runs: list[Run]) -> str:
    """Draws reward against KL to the reference, one colour a run.

    Args:
      runs: the runs, in the order that gives them their colours.

    Returns:
      An `<svg>` element without width and height; '' if no run was sampled.
    """
    placed, held = [points(run) for run in runs], frontiers(runs)
    if not any(placed):
        return ""
    bests = [best for _, each in held for best in each["best_of"]]
    curves = [point for _, each in held for point in each["frontier"]]
    kls = [point.kl for of_run in placed for point in of_run]
    kls += [best["kl_bound"] for best in bests]
    kls += [point["kl"] for point in curves if point["trusted"]]
    x = figures.axis([0.0, *map(_root, kls)], LEFT, RIGHT)
    seen = [point["reward"] for point in curves if _root(point["kl"]) <= x.high]
    seen += [best["reward"] for best in bests]
    seen += [p.reward + s * p.reward_se for of in placed for p in of for s in (-1, 1)]
    y = figures.axis(seen, BOTTOM, TOP)
    measure = next((each["measure"] for _, each in held), "reward")
    parts = [*_frame(x, y, measure)]
    for name, each in held:
        parts += _bests(x, y, each["best_of"])
        parts += _frontier(x, y, each["frontier"], name)
    for index, of_run in enumerate(placed):
        parts += _run(x, y, of_run, figures.color(index))
    return figures.svg(parts, WIDTH, HEIGHT)


def _root(kl: float) -> float:
    return math.sqrt(max(kl, 0.0))


def _frame(x: Axis, y: Axis, measure: str) -> Iterator[str]:
    """Draws the axes; ticks of KL stand at round numbers of nats."""
    kept: list[tuple[float, str]] = []
    for kl in NATS:
        at = _root(kl)
        if at <= x.high and (not kept or x.at(at) - x.at(kept[-1][0]) >= CLOSEST):
            kept.append((at, f"{kl:g}"))
    yield from figures.frame(x, y, kept, "KL to the reference, nats (scale of √KL)")
    middle, text = (TOP + BOTTOM) / 2, markupsafe.escape(plain(measure))
    yield (
        f'<text transform="translate(12 {middle:g}) rotate(-90)" '
        f'text-anchor="middle">{text}</text>'
    )


def _path(x: Axis, y: Axis, places: list[tuple[float, float]], style: str) -> str:
    steps = "L".join(f"{x.at(_root(kl)):.1f} {y.at(r):.1f}" for kl, r in places)
    return f'<path d="M{steps}" fill="none" stroke-linejoin="round" {style}/>'


def _frontier(
    x: Axis, y: Axis, curve: list[dict[str, Any]], name: str
) -> Iterator[str]:
    """Draws a frontier: solid where enough samples carry it, else dotted."""
    inside = [point for point in curve if _root(point["kl"]) <= x.high]
    inside.sort(key=lambda point: point["kl"])
    sure = [(p["kl"], p["reward"]) for p in inside if p["trusted"]]
    rest = sure[-1:] + [(p["kl"], p["reward"]) for p in inside if not p["trusted"]]
    ink = 'stroke="currentColor" stroke-width="1.8"'
    if len(rest) > 1:
        yield _path(x, y, rest, f'{ink} stroke-dasharray="1 3" stroke-opacity=".7"')
    if sure:
        yield _path(x, y, sure, ink)
        kl, reward = sure[len(sure) // 2]
        said = markupsafe.escape(plain(f"frontier of {name}" if name else "frontier"))
        yield (
            f'<text x="{x.at(_root(kl)) - 5:.1f}" y="{y.at(reward) - 5:.1f}" '
            f'text-anchor="end">{said}</text>'
        )


def _bests(x: Axis, y: Axis, bests: list[dict[str, Any]]) -> Iterator[str]:
    """Draws best-of-N of the reference, each with its N, by the bound of its KL."""
    if not bests:
        return
    places = [(best["kl_bound"], best["reward"]) for best in bests]
    style = 'stroke="currentColor" stroke-width="1" stroke-opacity=".5"'
    yield _path(x, y, places, f'{style} stroke-dasharray="4 3"')
    said = -math.inf
    for best, (kl, reward) in zip(bests, places, strict=True):
        across, down = x.at(_root(kl)), y.at(reward)
        yield (
            f'<path d="M{across:.1f} {down - 3:.1f}l3 3l-3 3l-3-3z" '
            'fill="var(--paper, #fff)" stroke="currentColor"/>'
        )
        if across - said >= CLOSEST:
            said = across
            yield (
                f'<text x="{across:.1f}" y="{down + 13:.1f}" text-anchor="middle" '
                f'fill-opacity=".7">{best["m"]:g}</text>'
            )


def _run(x: Axis, y: Axis, places: list[Point], ink: str) -> Iterator[str]:
    """Draws the way of a run, with one standard error each way; the end is larger."""
    if len(places) > 1:
        way = [(point.kl, point.reward) for point in places]
        style = f'stroke="{ink}" stroke-width="1.2" stroke-opacity=".6"'
        yield _path(x, y, way, style)
    for number, (kl, kl_se, reward, reward_se) in enumerate(places, start=1):
        style = f'stroke="{ink}" stroke-width=".8" stroke-opacity=".6"'
        yield _path(x, y, [(kl - kl_se, reward), (kl + kl_se, reward)], style)
        yield _path(x, y, [(kl, reward - reward_se), (kl, reward + reward_se)], style)
        size = 4 if number == len(places) else 2.2
        across, down = x.at(_root(kl)), y.at(reward)
        yield f'<circle cx="{across:.1f}" cy="{down:.1f}" r="{size}" fill="{ink}"/>'
