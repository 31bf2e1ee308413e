"""Preferences among samples of the reference, labelled by the truth.

Every prompt has K samples and thus K(K − 1)/2 pairs, ties left out, as in appendix C.1
of arXiv:2305.18290. Labels are `deterministic`, the paper's, or `bradley_terry`: a
sample wins with the odds of its truth over the sum of both odds, which is
σ(difference of log-odds). Rows carry token ids and whether a sample ended, so that what
is trained on is what was drawn. No jax.
"""

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

LABELS = ("deterministic", "bradley_terry")
LEAST = 1e-4  # of a truth and of 1 − truth, so that its odds are finite
Row = dict[str, Any]


def read(path: Path) -> list[list[Row]]:
    """Reads what `sample --out` wrote: the samples of each prompt, in order."""
    with path.open(encoding="utf-8") as file:
        rows = map(json.loads, file)
        groups = itertools.groupby(rows, key=lambda row: row["index"])
        return [list(group) for _, group in groups]


def label(
    groups: Sequence[Sequence[Row]],
    truths: Sequence[Sequence[float]],
    labels: str,
    seed: int,
) -> list[Row]:
    """Makes rows of preferences out of the samples of each prompt, in random order.

    Args:
      groups: samples of each prompt, as `sample --out` has them.
      truths: of each of them, in [0, 1].
      labels: one of `LABELS`.
      seed: of the order, and of drawn labels.
    """
    assert labels in LABELS, labels
    rng = np.random.default_rng((seed, LABELS.index(labels)))
    rows = [
        _pair(group[i], group[j], of[i], of[j], labels, rng)
        for group, of in zip(groups, truths, strict=True)
        for i, j in itertools.combinations(range(len(group)), 2)
        if of[i] != of[j] and group[i]["tokens"] != group[j]["tokens"]
    ]
    return [rows[i] for i in rng.permutation(len(rows))]


def write(path: Path, rows: Iterable[Row]) -> None:
    """Writes a JSONL file whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    unfinished.rename(path)


def one_each(
    groups: Sequence[Sequence[Row]], truths: Sequence[Sequence[float]]
) -> list[Row]:
    """Makes a row of text of each prompt whose samples differ: its best and its worst.

    Args:
      groups: samples of each prompt, as `sample --out` has them.
      truths: of each of them.
    """
    rows = []
    for group, of in zip(groups, truths, strict=True):
        best, worst = (group[int(pick(of))] for pick in (np.argmax, np.argmin))
        if max(of) > min(of) and best["text"] and worst["text"]:
            rows.append(
                {
                    "prompt": best["prompt"],
                    "chosen": best["text"],
                    "rejected": worst["text"],
                    "chosen_ended": best["ended"],
                    "rejected_ended": worst["ended"],
                }
            )
    return rows


def _pair(
    a: Row, b: Row, of_a: float, of_b: float, labels: str, rng: np.random.Generator
) -> Row:
    first = of_a > of_b
    if labels == "bradley_terry":
        first = rng.random() < 1.0 / (1.0 + math.exp(_log_odds(of_b) - _log_odds(of_a)))
    chosen, rejected = (a, b) if first else (b, a)
    return {
        "prompt_ids": a["prompt_ids"],
        "chosen_ids": chosen["completion_ids"],
        "rejected_ids": rejected["completion_ids"],
        "chosen_ended": chosen["ended"],
        "rejected_ended": rejected["ended"],
    }


def _log_odds(truth: float) -> float:
    truth = min(max(truth, LEAST), 1.0 - LEAST)
    return math.log(truth) - math.log1p(-truth)
