"""Scores in units of what a reward model says of samples of the reference.

Scores of a Bradley-Terry model have no zero, and their spread is what its training made
it. Moved to mean 0 and deviation 1 on samples of the reference, rewards of several
models, their weights and the coefficient of the KL mean the same.
Source: arXiv:1909.08593 section 2.1.
"""

from typing import NamedTuple

import numpy as np

from dpo_jax.errors import ModelError


class Moments(NamedTuple):
    """Mean and standard deviation, with one degree of freedom less."""

    mean: float
    deviation: float

    def standardized(self, scores: np.ndarray) -> np.ndarray:
        """Moves scores by the mean, and divides them by the deviation: f32[…]."""
        return (scores - np.float32(self.mean)) / np.float32(self.deviation)


def moments(scores: np.ndarray) -> Moments:
    """Measures scores f[N] of samples of the reference, N ≥ 2.

    Raises:
      ModelError: if the deviation is 0, or not finite.
    """
    exact = scores.astype(np.float64)
    found = Moments(float(exact.mean()), float(exact.std(ddof=1)))
    if not 0 < found.deviation < np.inf:  # NaN is not, either
        raise ModelError(
            f"reward.standardize={len(scores)}: the reward model's scores of so many "
            f"samples have mean {found.mean:g} and deviation {found.deviation:g}, by "
            "which none can be divided; set it to 0, or give another reward.path"
        )
    return found
