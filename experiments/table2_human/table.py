"""Ours, the paper's and z of table 2, of what is there.

python -m experiments.table2_human.table --tier=quick --out=runs/table2/quick
"""

import argparse
import csv
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dpo_jax import markdown
from experiments import judged
from experiments.table2_human.sweep import COLUMNS, FIGURE, READINGS

PEOPLE = "people.jsonl"
RATED = ("people_1.jsonl", "people_2.jsonl")


class Number(NamedTuple):
    """A number of ours.

    Attributes:
      mean: a rate.
      se: its standard error.
      count: ratings, or comparisons, behind it.
      kappa: Cohen's, of an agreement; NaN of a win rate.
    """

    mean: float
    se: float
    count: int
    kappa: float


def table(tier: str, out: Path) -> str:
    """Lays our numbers beside the paper's, in Markdown, and writes `table.md`."""
    found: dict[tuple[str, str], Number] = {}
    for column in COLUMNS:
        for reading in READINGS[tier]:
            file = out / "people" / column / reading / "winrate.json"
            if file.exists():
                told = json.loads(file.read_text(encoding="utf-8"))
                for name, number in numbers(told, reading).items():
                    found[column, name] = number
    comparable = FIGURE.tiers[tier].comparable
    lines = []
    file = Path(FIGURE.folder) / "expected.csv"
    with file.open(encoding="utf-8") as expected:
        rows = list(csv.DictReader(expected))
    for row in rows:
        ours = found.get((row["column"], row["quantity"]))
        paper = judged.Paper(float(row["value"]), int(row["n"]))
        both = (ours.mean, ours.se) if ours else None
        mean, theirs, z = judged.cells_of(both, paper, comparable)
        count = str(ours.count) if ours else "–"
        kappa = f"{ours.kappa:.2f}" if ours and not math.isnan(ours.kappa) else "–"
        about = row["column"], row["quantity"], count
        lines.append([*about, mean, kappa, theirs, z])
    head = ("against PPO at T = 0", "quantity", "n", "ours", "κ", "paper", "z")
    text = f"{markdown.table(head, lines)}\nComparable: {comparable}.\n"
    (out / "table.md").write_text(text, encoding="utf-8")
    return text


def numbers(told: Mapping[str, Any], reading: str) -> dict[str, Number]:
    """Finds the numbers of a column and a way of asking: name -> number.

    Args:
      told: `winrate.json`.
      reading: what the judge is called in the paper.
    """
    known = (PEOPLE, *RATED)
    judge = next(row["judge"] for row in told["rows"] if row["judge"] not in known)
    found = {}
    for name, by in ((reading, judge), ("people", PEOPLE)):
        for row in told["rows"]:
            if row["judge"] == by:
                se = row["se"] or 0.0
                found[name] = Number(row["win_rate"], se, row["judged"], math.nan)
    for name, one in ((f"{reading} with people", judge), ("people with people", "")):
        pairs = [
            row
            for row in told["agreement"]
            if (one in (row["judge"], row["other"]) if one else True)
            and {row["judge"], row["other"]} <= {one, *RATED}
        ]
        if pairs:
            found[name] = agreement(pairs)
    return found


def agreement(rows: Sequence[Mapping[str, Any]]) -> Number:
    """Averages the agreement of a judge with each rating, by how many there are."""
    count = sum(row["count"] for row in rows)
    raw = sum(row["raw"] * row["count"] for row in rows) / count
    known = [row for row in rows if row["kappa"] is not None]
    weight = sum(row["count"] for row in known)
    kappa = sum(row["kappa"] * row["count"] for row in known) / weight if weight else 0
    se = math.sqrt(raw * (1 - raw) / count)
    return Number(raw, se, count, kappa if weight else math.nan)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tier", choices=FIGURE.tiers, default="quick")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tier")
    given = parser.parse_args()
    sys.stdout.write(table(given.tier, given.out))
