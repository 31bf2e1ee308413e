"""Verdicts of raters in the schema that AlpacaEval and AlpacaFarm publish.

    python -m experiments.table2_human.annotations FILE.json [FILE.json …] --out=DIR

A file is a list of objects with `instruction`, `output_1`, `output_2`, `preference` and
`annotator`, maybe `generator_1` and `generator_2`: a preference of 1 is for the first
output, 2 for the second, 1.5 or 0 a tie, and what lies between goes to the nearer. The
command tables how often `generator_2` (or --policy) wins by each annotator, and how far
every two agree; with `--by=rating` the first and the second rating of each comparison
stand for two raters, whoever they were.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpo_jax.errors import DataError
from experiments.judged import called
from experiments.judged_tiers import write_rows

Rows = list[dict[str, Any]]
NEEDED = ("instruction", "output_1", "output_2")


def read(file: Path, *, rated: bool = True) -> Rows:
    """Reads annotations.

    Args:
      file: a JSON list.
      rated: whether each row must have a preference.

    Raises:
      DataError: naming the row that is none.
    """
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{file} is no list of annotations")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"{file}, row {number} is no object")
        texts = all(isinstance(row.get(name), str) for name in NEEDED)
        if not texts or (rated and "preference" not in row):
            due = ", ".join([*NEEDED, *["preference"] * rated])
            raise DataError(f"{file}, row {number} has {sorted(row)}; {due} are due")
        verdict(row.get("preference"), f"{file}, row {number}")
    return rows


def verdict(preference: Any, where: str) -> str:
    """Says which output is preferred: first, second or tie; '' = neither was named.

    Raises:
      DataError: if it is no preference.
    """
    if preference is None or preference != preference:  # as NaN is
        return ""
    number = isinstance(preference, int | float) and not isinstance(preference, bool)
    if not number or not (preference == 0 or 1 <= preference <= 2):
        raise DataError(f"{where}: preference={preference!r} is none of 1, 2, 1.5, 0")
    if preference in (0, 1.5):
        return "tie"
    return "first" if preference < 1.5 else "second"


def label(row: Mapping[str, Any]) -> dict[str, Any]:
    """Makes a label of `winrate --judge=FILE` of an annotation."""
    said = verdict(row["preference"], "annotations")
    absent = {} if said else {"absent": "no preference"}
    prompt, first, second = (row[name] for name in NEEDED)
    shown = {"prompt": prompt, "first": first, "second": second}
    return {**shown, "verdict": said, **absent}


def by_annotator(rows: Sequence[Mapping[str, Any]]) -> dict[str, Rows]:
    """Makes labels of annotations: annotator -> what it said."""
    found: dict[str, Rows] = {}
    for row in rows:
        found.setdefault(str(row.get("annotator", "annotator")), []).append(label(row))
    return found


def by_rating(rows: Sequence[Mapping[str, Any]]) -> dict[str, Rows]:
    """Makes labels of people's annotations: all, and the n-th of each comparison."""
    found: dict[str, Rows] = {"people": []}
    seen: Counter[tuple[str, frozenset[str]]] = Counter()
    for row in rows:
        one = label(row)
        if one["verdict"]:
            key = one["prompt"], frozenset((one["first"], one["second"]))
            seen[key] += 1
            found["people"].append(one)
            found.setdefault(f"people_{seen[key]}", []).append(one)
    return found


def write(
    rows: Sequence[Mapping[str, Any]],
    policy: str,
    labels: Mapping[str, Rows],
    out: Path,
) -> list[str]:
    """Writes what `winrate` reads of annotations: answers, those against, labels.

    Args:
      rows: annotations.
      policy: the generator whose wins are counted.
      labels: judge -> its labels.
      out: a folder.

    Returns:
      The flags of `winrate`; more judges may be added to the last.
    """
    out.mkdir(parents=True, exist_ok=True)
    pairs: dict[tuple[str, ...], tuple[str, str, str]] = {}
    for row in rows:
        prompt, first, second = (row[name] for name in NEEDED)
        shown = (second, first) if row.get("generator_2") == policy else (first, second)
        pairs.setdefault((prompt, *shown), (prompt, *shown))
    own = [{"policy": policy, "prompt": p, "text": a} for p, a, _ in pairs.values()]
    write_rows(out / "answers.jsonl", own)
    against = [{"prompt": p, "text": b} for p, _, b in pairs.values()]
    write_rows(out / "against.jsonl", against)
    files = {name: out / f"{name.replace('/', '_')}.jsonl" for name in labels}
    for name, file in files.items():
        write_rows(file, labels[name])
    judges = ",".join(map(str, files.values()))
    flags = [f"--samples={out / 'answers.jsonl'}", f"--against={out / 'against.jsonl'}"]
    return [*flags, "--max_absent=1", f"--judge={judges}"]


def policy_of(rows: Sequence[Mapping[str, Any]], named: str) -> str:
    """Returns the generator whose wins are counted; the first output's of no names.

    Raises:
      DataError: if a row does not have it.
    """
    policy = named or str(rows[0].get("generator_2", "")) or "first"
    for number, row in enumerate(rows, 1):
        both = row.get("generator_1"), row.get("generator_2")
        if any(both) and policy not in both:
            raise DataError(f"row {number} compares {both}; --policy={policy!r}")
    return policy


def main(arguments: Sequence[str]) -> int:
    """Tables published annotations; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--policy", default="", help="default: generator_2")
    parser.add_argument("--by", choices=("annotator", "rating"), default="annotator")
    given = parser.parse_args(arguments)
    try:
        rows = [row for file in given.files for row in read(file)]
        policy = policy_of(rows, given.policy)
    except DataError as error:
        sys.stderr.write(f"error[3]: {error}\n")
        return 3
    labels = by_annotator(rows) if given.by == "annotator" else by_rating(rows)
    flags = write(rows, policy, labels, given.out)
    return called(["winrate", *flags, f"--out={given.out / 'winrate'}"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
