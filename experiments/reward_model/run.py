"""How near a reward model comes to what its labels allow, on data with a known truth.

A small decoder learns from pairs of the embedded reviews whose labels are drawn with
probability σ(difference of true rewards), so no scorer can be right more often than the
Bayes rate E[σ(|difference|)]. Each model is held against pairs that it has not seen:
how often a drawn label agrees with its order in expectation, which has no noise of
labels in it, and the rank correlation of its scores with the true rewards.

Beside the decoders stands a logistic regression on the features that the truth is made
of. What it lacks is what the number of pairs costs; what a decoder lacks beyond that is
its own.

    python -m experiments.reward_model.run --out=runs/reward_model

Writes `table.csv`, a row a case with means and standard errors over seeds, and a run
folder a case and seed; one that is complete is not trained again.
"""

import argparse
import csv
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dpo_jax import build, schema
from dpo_jax.config import Config
from dpo_jax.data.sources import sentiment
from dpo_jax.data.sources.files import Request
from dpo_jax.models import hf
from dpo_jax.models.decoder import Decoder
from dpo_jax.sharding.mesh import make_mesh
from dpo_jax.wiring import scoring, weights

SEEDS = (0, 1, 2)
HELD_OUT = 4096  # pairs, of the split that no run trains on
MODIFIED = ("", *sentiment.MODIFIERS)
WORDS = (*itertools.product(MODIFIED, sentiment.WEIGHTS),)


class Case(NamedTuple):
    """A way to train a reward model.

    Attributes:
      labels: 'bradley_terry' or 'deterministic', of the pairs that are trained on.
      start: `model.score_start`; 'features' = the logistic regression.
      pairs: that are trained on, once each where `steps` allow.
      steps: of 64 pairs.
      lr: of AdamW.
    """

    labels: str
    start: str
    pairs: int
    steps: int
    lr: float

    @property
    def name(self) -> str:
        """The name of its run folders."""
        return "-".join(map(str, self))


CASES = [
    *(
        Case("bradley_terry", "features", pairs, 0, 0.0)
        for pairs in (2_000, 20_000, 80_000)
    ),
    Case("bradley_terry", "zero", 20_000, 300, 1e-3),
    Case("bradley_terry", "normal", 20_000, 300, 1e-3),
    Case("bradley_terry", "normal", 80_000, 1_200, 1e-3),
]


class Pairs(NamedTuple):
    """Pairs of the embedded reviews, the better one by the truth first.

    Attributes:
      prompts: words of each.
      both: words of the two continuations of each.
      margins: f64[N] differences of true rewards, > 0.
    """

    prompts: list[list[str]]
    both: list[tuple[list[str], list[str]]]
    margins: np.ndarray


def config_of(case: Case, seed: int) -> Config:
    """Returns the configuration of a run."""
    config = schema.base()
    config.update_from_flattened_dict(
        {
            "seed": seed,
            "objective": "reward",
            "model.preset": "tiny",
            "model.score_start": case.start,
            "ref.mode": "none",
            "data.train": "sentiment",
            "data.limit": case.pairs,
            "data.labels": case.labels,
            "data.max_tokens": 32,
            "data.max_prompt_tokens": 12,
            "loss.name": "bradley_terry",
            "loss.centering": 0.0,
            "batch.pairs": 64,
            "train.steps": case.steps,
            "optimizer.name": "adamw",
            "optimizer.lr": case.lr,
            "optimizer.schedule": "linear",
            "optimizer.warmup_steps": 20,
            "checkpoint.every_steps": 0,
            "checkpoint.after": "none",
        }
    )
    return config.lock()


def held_out() -> Pairs:
    """Makes the pairs that all are held against."""
    return better_first(Request("eval", kind="pairs", rows=HELD_OUT))


def better_first(request: Request) -> Pairs:
    """Makes pairs, the truly better continuation first, whatever their labels."""
    rows: list[Any] = [row for _, row in sentiment.read(request)]
    margins = np.array([row["score_chosen"] - row["score_rejected"] for row in rows])
    both = [(row["chosen"].split(), row["rejected"].split()) for row in rows]
    both = [
        pair if m > 0 else pair[::-1] for pair, m in zip(both, margins, strict=True)
    ]
    return Pairs([row["prompt"].split() for row in rows], both, np.abs(margins))


def bayes_rate(margins: np.ndarray) -> float:
    """Returns how often the truth's own order agrees with a drawn label."""
    return float(_sigmoid(margins).mean())


def measured(scores: np.ndarray, pairs: Pairs) -> dict[str, float]:
    """Holds scores against the truth.

    Args:
      scores: f[N, 2] of the better and the worse continuation of each pair.
      pairs: they.

    Returns:
      `accuracy`: expected share of drawn labels that agree with the scores' order;
      `order`: share of pairs in the truth's order; `spearman`: rank correlation of all
      2·N scores with the true rewards.
    """
    likely, gaps = _sigmoid(pairs.margins), scores[:, 0] - scores[:, 1]
    right = np.where(gaps > 0, 1.0, np.where(gaps < 0, 0.0, 0.5))
    ranks = ranks_of(scores.ravel()), ranks_of(true_scores(pairs).ravel())
    return {
        "accuracy": float((right * likely + (1 - right) * (1 - likely)).mean()),
        "order": float(right.mean()),
        "spearman": float(np.corrcoef(*ranks)[0, 1]),
    }


def ranks_of(values: np.ndarray) -> np.ndarray:
    """Returns the rank of each value; equal ones share the mean of theirs."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which]


def features(pairs: Pairs) -> np.ndarray:
    """Counts the weighted words of each continuation by the word before: [N, 2, F]."""
    places = {word: place for place, word in enumerate(WORDS)}
    found = np.zeros((len(pairs.prompts), 2, len(WORDS)))
    for row, (prompt, both) in enumerate(zip(pairs.prompts, pairs.both, strict=True)):
        for side, words in enumerate(both):
            for before, word in itertools.pairwise([prompt[-1], *words]):
                before = before if before in sentiment.MODIFIERS else ""
                if word in sentiment.WEIGHTS:
                    found[row, side, places[before, word]] += 1
    return found


def fitted(gaps: np.ndarray, ridge: float = 1.0, rounds: int = 20) -> np.ndarray:
    """Fits weights w to maximise Σ log σ(gaps·w) − ridge·|w|²/2, by Newton's method.

    Args:
      gaps: f64[N, F] features of the chosen less those of the rejected.
      ridge: of the penalty.
      rounds: of Newton's method.
    """
    weights = np.zeros(gaps.shape[1])
    for _ in range(rounds):
        wrong = _sigmoid(-gaps @ weights)
        slope = gaps.T @ wrong - ridge * weights
        bend = (gaps * (wrong * (1 - wrong))[:, None]).T @ gaps
        weights += np.linalg.solve(bend + ridge * np.eye(len(weights)), slope)
    return weights


def of_features(case: Case, seed: int, pairs: Pairs) -> np.ndarray:
    """Scores held-out pairs by a regression on as many drawn labels: f64[N, 2]."""
    request = Request("train", kind="pairs", seed=seed, rows=case.pairs)
    train = better_first(request)
    both = features(train)
    draw = np.random.default_rng((seed, 7)).random(len(both))
    sign = np.where(draw < _sigmoid(train.margins), 1.0, -1.0)
    return features(pairs) @ fitted(sign[:, None] * (both[:, 0] - both[:, 1]))


def of_decoder(case: Case, seed: int, pairs: Pairs, out: Path) -> np.ndarray:
    """Trains a decoder, and scores held-out pairs with it: f32[N, 2]."""
    run = out / f"{case.name}-{seed}"
    build.run(config_of(case, seed), run)
    tokenizer, folder = sentiment.tokenizer(), run / "export"
    mesh = make_mesh(data=-1, fsdp=1, tensor=1)
    with jax.set_mesh(mesh):
        scorer = scoring.make_scorer(
            Decoder(hf.spec_of(hf.read_config(folder))),
            {"path": str(folder), "dtype": ""},
            mesh,
            batch=512,
            vocab=len(tokenizer),
            longest=32,
            tokenizers=[tokenizer],
        )
        assert scorer is not None
        params = weights.load_params(scorer.model, mesh, seed=0)
        encode = lambda words: tokenizer(" ".join(words))["input_ids"]  # noqa: E731
        ids = [
            [[*encode(words)[1:], tokenizer.eos_token_id] for words in both]
            for both in pairs.both
        ]
        prompts = [np.array(encode(words), np.int32) for words in pairs.prompts]
        return scorer(params, prompts, ids, width=20)


def rows_of(cases: list[Case], out: Path) -> Iterator[dict[str, Any]]:
    """Yields a row of the table a case; errors are those of means over seeds."""
    pairs = held_out()
    yield {"labels": "the truth itself"} | _row([measured(true_scores(pairs), pairs)])
    for case in cases:
        found = []
        for seed in SEEDS:
            if case.start == "features":
                scores = of_features(case, seed, pairs)
            else:
                scores = of_decoder(case, seed, pairs, out)
            found.append(measured(scores, pairs))
        yield case._asdict() | _row(found)


def true_scores(pairs: Pairs) -> np.ndarray:
    """Returns the true rewards of both continuations: f64[N, 2]."""
    each = zip(pairs.prompts, pairs.both, strict=True)
    return np.array(
        [[sentiment.reward(p, words) for words in both] for p, both in each]
    )


def _row(found: list[Mapping[str, float]]) -> dict[str, float]:
    row: dict[str, float] = {"seeds": len(found)}
    for name in found[0]:
        values = np.array([each[name] for each in found])
        row[name] = round(float(values.mean()), 4)
        if len(values) > 1:
            row[f"{name}_se"] = round(float(values.std(ddof=1) / len(values) ** 0.5), 4)
    return row


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def main() -> None:
    """Runs the cases, and writes the table after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="runs/reward_model", type=Path)
    out, rows = parser.parse_args().out, []
    out.mkdir(parents=True, exist_ok=True)
    for row in rows_of(CASES, out):
        rows.append(row)
        print(row, flush=True)
        names = [*Case._fields, *(n for r in rows[:2] for n in r)]
        with open(out / "table.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(names)))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
