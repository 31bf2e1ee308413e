"""Rows of an arm: best-of-m for those m that every prompt has."""

import numpy as np
import pytest

from dpo_jax.errors import DataError
from dpo_jax.evals.judges import Answer, Judge, Judgement
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


def test_a_judge_without_enough_verdicts_fails_the_run():
    """Of 4 comparisons one lacks a verdict in one order: a quarter, counted nowhere."""
    arm = judging.Arm("dpo", 1.0, [Answer("p", str(i)) for i in range(4)])
    pairing = judging.pair_up(arm, [Answer("p", "x")], 0)
    votes = np.array([[1, 1], [0, 0], [1, 1], [1, np.nan]])
    judge = Judge("people", lambda asked: Judgement(votes, {"no label": 1}))
    with pytest.raises(DataError, match="no verdict on 1 of 4 .*1 no label.*=0.2 of"):
        judging.judged_by(judge, [pairing], 0.2)
    (found,), _ = judging.judged_by(judge, [pairing], 0.25)
    (row,) = judging.rows_of_arm(found, "b", None, "")
    assert row["win_rate"] == 2 / 3 and (row["judged"], row["absent"]) == (3, 1)
