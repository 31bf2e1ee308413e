"""RewardBench 2: whether a reward model likes the right one of several answers best.

A prompt of five subsets has one right answer: the score is 1 where it alone is liked
best, 1/k where it is among k that are. The sixth, Ties, has prompts with one right
answer (`ref:ID`) and with several (`tied:ID`), and a formula of its own. Pure NumPy.
Source: arXiv:2506.01937 and its code.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dpo_jax.errors import DataError

TIES = "ties"


class Scored(NamedTuple):
    """A prompt and what was said of its answers.

    Attributes:
      id: of the prompt; of Ties `ref:ID` or `tied:ID`.
      subset: that it belongs to.
      right: f64[≥ 1] scores of right answers.
      wrong: f64[≥ 1] scores of wrong ones.
    """

    id: str
    subset: str
    right: np.ndarray
    wrong: np.ndarray


class SubsetScore(NamedTuple):
    """A reward model's score on a subset, in [0, 1].

    Attributes:
      value: mean over prompts, or the formula of Ties.
      se: its standard error over prompts; None of Ties, which is no mean.
      prompts: how many there are.
    """

    value: float
    se: float | None
    prompts: int


def credit(right: np.ndarray, wrong: np.ndarray) -> float:
    """Returns the share of right answers among those that are liked best."""
    top = max(right.max(), wrong.max())
    good, bad = int((right == top).sum()), int((wrong == top).sum())
    return good / (good + bad)


def subset_scores(scored: Sequence[Scored]) -> dict[str, SubsetScore]:
    """Scores each subset, in the order in which they come.

    Raises:
      DataError: as `ties_score`.
    """
    by_name: dict[str, list[Scored]] = {}
    for each in scored:
        by_name.setdefault(each.subset, []).append(each)
    found = {}
    for name, of in by_name.items():
        if name.lower() == TIES:
            found[name] = SubsetScore(ties_score(of), None, len(of))
            continue
        credits = np.array([credit(each.right, each.wrong) for each in of])
        error = credits.std(ddof=1) / np.sqrt(len(of)) if len(of) > 1 else None
        found[name] = SubsetScore(float(credits.mean()), error, len(of))
    return found


def overall(found: dict[str, SubsetScore]) -> float:
    """Averages over subsets, each with the same weight, as the leaderboard does."""
    return float(np.mean([each.value for each in found.values()]))


def ties_score(scored: Sequence[Scored]) -> float:
    """Scores the subset Ties: .3 + .3 accuracy, .2 + .2 margins, .01 their size.

    A prompt is accurate where the worst right answer beats the best wrong one. Of a
    prompt that stands both as `ref` and as `tied`, the right answers of `tied` should
    lie closer together than they lie above the wrong ones: above its own, and above
    those of `ref` as well.

    Raises:
      DataError: if an id is neither, or no prompt stands as both.
    """
    above: dict[str, dict[str, float]] = {"ref": {}, "tied": {}}
    spread: dict[str, float] = {}
    for each in scored:
        kind, colon, number = each.id.partition(":")
        if not colon or kind not in above:
            raise DataError(f"id {each.id!r} of Ties must be 'ref:ID' or 'tied:ID'")
        above[kind][number] = float(each.right.min() - each.wrong.max())
        if kind == "tied":
            spread[number] = float(each.right.max() - each.right.min())
    both = sorted(above["ref"].keys() & above["tied"].keys())
    if not both:
        raise DataError("no prompt of Ties stands both as 'ref:ID' and as 'tied:ID'")
    accuracy = {k: np.mean([v > 0 for v in of.values()]) for k, of in above.items()}
    apart = np.array([spread[number] for number in both])
    own = np.array([above["tied"][number] for number in both])
    hard = np.minimum(own, [above["ref"][number] for number in both])
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.nan_to_num(np.tanh(hard / apart - 1), nan=0.0)
    return float(
        0.3 * accuracy["tied"]
        + 0.3 * accuracy["ref"]
        + 0.2 * np.mean(own > apart)
        + 0.2 * np.mean(hard > apart)
        + 0.01 * size.mean()
    )
