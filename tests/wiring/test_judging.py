"""Rows of an arm: best-of-m for those m that every prompt has."""

import numpy as np

from dpo_jax.evals.judges import Answer
from dpo_jax.evals.winrate import Compared
from dpo_jax.wiring import judging


def test_best_of_as_many_as_every_prompt_has():
    """A prompt that stands twice has more samples; it alone makes no row."""
    arm = judging.Arm("dpo", 1.0, [Answer("pppqqqqqq"[i], str(i)) for i in range(9)])
    baseline = [Answer("p", "x"), Answer("q", "x"), Answer("q", "longer")]
    pairing = judging.pair_up(arm, baseline, 0)
    assert pairing.prompts.tolist() == [0] * 3 + [1] * 6
    turns = [one.b.text for one in pairing.comparisons[3:]]
    assert turns == ["x", "longer"] * 3
    votes = np.array([[1.0, 1.0]] * 3 + [[0.0, 0.0]] * 6)
    compared = Compared(pairing.prompts, votes, np.ones((9, 2)))
    judged = judging.Judged(pairing, "judge", compared)
    rows = judging.rows_of_arm(judged, "b", lambda a: np.arange(len(a)), "score")
    assert [row["best_of"] for row in rows] == [1, 2, 3]
    assert [row["prompts"] for row in rows] == [2, 2, 2]
    assert [row["win_rate"] for row in rows] == [1 / 3, 0.5, 0.5]
