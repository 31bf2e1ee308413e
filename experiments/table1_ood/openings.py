"""Openings of reviews that are longer than any that the small policies trained on."""

from pathlib import Path
from typing import Any

import numpy as np

from dpo_jax.data.sources import sentiment
from experiments.judged_tiers import write_rows

WORDS = range(9, 12)  # training has 2 to 8; with <bos>, 12 tokens are what a prompt may
SEED = 1


def rows(count: int = 128, seed: int = SEED) -> list[dict[str, Any]]:
    """Draws openings, each with the kinder of two continuations of the grammar's.

    Args:
      count: of them, no two alike.
      seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, dict[str, Any]] = {}
    for review in sentiment.reviews(rng):
        words = review[: int(rng.integers(WORDS.start, WORDS.stop))]
        opening = " ".join(words)
        if len(words) not in WORDS or words == review or opening in found:
            continue
        both = [sentiment.continuation(words, rng) for _ in range(2)]
        chosen = max(both, key=lambda said: sentiment.reward(words, said))
        found[opening] = {"prompt": opening, "chosen": " " + " ".join(chosen)}
        if len(found) == count:
            break
    return list(found.values())


def write(_source: str, out: Path) -> None:
    """Writes them; they are of no source."""
    write_rows(out / "prompts.jsonl", rows())
