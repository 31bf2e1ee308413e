"""Table 2, by one command.

    python -m experiments.table2_human.run --tier=quick --out=runs/table2/quick

It trains, samples, and writes `questions.json`, what raters are to be asked. Raters of
tier `quick` are simulated; for `full`, give what people answered by
`--annotations=FILE` and the served judge by `--judge=MODEL@URL`. `--dry_run` prints the
commands.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from dpo_jax.errors import DataError
from experiments import judged
from experiments.table2_human import annotations, people
from experiments.table2_human.sweep import COLUMNS, FIGURE, READINGS
from experiments.table2_human.table import table


def main(arguments: Sequence[str]) -> int:
    """Runs what is missing of a tier, and prints the table; returns the exit code."""
    parser = judged.parser(FIGURE)
    parser.add_argument("--annotations", type=Path, help="what people answered")
    given = parser.parse_args(arguments)
    samples = judged.commands(FIGURE, given.tier, given.out, "")[:-1]
    if given.dry_run:
        return judged.tell(FIGURE, given, samples)
    if code := judged.sample(FIGURE, given, samples):
        return code
    try:
        answered = answers(given, [each.made for each in samples])
    except DataError as error:
        sys.stderr.write(f"error[3]: {error}\n")
        return 3
    if answered is None:
        return 0
    for each in verdicts(given, answered):
        if code := judged.called(each):
            return code
    sys.stdout.write(table(given.tier, given.out))
    return 0


def answers(
    given: argparse.Namespace, samples: Sequence[Path]
) -> annotations.Rows | None:
    """Writes the questions and returns what was answered; None = nothing yet.

    Raises:
      DataError: if an answer is to no question.
    """
    asked = people.questions(people.read_samples(samples), COLUMNS)
    file = given.out / "questions.json"
    file.write_text(json.dumps(asked, indent=1) + "\n", encoding="utf-8")
    if given.annotations:
        found = annotations.read(given.annotations)
    elif given.tier == "quick":
        found = people.simulated(asked)
    else:
        sys.stdout.write(
            f"{file} holds {len(asked)} comparisons; have each rated by as many people "
            "as its `raters` says, a row with `annotator` and `preference` a rating, "
            "and run the same with --annotations=FILE --judge=MODEL@URL\n"
        )
        return None
    known = [row["dataset"] for row in asked]
    for number, row in enumerate(found, 1):
        if row.get("dataset") not in known:
            raise DataError(
                f"annotation {number} is of `dataset` {row.get('dataset')!r}; "
                f"questions have {', '.join(dict.fromkeys(known))}"
            )
    kept = given.out / "annotations.json"
    kept.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def verdicts(given: argparse.Namespace, answered: annotations.Rows) -> list[list[str]]:
    """Returns the commands that judge each column in each way, beside the people."""
    of, found = FIGURE.tiers[given.tier], []
    for column in COLUMNS:
        rows = [row for row in answered if row["dataset"] == column]
        if not rows:
            continue
        out = given.out / "people" / column
        flags = annotations.write(rows, column, annotations.by_rating(rows), out)
        for name, reading in READINGS[given.tier].items():
            config = [f"--config={of.config}"]
            config += [f"--config.{key}={value}" for key, value in of.keys.items()]
            model = given.out / "reward_model" / "export"
            config += [f"--config.reward.path={model}"]
            judge = f"{flags[-1]},{reading.judge or given.judge}"
            asks = [*flags[:-1], judge, f"--prompt={reading.template}"]
            found.append(["winrate", *config, *asks, f"--out={out / name}"])
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
