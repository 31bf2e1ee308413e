"""Packing many microbatches at once is packing each of them alone."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from dpo_jax.data import planning


def plain_first_fit(sizes, row_tokens):
    """Row of each document: longest first, into the first row with room."""
    rows, room = [None] * len(sizes), []
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        fits = [row for row, free in enumerate(room) if free >= sizes[i]]
        if not fits:
            room.append(row_tokens)
        rows[i] = fits[0] if fits else len(room) - 1
        room[rows[i]] -= sizes[i]
    return rows


def plain_deal(sizes, hands):
    """Hand of each item: largest first, to the hand that has least."""
    totals, dealt = [0] * hands, [None] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        dealt[i] = min(range(hands), key=lambda hand: (totals[hand], hand))
        totals[dealt[i]] += sizes[i]
    return dealt


groups_strategy = st.lists(st.lists(st.integers(1, 20), max_size=12), max_size=6)


def flat(groups):
    numbers = np.repeat(np.arange(len(groups)), list(map(len, groups)))
    return np.array(sum(groups, []), np.int32), numbers.astype(np.int32)


@settings(deadline=None, max_examples=200)
@given(groups_strategy, st.integers(20, 60))
def test_first_fit_decreasing_is_that_of_each_group(groups, row_tokens):
    rows = planning.first_fit_decreasing(*flat(groups), row_tokens)
    alone = [plain_first_fit(group, row_tokens) for group in groups]
    assert rows.tolist() == sum(alone, [])


@settings(deadline=None, max_examples=100)
@given(groups_strategy, st.integers(1, 4))
def test_dealing_is_that_of_each_group(groups, hands):
    dealt = planning.deal(*flat(groups), hands)
    assert dealt.tolist() == sum([plain_deal(group, hands) for group in groups], [])


def test_dealing_is_even():
    """9 | 7, then 6 to the second (13), 5 to the first (14), 5 to the second."""
    sizes = np.array([5, 9, 6, 7, 5])
    dealt = planning.deal(sizes, np.zeros(5, np.int32), 2)
    assert dealt.tolist() == [0, 0, 1, 1, 1]


def test_groups_may_be_mixed():
    """Even places are group 0 (4, 3, 2 → 4 + 2 | 3), odd ones group 1 (6 | 5)."""
    sizes, groups = np.array([4, 6, 3, 5, 2]), np.array([0, 1, 0, 1, 0])
    rows = planning.first_fit_decreasing(sizes, groups, 6)
    assert rows.tolist() == [0, 0, 1, 1, 0]
    assert planning.one_a_row(sizes, groups, 6).tolist() == [0, 0, 1, 1, 2]


def test_documents_by_hand():
    """A ranking of three behind 4 tokens, and a single response behind 2."""
    table = planning.tabulate(
        prompts=[4, 2],
        counts=[3, 1],
        responses=[1, 2, 3, 5],
        scored=[1, 2, 3, 5],
        comparisons=[3, 0],
        groups=[3, 0],
    )
    whole, apart = planning.whole(table), planning.apart(table)
    assert whole.tokens.tolist() == [10, 7] and whole.slots.tolist() == [3, 1]
    assert whole.scored.tolist() == [6, 5] and whole.comparisons.tolist() == [3, 0]
    assert apart.records.tolist() == [0, 0, 0, 1]
    assert apart.firsts.tolist() == [0, 1, 2, 0]
    assert apart.tokens.tolist() == [5, 6, 7, 7]
    assert apart.comparisons.tolist() == [3, 0, 0, 0]
    assert apart.rankings.tolist() == [1, 0, 0, 0]
    one = planning.plan("packed", table, np.zeros(2, np.int32), 13)
    assert one.rows.tolist() == [1, 0, 0, 1]
    assert planning.most_in_a_row(one) == [6, 2, 3, 1]
