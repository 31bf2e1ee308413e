"""Tables of numbers from runs, and their plain text for a terminal."""

import json
import math
from typing import Any, NamedTuple

from dpo_jax.config import flat
from dpo_jax.report.runs import SPLITS, Run, plain, series

Cell = str | int | float | tuple[float, float] | None  # (mean, standard error)

# What tells runs apart first; the whole configuration is shown elsewhere.
SUMMARY = (
    "model.path",
    "model.preset",
    "ref.path",
    "ref.mode",
    "data.train",
    "data.eval",
    "data.layout",
    "data.max_tokens",
    "batch.pairs",
    "train.steps",
    "train.epochs",
    "loss.name",
    "loss.beta",
    "loss.label_smoothing",
    "optimizer.name",
    "optimizer.lr",
    "optimizer.warmup_steps",
    "optimizer.warmup_share",
    "seed",
)
FINAL = (
    "loss",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "rollouts/reward",
    "rollouts/kl",
    "frontier/excess",
)


class ReportTable(NamedTuple):
    """Rows under named columns; the first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def final(runs: list[Run], metrics: list[str] | None = None) -> ReportTable:
    """Tabulates the last value of metrics, one row a run.

    Args:
      runs: the runs.
      metrics: `eval/…` or `train/…` names, such as `eval/rewards/accuracies`; a
        name without split means train. None = the usual ones, of eval if there are.

    Returns:
      Columns `run`, `step` (the last one logged) and one for each metric.
    """
    wanted = _usual(runs) if metrics is None else metrics
    rows = []
    for run in runs:
        last = max(line["step"] for line in run.metrics)
        rows.append((run.name, last, *(_last(run, name) for name in wanted)))
    return ReportTable("At the end of training", ("run", "step", *wanted), tuple(rows))


def results(run: Run) -> ReportTable | None:
    """Tabulates `results.json`; None for a run without one."""
    if not run.results.get("rows"):
        return None
    rows = run.results["rows"]
    columns = list(dict.fromkeys(key for row in rows for key in row["values"]))
    cells = tuple(
        (row["name"], *(_measured(row["values"].get(key)) for key in columns))
        for row in rows
    )
    return ReportTable(run.results.get("title", "Results"), ("", *columns), cells)


def counts(runs: list[Run]) -> ReportTable:
    """Tabulates `data.json`: one row a count, one column a run."""
    return _by_key("Data", [flat(run.data) for run in runs], runs)


def summary(runs: list[Run]) -> ReportTable:
    """Tabulates the main configuration keys and all in which the runs differ."""
    configs = [flat(run.config) for run in runs]
    every = list(dict.fromkeys(key for config in configs for key in config))
    chosen = [key for key in SUMMARY if any(config.get(key) for config in configs)]
    chosen += [key for key in every if key not in chosen and _differ(configs, key)]
    shown = [{k: config[k] for k in chosen if k in config} for config in configs]
    return _by_key("Configuration", shown, runs)


def as_text(table: ReportTable) -> str:
    """Lays a table out in plain text: names left, figures right, no trailing blanks."""
    grid = [[plain(name) for name in table.columns]]
    grid += [[cell_text(cell) for cell in row] for row in table.rows]
    widths = [max(len(line[i]) for line in grid) for i in range(len(table.columns))]
    lines = []
    for line in grid:
        first, *rest = zip(line, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(text.rjust(w) for text, w in rest)]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([plain(table.title), "", *lines]) + "\n"


def cell_text(cell: Cell) -> str:
    """Writes a cell: text and integers as they are, – for None, floats rounded.

    A float gets 4 significant digits, a mean the digits of two in its error.
    """
    if cell is None:
        return "–"
    if isinstance(cell, tuple):
        mean, error = cell
        usable = math.isfinite(error) and error > 0
        digits = 1 - math.floor(math.log10(error)) if usable else 3
        digits = min(max(digits, 0), 6)
        return f"{mean:.{digits}f} ± {error:.{digits}f}".replace("-", "−")
    if isinstance(cell, str):
        return " ".join(plain(cell).split())
    if isinstance(cell, int):
        return f"{cell}".replace("-", "−")
    mantissa, e, exponent = f"{cell:#.4g}".partition("e")
    return mantissa.replace("-", "−") + e + exponent


def _usual(runs: list[Run]) -> list[str]:
    """Lists the usual metrics of eval, or of train where nothing was evaluated."""
    for split in reversed(SPLITS):
        usual = [
            f"{split}/{metric}"
            for metric in FINAL
            if any(series(run, split, metric)[1] for run in runs)
        ]
        if usual:
            return usual
    return []


def _last(run: Run, name: str) -> float | None:
    split, _, metric = name.partition("/")
    if split not in SPLITS:
        split, metric = "train", name
    values = series(run, split, metric)[1]
    return values[-1] if values else None


def _measured(value: Any) -> Cell:
    """Turns a JSON value of `results.json` into a cell."""
    if isinstance(value, list):
        mean, error = value
        return (float(mean), float(error))
    return value


def _by_key(title: str, trees: list[dict[str, Any]], runs: list[Run]) -> ReportTable:
    keys = dict.fromkeys(key for tree in trees for key in tree)
    rows = tuple((key, *(_shown(tree, key) for tree in trees)) for key in keys)
    return ReportTable(title, ("", *(run.name for run in runs)), rows)


def _shown(tree: dict[str, Any], key: str) -> Cell:
    """Returns a value as a cell, as it was written; what is empty as absent."""
    value = tree.get(key)
    if value in ("", None, {}, []):
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return value if isinstance(value, str) else json.dumps(value)


def _differ(trees: list[dict[str, Any]], key: str) -> bool:
    return any(tree.get(key) != trees[0].get(key) for tree in trees)
