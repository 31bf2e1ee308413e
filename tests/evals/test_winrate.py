"""Win rates by hand, against scipy, and what must hold of every judge."""

import itertools

import numpy as np
import pytest
from scipy import optimize, stats

from dpo_jax.evals import winrate
from dpo_jax.evals.winrate import Compared

NAN = np.nan


def compared(votes, prompts=None, lengths=None):
    votes = np.array(votes, float)
    prompts = np.arange(len(votes)) if prompts is None else np.array(prompts)
    lengths = np.ones((len(votes), 2)) if lengths is None else np.array(lengths, float)
    return Compared(prompts, votes, lengths)


def noisy(count=60, seed=0, phi=0.0, theta=0.4, prompts=None):
    """Votes of a judge that sees quality, length and sometimes the place."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(20, 400, (count, 2)).astype(float)
    apart = lengths @ [1, -1]
    chance = 1 / (1 + np.exp(-theta - phi * np.tanh(apart / apart.std())))
    first = (rng.random(count) < chance).astype(float)
    second = np.where(rng.random(count) < 0.15, 1 - first, first)
    votes = np.stack([first, second], 1)
    votes[rng.random(count) < 0.1] = 0.5
    votes[rng.random(count) < 0.05, 1] = NAN
    return compared(votes, prompts, lengths)


def test_counts_by_hand():
    """Two wins, a loss, a tie, a split, half a tie, and two without a verdict.

    (2 + ½ + ½ + ½) / 6; a tie in one order only is a disagreement, too.
    """
    votes = [[1, 1], [1, 1], [0, 0], [0.5, 0.5], [1, 0], [1, 0.5], [NAN, 1], [NAN, NAN]]
    lengths = [[10, 4]] * 6 + [[1000, 1]] * 2
    found = winrate.win_rate(compared(votes, lengths=lengths))
    assert (found.wins, found.losses, found.ties, found.splits) == (2, 1, 1, 2)
    assert found.absent == 2 and found.judged == 6 and found.rate.prompts == 6
    assert found.rate.value == pytest.approx(3.5 / 6)
    assert found.lengths == (10.0, 4.0)
    # first shown preferred: 1 0 | 1 0 | 0 1 | ½ ½ | 1 1 | 1 ½
    assert found.first == pytest.approx((1 + 1 + 1 + 1 + 2 + 1.5) / 12)


def test_nothing_judged_is_no_rate():
    nothing = compared([[NAN, 1], [NAN, NAN]])
    assert winrate.win_rate(nothing) is None
    assert winrate.length_controlled(nothing) is None
    assert winrate.by_length(nothing) == []
    assert winrate.best_of_rate(nothing, np.zeros(2), 1) is None
    assert winrate.agreement(nothing.outcomes, np.ones(2)) is None


@pytest.mark.parametrize("seed", range(5))
def test_swapping_the_systems_gives_what_is_left(seed):
    """1 − w to the last bit of a float, mirrored intervals; LC within the fit."""
    one = noisy(seed=seed, phi=1.0)
    found, other = (winrate.win_rate(each) for each in (one, one.swapped()))
    assert other.rate.value == pytest.approx(1 - found.rate.value, rel=0, abs=2e-16)
    assert other.rate.se == pytest.approx(found.rate.se, rel=1e-12)
    assert other.rate.low == pytest.approx(1 - found.rate.high, abs=1e-12)
    assert (other.wins, other.losses) == (found.losses, found.wins)
    assert (other.ties, other.splits, other.absent) == found[3:6]
    assert other.first == pytest.approx(found.first, abs=1e-15)
    control = [winrate.length_controlled(each) for each in (one, one.swapped())]
    assert control[0].rate + control[1].rate == pytest.approx(1, abs=1e-6)
    assert control[0].phi == pytest.approx(control[1].phi, abs=1e-5)


def test_a_judge_that_takes_the_first_gives_half_and_flips_always():
    found = winrate.win_rate(compared([[1, 0]] * 7))
    assert found.rate.value == 0.5 and found.splits == 7 and found.first == 1.0


def test_errors_are_those_of_prompts():
    """Ten copies of each comparison are no more evidence than one."""
    one = noisy(40, seed=3)
    many = Compared(*(np.repeat(each, 10, 0) for each in one))
    alone, copied = (winrate.win_rate(each).rate for each in (one, many))
    assert copied.se == pytest.approx(alone.se, rel=1e-12)
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high))
    assert copied.prompts == alone.prompts
    apart = winrate.win_rate(many._replace(prompts=np.arange(400))).rate
    assert apart.se < 0.4 * alone.se


def test_the_error_is_that_of_a_mean_and_of_resampling():
    """One comparison a prompt: s/√n; the bootstrap of scipy agrees to its noise."""
    values = noisy(200, seed=1).outcomes
    values = values[~np.isnan(values)]
    rate = winrate.mean_over_prompts(np.arange(len(values)), values)
    assert rate.se == pytest.approx(stats.sem(values), rel=1e-12)
    drawn = stats.bootstrap((values,), np.mean, method="percentile", rng=1)
    got = [rate.low, rate.high]
    np.testing.assert_allclose(got, drawn.confidence_interval, atol=0.006)
    assert rate.se == pytest.approx(drawn.standard_error, rel=0.05)


def test_prompts_of_unequal_size_by_hand():
    """Prompts with 1, 1 and 4 comparisons: 1, 0 and 3 of them won; w = 4/6.

    Residuals 1/3, −2/3, 3 − 8/3 = 1/3: √((1 + 4 + 1)/9 · 3/2) / 6 = 1/6.
    """
    values, prompts = np.array([1, 0, 1, 1, 1, 0.0]), np.array([0, 1, 2, 2, 2, 2])
    rate = winrate.mean_over_prompts(prompts, values)
    assert rate.value == pytest.approx(4 / 6) and rate.se == pytest.approx(1 / 6)


def test_all_won_is_no_certainty():
    """Wilson's interval of 10 of 10: 1 / (1 + z²/10)."""
    rate = winrate.mean_over_prompts(np.arange(10), np.ones(10))
    assert rate.value == 1 and rate.se == 0
    assert rate.low == pytest.approx(1 / (1 + 1.959964**2 / 10), abs=1e-5)
    assert rate.high == 1


def test_one_prompt_has_no_error():
    rate = winrate.mean_over_prompts(np.zeros(3), np.array([1, 0, 1.0]))
    assert np.isnan(rate.se) and np.isnan(rate.low) and rate.prompts == 1


def test_the_smallest_difference_is_seen_in_four_of_five():
    """256 prompts, each won or lost: (1.96 + 0.84) · ½ / 16 = 8.8 points."""
    least = winrate.smallest_difference(256)
    assert least == pytest.approx(0.0876, abs=1e-4)
    seen = stats.norm.cdf(least / (0.5 / 16) - 1.959964)
    assert seen == pytest.approx(0.8, abs=1e-3)


def test_agreement_by_hand():
    """Cohen's example of two raters: 20 yes/yes, 5, 10, 15: raw .7, κ .4."""
    one = np.repeat([1, 1, 0, 0], [20, 5, 10, 15]).astype(float)
    other = np.repeat([1, 0, 1, 0], [20, 5, 10, 15]).astype(float)
    found = winrate.agreement(np.append(one, NAN), np.append(other, 1.0))
    assert found.raw == pytest.approx(0.7) and found.kappa == pytest.approx(0.4)
    assert found.count == 50
    same = winrate.agreement(np.ones(5), np.ones(5))
    assert same.raw == 1 and np.isnan(same.kappa)


def test_length_control_of_two_lengths_by_hand():
    """A is d longer in half, of which it wins 9 of 10; d shorter: 5 of 10.

    Δ/s = ±1, so θ ± φ·tanh 1 = logit of .9 and of .5.
    """
    votes = [[1, 1]] * 9 + [[0, 0]] + [[1, 1], [0, 0]] * 5
    lengths = [[30, 10]] * 10 + [[10, 30]] * 10
    found = winrate.length_controlled(compared(votes, lengths=lengths))
    theta = np.log(9) / 2
    assert found.theta == pytest.approx(theta, abs=1e-6)
    assert found.phi == pytest.approx(np.log(9) / 2 / np.tanh(1), abs=1e-6)
    assert found.rate == pytest.approx(1 / (1 + np.exp(-theta)), abs=1e-7)


@pytest.mark.parametrize("phi", [-2.0, 0.0, 2.0])
def test_length_control_finds_what_was_simulated(phi):
    """The coefficients are those of scipy's minimum, and σ(θ) within 3 s.e."""
    rng = np.random.default_rng(7)
    one = noisy(3000, seed=11, phi=phi)
    one = one._replace(votes=np.repeat(one.votes[:, :1], 2, 1))  # no noise of place
    lengths = one.lengths @ [1, -1]
    chance = 1 / (1 + np.exp(-0.4 - phi * np.tanh(lengths / lengths.std())))
    votes = (rng.random(3000) < chance).astype(float)
    one = one._replace(votes=np.stack([votes, votes], 1))
    found = winrate.length_controlled(one)
    given = np.stack([np.ones(3000), np.tanh(lengths / lengths.std())], 1)

    def loss(w):
        logits = given @ w
        return np.mean(np.logaddexp(0, logits) - votes * logits)

    best = optimize.minimize(loss, [0.0, 0.0], method="BFGS", options={"gtol": 1e-8})
    np.testing.assert_allclose([found.theta, found.phi], best.x, atol=1e-4)
    want = 1 / (1 + np.exp(-0.4))
    assert abs(found.rate - want) < 3 * found.se and 0.005 < found.se < 0.02


def test_length_control_does_not_depend_on_order_or_on_others():
    one = noisy(80, seed=2, phi=1.0)
    order = np.random.default_rng(0).permutation(80)
    mixed = winrate.length_controlled(Compared(*(each[order] for each in one)))
    found = winrate.length_controlled(one)
    assert mixed.rate == pytest.approx(found.rate, abs=1e-6)
    judged = ~np.isnan(one.outcomes)
    kept = winrate.length_controlled(Compared(*(each[judged] for each in one)))
    assert kept.rate == pytest.approx(found.rate, abs=1e-9)
    named = winrate.length_controlled(one._replace(prompts=one.prompts[::-1] + 500))
    assert named.rate == found.rate


def test_equal_lengths_leave_the_raw_rate():
    one = noisy(50, seed=4)
    one = one._replace(lengths=np.full((50, 2), 80.0))
    found = winrate.length_controlled(one)
    assert found.rate == pytest.approx(winrate.win_rate(one).rate.value, abs=1e-6)
    assert found.phi == 0


def test_a_system_against_itself_is_half():
    same = compared([[1, 0]] * 4 + [[0.5, 0.5]] * 3, lengths=[[50, 50]] * 7)
    assert winrate.length_controlled(same).rate == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize("lengths", [[[50, 50]] * 6, [[90, 10]] * 3 + [[10, 90]] * 3])
@pytest.mark.parametrize("wins", [[1] * 6, [1, 1, 1, 0, 0, 0]])
def test_what_separates_wins_from_losses_stays_finite(lengths, wins):
    votes = np.stack([wins, wins], 1)
    found = winrate.length_controlled(compared(votes, lengths=lengths))
    assert np.isfinite(found).all() and 0 <= found.rate <= 1
    if all(wins):
        assert found.rate > 0.999
    else:
        assert found.rate == pytest.approx(0.5, abs=1e-4)


def test_win_rate_by_difference_in_length():
    """Longer answers win: the bins say so, and hold every comparison once."""
    lengths = [[100 + d, 100] for d in range(-50, 50)]
    votes = [[float(d > 0)] * 2 for d in range(-50, 50)]
    bins = winrate.by_length(compared(votes, lengths=lengths))
    assert [each.count for each in bins] == [20] * 5
    assert [each.rate.value for each in bins] == [0, 0, 9 / 20, 1, 1]
    assert bins[0].least == -50 and bins[-1].most == 49
    same = winrate.by_length(compared([[1, 1]] * 9, lengths=[[5, 4]] * 9))
    assert [(each.least, each.most, each.count) for each in same] == [(1, 1, 9)]


@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_best_of_is_the_mean_over_all_subsets(m):
    """5 answers to each of 4 prompts, ties among the scores; by enumeration."""
    rng = np.random.default_rng(m)
    scores = rng.integers(0, 4, (4, 5)).astype(float)
    wins = rng.integers(0, 3, (4, 5)) / 2

    def of_prompt(score, worth):
        picks = []
        for subset in itertools.combinations(range(5), m):
            top = max(score[i] for i in subset)
            picks.append(np.mean([worth[i] for i in subset if score[i] == top]))
        return np.mean(picks)

    want = np.mean([of_prompt(*each) for each in zip(scores, wins, strict=True)])
    votes = np.repeat(wins.reshape(-1, 1), 2, 1)
    one = compared(votes, prompts=np.repeat([7, 3, 9, 1], 5))
    order = rng.permutation(20)
    mixed = Compared(*(each[order] for each in one))
    found = winrate.best_of_rate(mixed, scores.reshape(-1)[order], m)
    assert found.value == pytest.approx(want, abs=1e-12) and found.prompts == 4


def test_best_of_more_than_there_are_is_none():
    one = compared([[1, 1]] * 6, prompts=[0, 0, 0, 1, 1, 1])
    scores = np.array([1, 2, 3, 1, NAN, 3])
    assert winrate.best_of_rate(one, scores, 4) is None
    assert winrate.best_of_rate(one, scores, 3).prompts == 1


def test_best_of_by_the_judge_itself_only_rises():
    """The score that chooses is the one that judges: no m is worse than fewer."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(30, 8)).reshape(-1)
    votes = np.repeat((scores > 0.3).astype(float)[:, None], 2, 1)
    one = compared(votes, prompts=np.repeat(np.arange(30), 8))
    rates = [winrate.best_of_rate(one, scores, m).value for m in range(1, 9)]
    assert rates[0] == pytest.approx(winrate.win_rate(one).rate.value)
    assert (np.diff(rates) >= -1e-12).all() and rates[-1] > rates[0]
