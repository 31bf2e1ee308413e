"""HH's test set in three parts that share no prompt: to sample, to train, to judge."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.judged_tiers import hh_rows, is_single_turn, write_rows

Row = dict[str, str]
HELD_OUT = 256  # prompts of one human turn that are sampled, as in the paper
SEED = 0


def split(rows: Sequence[Row], held_out: int = HELD_OUT) -> dict[str, list[Row]]:
    """Splits pairs by their prompts.

    Args:
      rows: pairs.
      held_out: prompts of one human turn to leave out of training.

    Returns:
      `prompts`, the pairs of those; and the others, one half of whose prompts trains
      policies (`policy`), the other the reward model that judges them (`judge`).
    """
    every = list(dict.fromkeys(row["prompt"] for row in rows))
    once = {row["prompt"] for row in rows if is_single_turn(row)}
    order = np.random.default_rng(SEED).permutation(len(every))
    mixed = [every[place] for place in order]
    sampled = [prompt for prompt in mixed if prompt in once][:held_out]
    rest = [prompt for prompt in mixed if prompt not in set(sampled)]
    half = len(rest) // 2
    parts = {"prompts": sampled, "policy": rest[:half], "judge": rest[half:]}
    whose = {prompt: name for name, of in parts.items() for prompt in of}
    found: dict[str, list[Row]] = {name: [] for name in parts}
    for row in rows:
        found[whose[row["prompt"]]].append(row)
    return found


def write(source: str, out: Path) -> None:
    """Writes the parts of a source of HH as JSONL files."""
    for name, rows in split(hh_rows(source)).items():
        write_rows(out / f"{name}.jsonl", rows)
