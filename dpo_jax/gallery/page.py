"""Writes one self-contained page about the losses: formula, curve, pull and map.

It is given words and numbers and knows no formula; nothing is fetched, and the only
addresses on it are those of papers on arXiv.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import markupsafe
import numpy as np

from dpo_jax import files
from dpo_jax.gallery import figures
from dpo_jax.gallery.curves import LossCurve
from dpo_jax.report import html
from dpo_jax.report.runs import plain

Markup = markupsafe.Markup

FLAT = 1e-6  # of the largest pull: what counts as none


class Entry(NamedTuple):
    """A loss, in words and numbers.

    Attributes:
      name: as in `loss.name`.
      group: the heading that it stands under.
      formula: in unicode; `_x`, `^x` and `^(…)` are set low and high.
      source: names arXiv numbers as `arXiv:2305.18290`.
      curve: its numbers.
    """

    name: str
    group: str
    formula: str
    source: str
    curve: LossCurve


class Card(NamedTuple):
    """What the template shows of a loss."""

    name: str
    formula: Markup
    source: Markup
    setting: list[tuple[str, str]]
    tiny: Markup
    loss: Markup
    pull: Markup
    map: Markup
    is_of_margin: bool
    yardstick: str
    facts: list[str]
    notes: list[Markup]


def write_explorer(entries: Sequence[Entry], out: os.PathLike | str) -> None:
    """Writes the page.

    Args:
      entries: the losses, in order.
      out: the file to write; its folder is made.

    Raises:
      WriteError: if `out` cannot be written.
    """
    files.write_whole(out, render(entries))


def render(entries: Sequence[Entry]) -> str:
    """Returns the page about some losses, grouped in the order of first mention."""
    groups: dict[str, list[Card]] = {}
    for entry in entries:
        groups.setdefault(entry.group, []).append(card(entry))
    return (
        html.make_environment()
        .from_string((Path(__file__).parent / "losses.html").read_text("utf-8"))
        .render(
            groups=groups,
            count=len(entries),
            colors={
                "chosen": figures.CHOSEN,
                "rejected": figures.REJECTED,
                "dpo": figures.DPO,
            },
        )
    )


def card(entry: Entry) -> Card:
    """Draws a loss and words what its numbers say."""
    curve = entry.curve
    scale = figures.yardstick(curve)
    return Card(
        name=entry.name,
        formula=typeset(entry.formula),
        source=linked(entry.source),
        setting=[(name, shown(value)) for name, value in curve.setting.items()],
        tiny=Markup(figures.thumbnail(curve)),
        loss=Markup(figures.loss_figure(curve, f"{entry.name} loss")),
        pull=Markup(figures.pull_figure(curve, f"{entry.name} pull")),
        map=Markup(figures.map_figure(curve, f"{entry.name} map")),
        is_of_margin=figures.is_of_margin(curve),
        yardstick=f"β = {shown(curve.beta)}, × {shown(scale)}",
        facts=facts(curve),
        notes=[typeset(note) for note in curve.notes],
    )


def facts(curve: LossCurve) -> list[str]:
    """Says in sentences where a loss starts, whom it pulls and where that turns."""
    middle = len(curve.delta) // 2
    pulls = -curve.to_chosen[middle], -curve.to_rejected[middle]
    chosen, rejected = (number(pull, "+") for pull in pulls)
    found = [
        f"At a = b = 0 the loss is {shown(curve.loss[middle])}; it pulls the chosen "
        f"response by {chosen} and the rejected one by {rejected}."
    ]
    back = [share(curve.map_to_chosen), share(-curve.map_to_rejected)]
    if figures.is_of_margin(curve):
        found.append("Only Δ counts: it does not mind both falling together.")
        if back[0]:
            found.append(f"It narrows the margin again on {back[0]:.0%} of the map.")
    elif any(back):
        found.append(
            f"It makes the chosen response less likely on {back[0]:.0%} of the map, "
            f"the rejected one likelier on {back[1]:.0%}."
        )
    if is_stopped(curve):
        found.append(
            "Some of what moves with the pair gets no gradient: the pull drawn is the "
            "one that trains, not the slope of the curve."
        )
    return found


def share(slopes: np.ndarray) -> float:
    """Returns on which share of the map a slope is positive, rounding errors aside."""
    return float(np.mean(slopes > FLAT * np.abs(slopes).max()))


def is_stopped(curve: LossCurve) -> bool:
    """Says whether the pull differs from the slope of the curve, corners aside."""
    slope = np.gradient(curve.loss, curve.delta)
    pull = (curve.to_chosen - curve.to_rejected) / 2
    inner = slice(2, -2)
    apart = np.abs(slope - pull)[inner] > 0.02 * np.abs(pull).max()
    return bool(apart.mean() > 0.25)


def shown(value: Any) -> str:
    """Writes a value of a setting, floats with three digits."""
    return number(value) if isinstance(value, float | np.floating) else str(value)


def number(value: float | np.floating, sign: str = "") -> str:
    """Writes a number with three digits, or whole; `sign` '+' to show it always."""
    if abs(value) < 1e-12:
        return "0"
    form = f"{sign},.0f" if 1e3 <= abs(value) < 1e9 else f"{sign}.3g"
    return format(value, form).replace("-", "−")


def typeset(formula: str) -> Markup:
    """Sets `_x`, `_{…}`, `^x` and `^(…)` low and high, and names in backticks.

    Everything else is text and is escaped.
    """
    text = str(markupsafe.escape(plain(formula)))
    text = re.sub(r"`([^`]*)`", r"<code>\1</code>", text)
    text = re.sub(r"_\{([^{}]*)\}", r"<sub>\1</sub>", text)
    text = re.sub(r"(?<=[^\W\d_])_(\w)(?!\w)", r"<sub>\1</sub>", text)
    text = re.sub(r"\^\(([^()]*(?:<[^<>]*>[^()]*)*)\)", r"<sup>\1</sup>", text)
    text = re.sub(r"\^(\w)", r"<sup>\1</sup>", text)
    return Markup(text)


def linked(source: str) -> Markup:
    """Links the arXiv numbers of a text; everything else is text and is escaped."""
    text = str(markupsafe.escape(plain(source)))
    return Markup(
        re.sub(
            r"arXiv:(\d{4}\.\d{4,5})",
            r'<a href="https://arxiv.org/abs/\1">arXiv:\1</a>',
            text,
        )
    )
