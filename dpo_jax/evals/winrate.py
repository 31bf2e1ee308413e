"""Win rates: what verdicts on pairs of answers say of the systems that gave them.

A judge is asked about each comparison twice, with either answer first. Where both
verdicts agree it is a win, a loss or a tie of A; where they differ it is split, and
counts ½; where one is absent the comparison is not judged: what is left would lean to
one place. The win rate is (wins + ½ ties + ½ splits) / judged. Comparisons of one
prompt depend on each other, so all errors are those of prompts. Pure NumPy; rates are
shares of 1.
"""

from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

from dpo_jax.evals import best_of

RESAMPLED = 2000  # sets of prompts behind an interval
LEVEL = 0.95
POWER = 0.8
BOUND = 20.0  # of a coefficient that separable data would send to infinity


class Compared(NamedTuple):
    """M comparisons of an answer of A and one of B to the same prompt.

    Attributes:
      prompts: i64[M] which prompt it is.
      votes: f64[M, 2] what A gets with its answer first, and with B's first: 1 = A is
        preferred, 0 = B is, ½ = a tie, NaN = no verdict.
      lengths: f64[M, 2] characters of A's answer, and of B's.
    """

    prompts: np.ndarray
    votes: np.ndarray
    lengths: np.ndarray

    @property
    def outcomes(self) -> np.ndarray:
        """f64[M]: 1 = win of A, 0 = loss, ½ = tie or split, NaN = not judged."""
        first, second = self.votes.T
        missing = np.isnan(first) | np.isnan(second)
        agreed = np.where(first == second, first, 0.5)
        return np.where(missing, np.nan, agreed)

    @property
    def split(self) -> np.ndarray:
        """bool[M], where the two orders disagree."""
        first, second = self.votes.T
        return ~np.isnan(first + second) & (first != second)

    def swapped(self) -> "Compared":
        """The same comparisons, of B with A."""
        return Compared(self.prompts, 1 - self.votes[:, ::-1], self.lengths[:, ::-1])


class Rate(NamedTuple):
    """A mean over comparisons, with the errors of prompts.

    Attributes:
      value: in [0, 1].
      se: its standard error; NaN of one prompt.
      low: lower end of its 95 % interval.
      high: upper end.
      prompts: how many it rests on.
      smallest: difference from ½ that as many prompts would show in 80 % of the cases,
        at the 5 % level, were each won or lost.
    """

    value: float
    se: float
    low: float
    high: float
    prompts: int
    smallest: float


class WinRate(NamedTuple):
    """How A fares against B.

    Attributes:
      rate: of wins.
      wins: comparisons that both orders give to A.
      losses: that both give to B.
      ties: that both call a tie.
      splits: in which the orders disagree.
      absent: without a verdict in one order or both; part of nothing else.
      first: share of the votes of judged comparisons that prefer the answer shown
        first, ties halved: ½ of a judge that does not look at the place.
      lengths: mean characters of A's and B's answers, of judged comparisons.
    """

    rate: Rate
    wins: int
    losses: int
    ties: int
    splits: int
    absent: int
    first: float
    lengths: tuple[float, float]

    @property
    def judged(self) -> int:
        """Comparisons with a verdict."""
        return self.wins + self.losses + self.ties + self.splits


def win_rate(compared: Compared) -> WinRate | None:
    """Counts verdicts; None where nothing was judged."""
    outcomes, split = compared.outcomes, compared.split
    judged = ~np.isnan(outcomes)
    if not judged.any():
        return None
    shown_first = np.stack([compared.votes[:, 0], 1 - compared.votes[:, 1]])
    lengths = compared.lengths[judged].mean(0)
    return WinRate(
        rate=mean_over_prompts(compared.prompts, outcomes),
        wins=int((outcomes == 1).sum()),
        losses=int((outcomes == 0).sum()),
        ties=int(((outcomes == 0.5) & ~split).sum()),
        splits=int(split.sum()),
        absent=int((~judged).sum()),
        first=float(shown_first[:, judged].mean()),
        lengths=(float(lengths[0]), float(lengths[1])),
    )


def mean_over_prompts(prompts: np.ndarray, values: np.ndarray) -> Rate:
    """Averages values in [0, 1] of comparisons; errors are those of prompts.

    The standard error is that of a ratio of sums over prompts, linearized. The interval
    holds the middle 95 % of means over sets of prompts drawn with replacement; where
    all are 0 or all 1 it is Wilson's, of the prompts.

    Args:
      prompts: i64[M].
      values: f64[M]; NaN takes no part, one at least does.
    """
    there = ~np.isnan(values)
    _, place = np.unique(prompts[there], return_inverse=True)
    sums, counts = np.bincount(place, values[there]), np.bincount(place)
    count, mean = len(counts), float(sums.sum() / counts.sum())
    smallest = smallest_difference(count)
    if count == 1:
        return Rate(mean, np.nan, np.nan, np.nan, count, smallest)
    apart = sums - mean * counts
    error = np.sqrt((apart**2).sum() * count / (count - 1)) / counts.sum()
    if mean in (0.0, 1.0):
        near = count / (count + stats.norm.ppf((1 + LEVEL) / 2) ** 2)
        low, high = (near, 1.0) if mean else (0.0, 1 - near)
        return Rate(mean, float(error), float(low), float(high), count, smallest)
    drawn = np.random.default_rng(0).integers(0, count, (RESAMPLED, count))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Rate(mean, float(error), float(low), float(high), count, smallest)


def smallest_difference(prompts: int) -> float:
    """Says which difference from ½ so many prompts would show; see `Rate`."""
    known = stats.norm.ppf((1 + LEVEL) / 2) + stats.norm.ppf(POWER)
    return float(known * 0.5 / np.sqrt(prompts))


def best_of_rate(compared: Compared, scores: np.ndarray, m: int) -> Rate | None:
    """Estimates without bias how the best of m answers of A fares.

    All subsets of m of a prompt's answers are equally likely, drawn without
    replacement; the best is that of the highest score, which a judge of its own may
    have given. A prompt with fewer than m answers that have both takes no part.

    Args:
      compared: several answers of A to each prompt.
      scores: f64[M] of A's answers; NaN = none.
      m: ≥ 1.

    Returns:
      None where no prompt has m of them.
    """
    names, place = np.unique(compared.prompts, return_inverse=True)
    rows = [np.flatnonzero(place == i) for i in range(len(names))]
    widest = max(map(len, rows), default=0)
    if m > widest:
        return None
    table = np.full((2, len(rows), widest), np.nan)
    for i, of in enumerate(rows):
        table[:, i, : len(of)] = scores[of], compared.outcomes[of]
    worth = best_of.expected_best(table[0], table[1], m)
    if np.isnan(worth).all():
        return None
    return mean_over_prompts(names, worth)


class Agreement(NamedTuple):
    """How far two judges agree on comparisons that both judged.

    Attributes:
      raw: share of equal outcomes, of win, loss and neither.
      kappa: Cohen's; NaN where both always say the same one thing.
      count: comparisons.
    """

    raw: float
    kappa: float
    count: int


def agreement(one: np.ndarray, other: np.ndarray) -> Agreement | None:
    """Compares the outcomes of two judges; None where none are judged by both.

    Args:
      one: f64[M] as `Compared.outcomes`.
      other: f64[M] of the same comparisons.

    Source: Cohen 1960, "A coefficient of agreement for nominal scales", eq. 1.
    """
    both = ~np.isnan(one + other)
    if not both.any():
        return None
    one, other = one[both], other[both]
    raw = float((one == other).mean())
    chance = sum(
        float((one == kind).mean() * (other == kind).mean()) for kind in (0.0, 0.5, 1.0)
    )
    kappa = (raw - chance) / (1 - chance) if chance < 1 else np.nan
    return Agreement(raw, kappa, int(both.sum()))


class LengthControl(NamedTuple):
    """A win rate at equal lengths.

    Attributes:
      rate: σ(θ), what A would win were its answers as long as B's.
      se: its standard error, of prompts.
      theta: log odds at equal lengths.
      phi: what length adds to them, of tanh(difference / its standard deviation).
    """

    rate: float
    se: float
    theta: float
    phi: float


def length_controlled(compared: Compared) -> LengthControl | None:
    """Fits P(A wins) = σ(θ + φ·tanh(Δ/s)), Δ = A's less B's characters, s their spread.

    Ties and splits count ½. AlpacaEval 2 has a third term, the difficulty of each of
    its 805 instructions, fitted on other models: it belongs to those and is left out,
    and with it the penalty that it needs. A coefficient is held within ±20, so the fit
    is finite where lengths or systems separate wins from losses.

    Returns:
      None where nothing was judged.

    Source: arXiv:2404.04475 eq. 1.
    """
    outcomes = compared.outcomes
    judged = ~np.isnan(outcomes)
    if not judged.any():
        return None
    wins, prompts = outcomes[judged], compared.prompts[judged]
    apart = compared.lengths[judged] @ [1.0, -1.0]
    spread = apart.std()
    longer = np.tanh(apart / spread) if spread else np.zeros(len(apart))
    given = np.stack([np.ones(len(apart)), longer], 1)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logits = given @ weights
        error = _sigmoid(logits) - wins
        return (np.logaddexp(0, logits) - wins * logits).mean(), error @ given / len(
            wins
        )

    found = optimize.minimize(
        loss,
        np.zeros(2),
        jac=True,
        bounds=[(-BOUND, BOUND)] * 2,
        method="L-BFGS-B",
        options={"ftol": 0.0, "gtol": 1e-12, "maxiter": 1000},
    )
    theta, phi = found.x
    chance = _sigmoid(given @ found.x)
    rate = float(_sigmoid(theta))
    error = rate * (1 - rate) * _intercept_error(given, wins - chance, chance, prompts)
    return LengthControl(rate, error, float(theta), float(phi))


def _intercept_error(
    given: np.ndarray, apart: np.ndarray, chance: np.ndarray, prompts: np.ndarray
) -> float:
    """Returns the error of θ, robust to prompts whose comparisons hang together.

    Args:
      given: f64[M, 2] what is regressed on.
      apart: f64[M] residuals.
      chance: f64[M] fitted.
      prompts: i64[M].
    """
    _, place = np.unique(prompts, return_inverse=True)
    count = place.max() + 1
    if count == 1:
        return np.nan
    scores = np.zeros((count, 2))
    np.add.at(scores, place, apart[:, None] * given)
    inverse = np.linalg.pinv((given.T * (chance * (1 - chance))) @ given)
    cover = inverse @ (scores.T @ scores) @ inverse * count / (count - 1)
    return float(np.sqrt(cover[0, 0]))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(logits / 2))


class LengthBin(NamedTuple):
    """Comparisons of like difference in length.

    Attributes:
      least: the smallest difference among them, A's less B's characters.
      most: the largest.
      count: judged comparisons.
      rate: of wins.
    """

    least: float
    most: float
    count: int
    rate: Rate


def by_length(compared: Compared, bins: int = 5) -> list[LengthBin]:
    """Shows the win rate against the difference in length, in bins of like count."""
    outcomes = compared.outcomes
    there = ~np.isnan(outcomes)
    if not there.any():
        return []
    apart, found = compared.lengths @ [1.0, -1.0], []
    inner = np.quantile(apart[there], np.linspace(0, 1, bins + 1)[1:-1])
    place = np.searchsorted(inner, apart, side="right")  # equals lie together
    for number in np.unique(place[there]):
        at = there & (place == number)
        rate = mean_over_prompts(compared.prompts[at], outcomes[at])
        ends = float(apart[at].min()), float(apart[at].max())
        found.append(LengthBin(*ends, int(at.sum()), rate))
    return found
