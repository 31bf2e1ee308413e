"""How much reward a KL can buy, and whether a policy claims more than that.

For every β the policy π*_β ∝ ref · e^(r/β) has the largest reward at its own KL, and
no policy has E[r] − β·KL above V_β = β log E_ref[e^(r/β)]. Both follow from samples of
the reference, by importance weights, or from an enumerated set. One β holds for all
prompts, and KLs are averaged over them. Errors are those of means over N prompts, which
are independent; samples of one prompt are not counted as more. Rewards of samples may
be NaN: no verdict. Pure NumPy, nats.
Source: arXiv:2305.18290 eq. 4 and figure 2; arXiv:2210.10760 for best-of-N in it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dpo_jax.evals import best_of

FLAGGED = 3.0  # standard errors above the frontier
LEAST_SAMPLES = 30.0  # that must carry the weight of an estimate
ROUNDING = 1e-9  # of an optimum without noise


class Curve(NamedTuple):
    """The frontier at K values of β, arrays f64[K].

    Attributes:
      betas: strengths of the KL penalty.
      kl: of π*_β.
      kl_se: its error.
      reward: of π*_β.
      reward_se: its error.
      samples: how many carry the weight, 1/Σw² (ESS), harmonic mean over prompts.
      trusted: bool[K]; from samples, whether those are enough.
    """

    betas: np.ndarray
    kl: np.ndarray
    kl_se: np.ndarray
    reward: np.ndarray
    reward_se: np.ndarray
    samples: np.ndarray
    trusted: np.ndarray


class Excess(NamedTuple):
    """How far a policy lies above the frontier.

    Attributes:
      value: E[r] − β·KL − V_β, at most 0 of any policy, at the β where it is largest.
      se: its standard error; prompts are paired, so what they share cancels.
      beta: where.
    """

    value: float
    se: float
    beta: float

    @property
    def flagged(self) -> bool:
        """Whether it is more than noise: reward, KL or frontier must be wrong."""
        return self.value > FLAGGED * self.se + ROUNDING


class Best(NamedTuple):
    """Best-of-m of the reference: its KL is known by a bound only.

    Attributes:
      m: samples of which the best is kept.
      kl_bound: ln m − (m − 1)/m, what the KL cannot exceed (arXiv:2401.01879).
      reward: expected reward.
      reward_se: its standard error.
    """

    m: int
    kl_bound: float
    reward: float
    reward_se: float


def grid(rewards: np.ndarray, size: int = 60) -> np.ndarray:
    """Returns β from 1/50 to 50 standard deviations of the rewards, evenly in ln β."""
    spread = float(np.nanstd(rewards)) or 1.0  # all equal: the frontier is one point
    return spread * np.geomspace(0.02, 50.0, size)


def soft_values(
    rewards: np.ndarray, beta: float, logps: np.ndarray | None = None
) -> np.ndarray:
    """Returns V_β = β log E_ref[e^(r/β)] of each prompt: f64[N].

    From M samples it is too low, by β(1/ESS − 1/M)/2 to first order.

    Args:
      rewards: f[N, M].
      beta: > 0.
      logps: f[N, M] nats of an enumerated set; None = M samples of the reference.
    """
    scores = _log_weights(rewards, logps) + np.nan_to_num(rewards) / beta
    top = scores.max(1)
    return beta * (top + np.log(np.exp(scores - top[:, None]).sum(1)))


def _tilted(
    rewards: np.ndarray, beta: float, logps: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns V_β f64[N] and the weights f64[N, M] of π*_β."""
    values = soft_values(rewards, beta, logps)
    scores = (np.nan_to_num(rewards) - values[:, None]) / beta
    return values, np.exp(_log_weights(rewards, logps) + scores)


def frontier(
    rewards: np.ndarray, betas: Sequence[float], logps: np.ndarray | None = None
) -> Curve:
    """Computes the frontier, or estimates it from samples of the reference.

    Self-normalised weights w ∝ e^(r/β) make the estimate the exact frontier of the
    uniform distribution over the M samples. It is trusted where the KL is at most
    ln M − 2 at every prompt and `LEAST_SAMPLES` carry the weight; beyond, the reward is
    too low.

    Args:
      rewards: f[N, M], N ≥ 2.
      betas: > 0.
      logps: as in `soft_values`.
    """
    rows, known = [], (~np.isnan(rewards)).sum(1)
    for beta in betas:
        values, weights = _tilted(rewards, beta, logps)
        reward = (weights * np.nan_to_num(rewards)).sum(1)
        kl = (reward - values) / beta
        carrying = 1.0 / np.square(weights).sum(1).mean()
        trusted = logps is not None or (
            (kl <= np.log(known) - 2.0).all() and carrying >= LEAST_SAMPLES
        )
        rows.append((beta, *_mean_se(kl), *_mean_se(reward), carrying, trusted))
    *columns, trusted = np.array(rows).T
    return Curve(*columns, trusted=trusted.astype(bool))


def excess(
    rewards: np.ndarray,
    kls: np.ndarray,
    ref_rewards: np.ndarray,
    betas: Sequence[float],
    logps: np.ndarray | None = None,
) -> Excess:
    """Says how far a policy lies above the frontier of the same prompts.

    V_β from samples is corrected for its bias. The error is that of the mean over
    prompts of E[r] − β·KL − V_β: that of both axes and of the frontier, with what they
    share.

    Args:
      rewards: f[N] or f[N, n] of the policy's samples of N ≥ 2 prompts.
      kls: likewise, nats.
      ref_rewards: f[N, M] of the reference's responses to the same prompts.
      betas: > 0; a grid around the β whose KL is the policy's.
      logps: as in `soft_values`.
    """
    reward, kl = _by_prompt(rewards), _by_prompt(kls)
    found = []
    for beta in map(float, betas):
        bound, weights = _tilted(ref_rewards, beta, logps)
        if logps is None:
            known = (~np.isnan(ref_rewards)).sum(1)
            bound += beta / 2 * (np.square(weights).sum(1) - 1 / known)
        above = reward - beta * kl - bound
        found.append(Excess(*_mean_se(above), beta))
    return max(found, key=lambda each: each.value)


def best_of_curve(scores: np.ndarray, values: np.ndarray) -> list[Best]:
    """Estimates best-of-m of the reference for m = 2, 4, 8, … up to n, without a bias.

    A prompt with fewer than m verdicts takes no part in best-of-m.

    Args:
      scores: f[N, n] by which the best is chosen, N ≥ 2.
      values: f[N, n] what it is worth.
    """
    each = {
        m: best_of.expected_best(scores, values, m)
        for m in best_of.sizes(scores.shape[1])
    }
    return [
        Best(m, float(np.log(m) - (m - 1) / m), *_mean_se(of_prompt))
        for m, of_prompt in each.items()
        if (~np.isnan(of_prompt)).sum() > 1
    ]


def _log_weights(rewards: np.ndarray, logps: np.ndarray | None) -> np.ndarray:
    """Returns log-probs under the reference, those of samples with a verdict equal."""
    if logps is not None:
        return logps
    there = ~np.isnan(rewards)
    return np.where(there, -np.log(there.sum(1, keepdims=True)), -np.inf)


def _by_prompt(values: np.ndarray) -> np.ndarray:
    return values if values.ndim == 1 else values.mean(1)


def _mean_se(values: np.ndarray) -> tuple[float, float]:
    """Returns the mean over prompts and its error; of those that have a value."""
    values = values[~np.isnan(values)]
    assert len(values) > 1, "one prompt has no standard error"
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
