"""Writes one self-contained page about one or several runs, or about a sweep.

Everything that comes from a run is text and is escaped; nothing is fetched.
"""

import base64
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import markupsafe

from dpo_jax import files
from dpo_jax.report import figures, frontier, glossary, runs, tables
from dpo_jax.report.tables import ReportTable

TEMPLATES = Path(__file__).parent / "templates"
FIRST = (  # metrics whose curves stand first
    *("loss", "rewards/margins", "rewards/accuracies"),
    *("logps/chosen", "logps/rejected", "grad_norm", "lr"),
)


class Side(NamedTuple):
    """One continuation of a prompt: whose it is, with its colour ('' = none)."""

    label: str
    color: str
    text: str
    reward: float | None


class Chart(NamedTuple):
    """A metric's curves, with what it means and what a run that goes well shows."""

    metric: str
    caption: str
    healthy: str
    svg: str


def write_report(folders: Sequence[os.PathLike | str], out: os.PathLike | str) -> None:
    """Writes `report.html` about the runs in `folders`.

    Args:
      folders: run folders; the first gets the first colour.
      out: the file to write; its folder is made.

    Raises:
      DataError: if a run cannot be read; names all that cannot.
      WriteError: if `out` cannot be written.
    """
    files.write_whole(out, render(runs.load_all(folders)))


def render(loaded: list[runs.Run]) -> str:
    """Returns the page about some runs."""
    known = runs.names(loaded)
    main = [name for name in FIRST if name in known]
    others = [name for name in known if name not in FIRST]
    return (
        make_environment()
        .get_template("report.html")
        .render(
            title=loaded[0].name if len(loaded) == 1 else f"{len(loaded)} runs",
            runs=[(run, figures.color(i)) for i, run in enumerate(loaded)],
            final=tables.final(loaded),
            results=[(run, t) for run in loaded if (t := tables.results(run))],
            frontier=markupsafe.Markup(frontier.draw(loaded)),
            held=frontier.frontiers(loaded),
            charts=_charts(loaded, main),
            more_charts=_charts(loaded, others),
            samples=side_by_side(loaded),
            counts=tables.counts(loaded),
            summary=tables.summary(loaded),
            configs=[(run, json.dumps(run.config, indent=2)) for run in loaded],
        )
    )


def render_sweep(
    title: str, found: Sequence[ReportTable], notes: Sequence[str], figure: bytes
) -> str:
    """Returns the page of a sweep's tables.

    Args:
      title: of the page.
      found: the tables.
      notes: what a reader must know of them.
      figure: a PNG.
    """
    template = make_environment().get_template("sweep.html")
    drawn = base64.b64encode(figure).decode()
    return template.render(title=title, tables=found, notes=notes, figure=drawn)


def side_by_side(loaded: list[runs.Run]) -> list[tuple[str, list[Side]]]:
    """Lays out what all runs made of each prompt, the references first.

    Returns:
      A prompt and its continuations each, in the order of the runs; references that
      said the same stand there once.
    """
    before: dict[str, dict[str, Side]] = {}
    after: dict[str, list[Side]] = {}
    for index, run in enumerate(loaded):
        ink = figures.color(index)
        for sample in run.samples:
            prompt, said = sample["prompt"], sample["before"]
            same = before.setdefault(prompt, {})
            label = f"reference of {run.name}" if same else "reference"
            reward = sample.get("reward_before")
            same.setdefault(said, Side(label, "", said, reward))
            own = Side(run.name, ink, sample["after"], sample.get("reward_after"))
            after.setdefault(prompt, []).append(own)
    return [(prompt, [*before[prompt].values(), *after[prompt]]) for prompt in after]


def _charts(loaded: list[runs.Run], metrics: list[str]) -> list[Chart]:
    return [
        Chart(name, *glossary.captions(name), markupsafe.Markup(svg))
        for name in metrics
        if (svg := figures.curves(loaded, name))
    ]


def make_environment() -> jinja2.Environment:
    """Makes templates that escape all text and show its control characters."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_plain,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = tables.cell_text
    environment.filters["reward"] = lambda value: tables.cell_text(float(value))
    return environment


def _plain(value: Any) -> Any:
    """Cleans every text that a template prints, but not our own markup."""
    is_text = isinstance(value, str) and not isinstance(value, markupsafe.Markup)
    return runs.plain(value) if is_text else value
