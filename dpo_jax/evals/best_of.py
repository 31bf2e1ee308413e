"""Best-of-N: what is gained by drawing m samples and keeping the best of them.

From n ≥ m samples of a prompt the expectation over all subsets of m is exact, so one
set of samples gives the whole curve without a bias. Pure NumPy.
"""

import functools
import math

import numpy as np


def weights(scores: np.ndarray, m: int) -> np.ndarray:
    """Returns the chance that each of n samples is the best of m of them.

    All subsets of m are equally likely; among the best of equal score each is.

    Args:
      scores: f[n], by which the best is chosen.
      m: 1 ≤ m ≤ n.

    Returns:
      f64[n]; C(i, m − 1)/C(n, m) of the sample with i below it, where none are equal.

    Source: the order statistics of a draw without replacement; arXiv:2107.03374 eq. 1
    has the same estimator for a reward of 0 or 1.
    """
    n = len(scores)
    assert 1 <= m <= n
    by_rank = _by_rank(n, m)
    _, level, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    mine = np.empty(n)
    mine[np.argsort(scores, kind="stable")] = by_rank
    return (np.bincount(level, mine) / sizes)[level]


@functools.cache
def _by_rank(n: int, m: int) -> np.ndarray:
    """Returns C(i, m − 1)/C(n, m) for i < n."""
    subsets = math.comb(n, m)
    return np.array([math.comb(i, m - 1) / subsets for i in range(n)])


def expected_best(scores: np.ndarray, values: np.ndarray, m: int) -> np.ndarray:
    """Estimates without bias what the best of m samples of each prompt is worth.

    Args:
      scores: f[N, n], by which the best is chosen; NaN = that sample takes no part.
      values: f[N, n], what it is worth: the scores themselves, or the truth.
      m: 1 ≤ m ≤ n.

    Returns:
      f64[N]; NaN where fewer than m samples of a prompt have both numbers.
    """
    found = np.full(len(scores), np.nan)
    for i, there in enumerate(~np.isnan(scores) & ~np.isnan(values)):
        if there.sum() >= m:
            found[i] = weights(scores[i, there], m) @ values[i, there]
    return found


def sizes(n: int) -> list[int]:
    """Lists the m of a curve: 2, 4, 8, … below n, and n; [] for n = 1."""
    return [*(2**k for k in range(1, n.bit_length()) if 2**k < n), n] if n > 1 else []
