"""Makes what the trials learn from: samples of the reference, labelled by the truth.

    python -m experiments.fig2_imdb_frontier.data --tier=quick \
        --reference=runs/fig2/quick/sft/export --out=runs/fig2/quick/data

leaves `prompts.jsonl`, pairs with two kinds of labels (`deterministic.jsonl`,
`bradley_terry.jsonl`), pairs of further prompts (`held_out.jsonl`, and `eval.jsonl`
with one a prompt) and, last, `data.json`.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpo_jax.cli.own_functions import rewards_of
from dpo_jax.data import sources
from dpo_jax.data.sources import sentiment
from dpo_jax.data.sources.files import BadRow
from experiments.fig2_imdb_frontier import openings, pairs
from experiments.fig2_imdb_frontier.tiers import TIERS, Tier

SEED = 0  # of prompts, samples and drawn labels: all trials share them
BATCH = 256  # samples that are drawn together
IMDB_WORDS = (2, 8)  # shortest and longest prefix


def make(tier: Tier, reference: str, out: Path, imdb: str = "") -> None:
    """Makes the folder, unless it is whole.

    Args:
      tier: says how much of it.
      reference: HF folder of the model that is sampled.
      out: the folder.
      imdb: a local copy of the reviews, for the tier that needs them.
    """
    if (out / "data.json").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    pairs.write(
        out / "prompts.jsonl", [{"prompt": text} for text in prompts(tier, imdb)]
    )
    samples = out / "samples.jsonl"
    if not samples.exists():
        draw(tier, reference, out / "prompts.jsonl", samples)
    groups = pairs.read(samples)
    truths = judged(tier, groups)
    counts = write_pairs(tier, groups, truths, out)
    said = {
        "samples": sum(map(len, groups)),
        "truth_mean": float(np.mean([np.mean(of) for of in truths])),
        "truth_std": float(np.std([value for of in truths for value in of])),
        "pairs": counts,
        "seconds": time.monotonic() - started,
    }
    text = json.dumps(said, indent=1) + "\n"
    (out / "data.json").write_text(text, encoding="utf-8")


def prompts(tier: Tier, imdb: str = "") -> list[str]:
    """Returns the prompts to train on, then those that are held out."""
    count = tier.train + tier.held_out
    if not tier.rewards:
        return sentiment.prompts(SEED, count, split="train")
    if tier.imdb:
        return imdb_prefixes(count, imdb)
    return openings.openings(count)


def imdb_prefixes(count: int, path: str) -> list[str]:
    """Returns the first few words of reviews, as appendix C.1 has it of tokens."""
    (part,) = sources.parts_of("imdb", "data.train")
    rows = sources.read(
        sources.find(part, "train", path=path),
        sources.Request("train", kind="completions"),
    )
    rng, found = np.random.default_rng(SEED), []
    for _, row in rows:
        words = [] if isinstance(row, BadRow) else str(row["text"]).split()
        length = int(rng.integers(IMDB_WORDS[0], IMDB_WORDS[1] + 1))
        if len(words) > length:
            found.append(" ".join(words[:length]))
        if len(found) == count:
            break
    return found


def draw(tier: Tier, reference: str, prompt_file: Path, out: Path) -> None:
    """Samples the reference by `dpo_jax sample`; the file appears when it is whole.

    Raises:
      CalledProcessError: if that fails; it has said why.
    """
    unfinished = out.with_suffix(".unfinished")
    flags = {
        "model": reference,
        "prompts": prompt_file,
        "n": tier.samples,
        "max_new_tokens": tier.new_tokens,
        "batch": BATCH,
        "seed": SEED,
        "out": unfinished,
    }
    command = [sys.executable, "-m", "dpo_jax", "sample", "--config=dpo"]
    command += [f"--{name}={value}" for name, value in flags.items()]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    unfinished.rename(out)


def judged(tier: Tier, groups: Sequence[Sequence[pairs.Row]]) -> list[list[float]]:
    """Asks the truth about all samples."""
    truth: Any = rewards_of(tier.rewards)[tier.truth]
    rows = [row for group in groups for row in group]
    values = iter(
        truth(
            prompts=[row["prompt"] for row in rows],
            completions=[row["text"] for row in rows],
        )
    )
    return [[next(values) for _ in group] for group in groups]


def write_pairs(
    tier: Tier,
    groups: Sequence[Sequence[pairs.Row]],
    truths: Sequence[Sequence[float]],
    out: Path,
) -> dict[str, int]:
    """Writes the pairs of both splits; returns how many there are of each kind."""
    train, held_out = groups[: tier.train], groups[tier.train :]
    of_train, of_held_out = truths[: tier.train], truths[tier.train :]
    kinds = {name: pairs.label(train, of_train, name, SEED) for name in pairs.LABELS}
    kinds["held_out"] = pairs.label(held_out, of_held_out, pairs.LABELS[0], SEED)
    kinds["eval"] = pairs.one_each(held_out, of_held_out)
    for name, rows in kinds.items():
        pairs.write(out / f"{name}.jsonl", rows)
    return {name: len(rows) for name, rows in kinds.items()}


def main(arguments: Sequence[str]) -> None:
    """Makes the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tier", choices=TIERS, required=True)
    parser.add_argument("--reference", required=True, help="HF folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--imdb", default="", help="a local copy of the reviews")
    given = parser.parse_args(arguments)
    make(TIERS[given.tier], given.reference, given.out, given.imdb)


if __name__ == "__main__":
    main(sys.argv[1:])
