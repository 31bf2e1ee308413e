"""Which samples of a prompt become pairs, by hand."""

import numpy as np
import pytest

from dpo_jax.sampling import compare

APART = [b"a", b"b", b"c", b"d"]


def pairs(scores, texts=APART, rank="all_pairs", labels="order", seed=0):
    draw = np.random.default_rng(seed)
    scores = np.array([scores], float)
    found = compare.comparisons(
        scores, [texts[: scores.shape[1]]], rank=rank, labels=labels, draw=draw
    )[0]
    assert len(found) == compare.pairs_of(rank, scores.shape[1])
    return [tuple(pair) for pair in found.tolist() if pair[0] >= 0]


def test_the_better_one_is_chosen_whatever_their_order():
    assert pairs([0.1, 0.7, 0.3], rank="best_worst") == [(1, 0)]
    assert pairs([0.7, 0.3, 0.1], rank="best_worst") == [(0, 2)]
    assert set(pairs([0.1, 0.7, 0.3])) == {(1, 0), (1, 2), (2, 0)}
    drawn = {pairs([0.1, 0.7, 0.3], rank="random", seed=n)[0] for n in range(40)}
    assert drawn == {(1, 0), (1, 2), (2, 0)}


def test_what_has_no_order_is_no_pair_unless_labels_are_drawn_or_soft():
    assert pairs([0.5, 0.5, 0.5], rank="best_worst") == []
    assert set(pairs([0.5, 0.5, 0.1])) == {(0, 2), (1, 2)}
    for labels in ("bradley_terry", "soft"):
        assert len(pairs([0.5, 0.5, 0.1], labels=labels)) == 3


@pytest.mark.parametrize("labels", ["order", "bradley_terry", "soft"])
def test_twins_are_never_compared_nor_is_what_has_no_verdict(labels):
    found = pairs([0.9, 0.1, np.nan, 0.4], [b"a", b"a", b"b", b"c"], labels=labels)
    assert {frozenset(pair) for pair in found} == {frozenset({0, 3}), frozenset({1, 3})}
    assert pairs([0.9, np.nan], labels=labels, rank="best_worst") == []


def test_drawn_labels_follow_bradley_terry_and_soft_ones_the_order():
    """σ(1) = .731; 4 standard errors of 2,000 draws are .04."""
    scores, texts = np.tile([0.0, 1.0], (2000, 1)), [[b"a", b"b"]] * 2000
    draw = np.random.default_rng(1)
    how = {"rank": "best_worst", "draw": draw}
    drawn = compare.comparisons(scores, texts, labels="bradley_terry", **how)
    assert (drawn[:, 0, 0] == 1).mean() == pytest.approx(1 / (1 + np.exp(-1)), abs=0.04)
    soft = compare.comparisons(scores, texts, labels="soft", **how)
    assert (soft[:, 0] == [1, 0]).all()
