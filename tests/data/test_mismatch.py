"""Borrowed responses, by hand."""

import numpy as np
import pytest

from dpo_jax.data.mismatch import mismatch
from dpo_jax.types import Record


def single(index, prompt, response, label=1, ratings=None, first=0):
    return Record(
        index,
        first + np.arange(prompt),
        (np.array(response),),
        response={"labels": (label,), **({"ratings": ratings} if ratings else {})},
    )


def plain(records):
    return [[response.tolist() for response in r.responses] for r in records]


def test_each_borrows_of_the_next_and_the_last_of_the_first():
    steps = [single(4, 2, [10, 11]), single(7, 1, [20], -1), single(5, 3, [30, 31, 32])]
    joined = mismatch(steps, max_tokens=9)
    assert plain(joined) == [
        [[10, 11], [20]],
        [[20], [30, 31, 32]],
        [[30, 31, 32], [10, 11]],
    ]
    assert [r.response["labels"] for r in joined] == [(1, 0), (-1, 0), (1, 0)]
    assert [r.index for r in joined] == [4, 7, 5]
    assert [len(r.prompt) for r in joined] == [2, 1, 3]


def test_what_is_borrowed_is_cut_to_fit_the_prompt():
    """3 − 2 = 1 and 3 − 1 = 2 tokens are left."""
    steps = [single(0, 2, [10]), single(1, 1, [20, 21])]
    joined = mismatch(steps, max_tokens=3)
    assert plain(joined) == [[[10], [20]], [[20, 21], [10]]]


def test_what_is_borrowed_counts_as_where_it_comes_from():
    """Two tokens of which the second counts, cut to one; and one that counts."""
    steps = [single(0, 2, [10]), single(1, 1, [20, 21])]
    masks = ([True], [False, True])
    steps = [
        row._replace(token={"scored": (np.array(mask),)})
        for row, mask in zip(steps, masks, strict=True)
    ]
    joined = mismatch(steps, max_tokens=3)
    found = [[mask.tolist() for mask in row.token["scored"]] for row in joined]
    assert found == [[[True], [False]], [[False, True], [True]]]


@pytest.mark.parametrize(
    "prompts, lenders",
    [
        ([0, 0, 1, 1], [2, 2, 0, 0]),
        ([0, 1, 1, 0], [1, 3, 3, 1]),
        ([3, 3, 3, 5, 3], [3, 3, 3, 4, 3]),
        ([2, 2], [None, None]),
        ([2], [None]),
        ([], []),
    ],
)
@pytest.mark.parametrize("apart", [True, False], ids=["pairs", "rows"])
def test_one_prompt_never_borrows_of_itself(prompts, lenders, apart):
    """The same prompt is that of a pair taken apart, or of several rows (trl#1911)."""
    steps = [
        single(prompt if apart else at, 1, [10 * at], first=prompt)
        for at, prompt in enumerate(prompts)
    ]
    found = [r[1:] for r in plain(mismatch(steps, max_tokens=9))]
    assert found == [[] if at is None else [[10 * at]] for at in lenders]


def test_a_borrowed_response_has_no_rating():
    steps = [
        single(0, 1, [1], ratings=(2.5,)),
        single(1, 1, [2], ratings=(0.5,), first=1),
    ]
    joined = mismatch(steps, max_tokens=9)
    assert [r.response["ratings"] for r in joined] == [(2.5, 0), (0.5, 0)]
    assert mismatch(steps[:1], max_tokens=9) == steps[:1]
