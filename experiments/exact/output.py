"""Tables, figures and the command line of the exact experiments.

A table maps (case, quantity) to a number. `expected.csv` beside each experiment holds
the published numbers; a run prints its own beside them and writes both.
"""

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import matplotlib
from matplotlib.figure import Figure

from dpo_jax import markdown
from dpo_jax.gallery.figures import style
from dpo_jax.report.figures import COLORS

INK = "#333333"
Table = dict[tuple[str, str], float]
Expected = dict[tuple[str, str], str]
FIELDS = ("case", "quantity", "expected", "ours")
STYLE = {**style(INK), "axes.titlesize": 9.5, "legend.frameon": False}


def figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, Any]:
    """Opens a figure of `rows` × `columns` panels; returns it with its axes.

    Args:
      rows: of panels.
      columns: of panels.
      width: of the whole, inches.
      height: of the whole, inches.
    """
    matplotlib.rcParams.update(STYLE)
    canvas = Figure(figsize=(width, height), layout="constrained", dpi=160)
    return canvas, canvas.subplots(rows, columns)


def color(index: int) -> str:
    """Returns one of the project's colours."""
    return COLORS[index]


def read_expected(path: Path) -> Expected:
    """Reads the published numbers, as they were printed."""
    with path.open(encoding="utf-8") as file:
        return {(r["case"], r["quantity"]): r["expected"] for r in csv.DictReader(file)}


def number(value: float) -> str:
    """Writes a number for a table."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4f}" if abs(value) < 100 else f"{value:.1f}"
    return f"{value:.1e}"


def write_csv(path: Path, table: Table, expected: Expected) -> None:
    """Writes one row a number, in the format of `expected.csv`."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(FIELDS)
        for key, value in table.items():
            writer.writerow([*key, expected.get(key, ""), number(value)])


def as_markdown(table: Table, expected: Expected) -> str:
    """Renders one row a case, one column a quantity: `ours (expected)`."""
    cases = list(dict.fromkeys(case for case, _ in table))
    quantities = list(dict.fromkeys(quantity for _, quantity in table))

    def cell(key: tuple[str, str]) -> str:
        if key not in table:
            return ""
        printed = expected.get(key, "")
        return number(table[key]) + (f" ({printed})" if printed else "")

    rows = ([case, *(cell((case, name)) for name in quantities)] for case in cases)
    return markdown.table(["case", *quantities], rows)


def main(
    script: str,
    compute: Callable[[], Any],
    tabulate: Callable[[Any], Table],
    draw: Callable[[Any], Figure],
) -> None:
    """Runs an experiment in float64; prints its table, writes it and its figure.

    Args:
      script: `__file__` of the experiment.
      compute: returns what was measured.
      tabulate: what was measured -> table.
      draw: what was measured -> figure.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    out = parser.parse_args().out
    jax.config.update("jax_enable_x64", True)
    start = time.monotonic()
    results = compute()
    seconds = time.monotonic() - start
    table, expected = (
        tabulate(results),
        read_expected(Path(script).parent / "expected.csv"),
    )
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "table.csv", table, expected)
    draw(results).savefig(out / "figure.png")
    print(as_markdown(table, expected), end="")
    print(f"\nours (expected); {seconds:.0f} s; table.csv and figure.png in {out}")
