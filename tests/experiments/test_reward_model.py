"""The yardsticks of the experiment on reward models; no decoder is trained here."""

import numpy as np
import pytest

from dpo_jax.data.sources.files import Request
from dpo_jax.losses import LOSSES
from dpo_jax.wiring import checks
from experiments.reward_model import run


@pytest.fixture(scope="module")
def pairs():
    return run.better_first(Request("eval", kind="pairs", rows=512))


def test_ranks_of_equal_values_are_their_mean():
    assert run.ranks_of(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1, 3.5, 2]


def test_the_truth_reaches_the_bayes_rate_and_its_reverse_the_rest(pairs):
    """And a scorer that says nothing is right half of the time."""
    truth = run.true_scores(pairs)
    rate = run.bayes_rate(pairs.margins)
    found = run.measured(truth, pairs)
    assert found == pytest.approx({"accuracy": rate, "order": 1.0, "spearman": 1.0})
    other = run.measured(-truth, pairs)
    assert other["accuracy"] == pytest.approx(1 - rate)
    assert other["spearman"] == pytest.approx(-1)
    with np.errstate(invalid="ignore"):  # what is constant has no correlation
        assert run.measured(np.zeros_like(truth), pairs)["accuracy"] == 0.5


def test_the_features_are_those_of_the_truth(pairs):
    """Weighted as the grammar weighs them, their counts add up to the reward."""
    weights = [
        run.sentiment.WEIGHTS[word] * run.sentiment.MODIFIERS.get(before, 1.0)
        for before, word in run.WORDS
    ]
    scores = run.features(pairs) @ np.array(weights)
    np.testing.assert_allclose(scores, run.true_scores(pairs), atol=1e-9)


def test_the_regression_is_at_its_maximum():
    """Its slope is 0 there, against differences of the penalized likelihood."""
    rng = np.random.default_rng(0)
    gaps = rng.normal(size=(200, 3))
    weights = run.fitted(gaps * np.sign(gaps @ [1.0, 0.5, 0.0])[:, None], ridge=1.0)
    signed = gaps * np.sign(gaps @ [1.0, 0.5, 0.0])[:, None]

    def worth(at):
        return -np.log1p(np.exp(-signed @ at)).sum() - at @ at / 2

    for step in 1e-3 * np.eye(3):
        assert worth(weights) > max(worth(weights + step), worth(weights - step))


def test_a_regression_on_two_thousand_drawn_labels_comes_near(pairs):
    case = run.Case("bradley_terry", "features", 2000, 0, 0.0)
    found = run.measured(run.of_features(case, 0, pairs), pairs)
    assert run.bayes_rate(pairs.margins) - found["accuracy"] < 0.03
    assert found["spearman"] > 0.95


@pytest.mark.parametrize("case", run.CASES, ids=lambda case: case.name)
def test_every_case_is_a_run(case):
    if case.start != "features":
        checks.check(run.config_of(case, 0), LOSSES)
