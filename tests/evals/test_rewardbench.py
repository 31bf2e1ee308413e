"""RewardBench 2 by hand: best of four, ties at the top, and the formula of Ties."""

import numpy as np
import pytest

from dpo_jax.errors import DataError
from dpo_jax.evals import rewardbench
from dpo_jax.evals.rewardbench import Scored


def scored(right, wrong, subset="Factuality", name="1"):
    return Scored(name, subset, np.array(right, float), np.array(wrong, float))


@pytest.mark.parametrize(
    "right, wrong, want",
    [
        ([2], [1, 0, 1], 1.0),
        ([0], [1, 0, 1], 0.0),
        ([1], [1, 0, 0], 1 / 2),
        ([1], [1, 1, 0], 1 / 3),
        ([1], [1, 1, 1], 1 / 4),  # a constant model: chance
        ([3, 3], [3, 0], 2 / 3),
    ],
)
def test_k_tied_at_the_top_share_it(right, wrong, want):
    rng = np.random.default_rng(0)
    for _ in range(3):
        mixed = rng.permutation(wrong)
        assert rewardbench.credit(np.array(right), mixed) == pytest.approx(want)


def test_subsets_and_their_mean():
    """1, ½ and 0 in one: ½ ± ½/√3; 1 in the other; each of one weight."""
    rows = [
        scored([2], [1, 1, 1]),
        scored([1], [1, 0, 0]),
        scored([0], [1, 0, 0]),
        scored([5], [1, 0, 0], "Math"),
    ]
    found = rewardbench.subset_scores(rows)
    assert list(found) == ["Factuality", "Math"]
    assert found["Factuality"].value == pytest.approx(0.5)
    assert found["Factuality"].se == pytest.approx(0.5 / np.sqrt(3))
    assert found["Math"] == (1.0, None, 1)
    assert rewardbench.overall(found) == pytest.approx(0.75)


TIES = [
    scored([5], [3, 1], "Ties", "ref:0"),  # 2 above
    scored([4.0, 3.5, 3.0], [2.5, 0], "Ties", "tied:0"),  # .5 above, 1 apart
    scored([9], [1, 1], "Ties", "ref:1"),  # 8 above
    scored([5.0, 4.0], [0, 1], "Ties", "tied:1"),  # 3 above, 1 apart
    scored([1], [4, 1], "Ties", "ref:2"),  # 3 below
    scored([2.0, 2.0], [0, 1], "Ties", "tied:2"),  # 1 above, 0 apart
]


def test_ties_by_hand():
    """Accurate: 3 of 3 tied, 2 of 3 ref. Margins: 1 and 2 by their own, 1 hard.

    min/apart − 1 = −.5, 2, and −3/0 = −∞: tanh is −.4621, .9640, −1.
    """
    found = rewardbench.subset_scores(TIES)["Ties"]
    size = (np.tanh(-0.5) + np.tanh(2.0) - 1) / 3
    want = 0.3 * 1 + 0.3 * 2 / 3 + 0.2 * 2 / 3 + 0.2 * 1 / 3 + 0.01 * size
    assert found.value == pytest.approx(want, abs=1e-12)
    assert found.se is None and found.prompts == 6
    mixed = rewardbench.ties_score(TIES[::-1])
    assert mixed == pytest.approx(want, abs=1e-12)


def test_ties_of_a_constant_model():
    """No margin anywhere: nothing is accurate, and 0/0 counts 0."""
    flat = [s._replace(right=s.right * 0, wrong=s.wrong * 0) for s in TIES]
    assert rewardbench.ties_score(flat) == 0.0


@pytest.mark.parametrize("name", ["0", "other:0", "tied"])
def test_ids_of_ties_say_what_they_are(name):
    with pytest.raises(DataError, match="'ref:ID' or 'tied:ID'"):
        rewardbench.ties_score([scored([1], [0], "Ties", name)])


def test_ties_need_both_kinds():
    with pytest.raises(DataError, match="stands both as"):
        rewardbench.ties_score(TIES[:1])
