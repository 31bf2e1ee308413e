"""What may be said of differences between methods: pure functions of numbers.

A method's runs differ by seed and are measured on prompts that all of them share, so a
mean over both errs by the choice of seeds, by that of prompts, and by what is left. The
mean's error is that of a bootstrap of two levels, of few seeds judged by Student's t.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

DRAWS = 2000  # of a bootstrap: its standard errors are then right to 2 %
CONFIDENCE = 0.95  # of intervals; an effect is seen where p < 1 − this
POWER = 0.8  # with which the smallest effect is seen


class Effects(NamedTuple):
    """A table of values, taken apart.

    Attributes:
      mean: of all values.
      seeds: f64[S], what each seed adds to it.
      prompts: f64[P], what each prompt adds to it, shrunk to what is not noise.
      df: degrees of freedom of the mean's variance.
    """

    mean: float
    seeds: np.ndarray
    prompts: np.ndarray
    df: float


class Mean(NamedTuple):
    """A mean with its standard error (NaN = unknown) and degrees of freedom."""

    mean: float
    se: float
    df: float

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of `CONFIDENCE`; NaN where no error is known."""
        half = quantile((1 + CONFIDENCE) / 2, self.df) * self.se
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float:
        """The two-sided p-value of 0; 1 where nothing varies about 0."""
        if self.se == 0.0:
            return float(self.mean == 0.0)
        return 2 * float(special.stdtr(self.df, -abs(self.mean / self.se)))


def quantile(p: float, df: float) -> float:
    """Returns the quantile of Student's t at probability `p`."""
    return float(special.stdtrit(df, p))


def effects(values: np.ndarray) -> Effects:
    """Takes a table apart by the two-way model of random effects.

    With mean squares M_s of seeds, M_p of prompts and M_e of what is left, the variance
    of the mean is (M_s + max(M_p − M_e, 0)) / (S·P), its degrees of freedom are
    Satterthwaite's. One seed tells nothing of others: the error is that over prompts.

    Args:
      values: f64[S, P], of S seeds on P prompts.

    Source: Satterthwaite 1946, Biometrics Bulletin 2; the model: Searle, Casella and
      McCulloch 1992, Variance Components, §4.
    """
    count, width = values.shape
    mean = float(values.mean())
    seeds, prompts = values.mean(1) - mean, values.mean(0) - mean
    if count == 1 or width == 1:
        return Effects(mean, seeds, prompts, float(max(count, width) - 1))
    rest = values - mean - seeds[:, None] - prompts
    of_seeds, of_prompts = count - 1, width - 1
    m_s = width * float(np.square(seeds).sum()) / of_seeds
    m_p = count * float(np.square(prompts).sum()) / of_prompts
    m_e = float(np.square(rest).sum()) / (of_seeds * of_prompts)
    excess = max(m_p - m_e, 0.0)
    spread = m_s**2 / of_seeds
    if excess:
        spread += m_p**2 / of_prompts + m_e**2 / (of_seeds * of_prompts)
        prompts = prompts * math.sqrt(excess / m_p)
    else:
        prompts = np.zeros(width)
    df = (m_s + excess) ** 2 / spread if spread else float(of_seeds)
    return Effects(mean, seeds, prompts, df)


def bootstrap(found: Effects, draws: int = DRAWS) -> np.ndarray:
    """Draws means of other seeds on other prompts, f64[draws]; always the same.

    Each draw takes S − 1 of the S seeds' effects and P − 1 of the prompts', the same
    prompts for all seeds: so many, and its variance is not too small by (S − 1)/S.

    Source: the levels' effects, shrunk: Carpenter, Goldstein and Rasbash 2003, JRSS C
      52; one fewer than there are: Rao and Wu 1988, JASA 83.
    """
    random = np.random.default_rng(0)
    means = np.full(draws, found.mean)
    for level in (found.seeds, found.prompts):
        if len(level) > 1:
            taken = random.integers(len(level), size=(draws, len(level) - 1))
            means += level[taken].mean(1)
    return means


def mean_of(values: np.ndarray) -> Mean:
    """Returns the mean of f64[S, P] with its error over seeds and prompts."""
    found = effects(values)
    if values.size == 1:
        return Mean(found.mean, math.nan, math.nan)
    if not np.ptp(values):
        return Mean(found.mean, 0.0, found.df)
    return Mean(found.mean, float(bootstrap(found).std()), found.df)


def holm(ps: Sequence[float]) -> list[float]:
    """Corrects p-values for their number; NaN stays, and does not count.

    The chance that any true null hypothesis is rejected stays below that of one test,
    however the tests depend on each other.

    Source: Holm 1979, Scandinavian Journal of Statistics 6.
    """
    known = sorted((p, i) for i, p in enumerate(ps) if not math.isnan(p))
    corrected, least = list(ps), 0.0
    for rank, (p, i) in enumerate(known):
        least = max(least, min(1.0, p * (len(known) - rank)))
        corrected[i] = least
    return corrected


def smallest_effect(of: Mean, comparisons: int) -> float:
    """Returns the difference that would have been seen with probability `POWER`.

    Seen as the first of so many comparisons, where Holm's correction is Bonferroni's.

    Source: Bloom 1995, Evaluation Review 19.
    """
    alpha = (1 - CONFIDENCE) / max(comparisons, 1)
    return (quantile(1 - alpha / 2, of.df) + quantile(POWER, of.df)) * of.se
