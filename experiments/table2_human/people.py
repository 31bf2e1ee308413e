"""What raters are asked, and raters of the small tier, who are simulated."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dpo_jax.data.sources import sentiment
from experiments.table2_human.annotations import Rows
from experiments.table2_human.sweep import AGAINST, Column

Said = dict[tuple[str, float], dict[str, str]]  # (trial, temperature) -> prompt -> text


def read_samples(files: Sequence[Path]) -> Said:
    """Reads samples, one of each policy and temperature to a prompt."""
    found: Said = {}
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            arm = Path(row["policy"]).parent.name, float(row["temperature"])
            found.setdefault(arm, {}).setdefault(row["prompt"], row["text"])
    return found


def questions(said: Said, columns: Mapping[str, Column], seed: int = 0) -> Rows:
    """Draws the comparisons that are rated, each in a random order, as the paper did.

    Where both policies say the same, nobody is asked.

    Args:
      said: samples.
      columns: what is compared with `AGAINST`; where fewer differ, those are all.
      seed: of the draw.

    Returns:
      Annotations without `annotator` and `preference`; `raters` says how many are due.
    """
    rng = np.random.default_rng(seed)
    rows: Rows = []
    for name, column in columns.items():
        ours, theirs = said[column.trial, column.temperature], said[AGAINST]
        apart = [prompt for prompt in theirs if ours[prompt] != theirs[prompt]]
        count = min(column.comparisons, len(apart))
        for place in rng.choice(len(apart), count, replace=False):
            prompt = apart[place]
            shown = [(name, ours[prompt]), ("PPO-0", theirs[prompt])]
            if rng.random() < 0.5:
                shown.reverse()
            (one, first), (two, second) = shown
            texts = {"instruction": prompt, "output_1": first, "output_2": second}
            named = {"generator_1": one, "generator_2": two, "dataset": name}
            rows.append({**texts, **named, "raters": column.raters})
    return rows


def simulated(asked: Rows, seed: int = 0) -> Rows:
    """Answers as raters who prefer by Bradley and Terry's law of the true reward.

    Two raters of a comparison are independent, so how often people agree with people is
    what that law says: they are no people, and say nothing of people.
    """
    rng = np.random.default_rng(seed)
    rows: Rows = []
    for row in asked:
        words = row["instruction"].split()
        first, second = (
            sentiment.reward(words, row[name].split())
            for name in ("output_1", "output_2")
        )
        chance = 0.5 * (1 + math.tanh((first - second) / 2))
        for number in range(row["raters"]):
            preference = 1 if rng.random() < chance else 2
            who = {"annotator": f"simulated_{number + 1}", "preference": preference}
            rows.append({**row, **who})
    return rows
