"""Closed forms on enumerable response sets: what a loss should converge to.

Distributions are log-probs over K responses in nats; rewards are f[K]. Used by tests,
experiments and evaluations as ground truth; knows nothing of models. Everything but
`ipo_optimum` and `chain` can be vmapped over its hyper-parameter.
"""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from dpo_jax.types import Array

BISECTIONS = 80  # halve a bracket of ln β below float64's resolution
WIDEST = 1e4  # β is looked for within this factor of the spread of the rewards


class FrontierPoint(NamedTuple):
    """A policy's place in the plane of reward against KL.

    Attributes:
      kl: KL(π‖ref), nats.
      reward: E_π[r].
    """

    kl: Array
    reward: Array


def optimal_policy(ref_logps: Array, rewards: Array, *, beta: Array | float) -> Array:
    """Returns log π*, π* ∝ ref · e^(r/β), the optimum of E[r] − β KL(π‖ref).

    Args:
      ref_logps: [K] nats.
      rewards: [K].
      beta: strength of the KL penalty, > 0.

    Source: arXiv:2305.18290 eq. 4.
    """
    return jax.nn.log_softmax(ref_logps + rewards / beta)


def kl(logps: Array, ref_logps: Array) -> Array:
    """Returns KL(π‖ref) in nats over the last axis; 0·log 0 counts as 0."""
    terms = jnp.where(logps == -jnp.inf, 0.0, jnp.exp(logps) * (logps - ref_logps))
    return terms.sum(-1)


def expected_reward(logps: Array, rewards: Array) -> Array:
    """Returns E_π[r] over the last axis."""
    return (jnp.exp(logps) * rewards).sum(-1)


def objective(
    logps: Array, ref_logps: Array, rewards: Array, *, beta: Array | float
) -> Array:
    """Returns J(π) = E_π[r] − β KL(π‖ref) over the last axis.

    It equals soft_value − β KL(π‖π*), so nothing beats the optimum.

    Source: arXiv:2305.18290 eq. 3 and A.1.
    """
    return expected_reward(logps, rewards) - beta * kl(logps, ref_logps)


def soft_value(ref_logps: Array, rewards: Array, *, beta: Array | float) -> Array:
    """Returns V = β log Σ ref · e^(r/β), the soft-Bellman value of the set.

    Source: arXiv:2404.12358 ("From r to Q*") eq. 7.
    """
    return beta * jax.nn.logsumexp(ref_logps + rewards / beta, axis=-1)


def project(ref_logps: Array, rewards: Array, *, beta: Array | float) -> Array:
    """Returns r − β log Z, the one reward of its class with Σ ref · e^(r/β) = 1.

    It is the reward β log(π*/ref) that DPO's parametrisation represents; rewards that
    differ by a constant have the same projection, and a projection is its own.

    Source: arXiv:2305.18290 Theorem 1 and Proposition 1 (A.6).
    """
    value = soft_value(ref_logps, rewards, beta=beta)
    return rewards - jnp.expand_dims(value, -1)


def bradley_terry(reward_margins: Array) -> Array:
    """Returns the probability that the first of two is preferred, σ(r₁ − r₂)."""
    return jax.nn.sigmoid(reward_margins)


def plackett_luce(rewards: Array) -> Array:
    """Returns the log-probability of a ranking, Σ_k [r_k − log Σ_{j ≥ k} e^(r_j)].

    Args:
      rewards: [..., K] of the ranked responses, best first.

    Source: arXiv:2305.18290 eq. 18 (A.3).
    """
    backwards = jax.lax.cumlogsumexp(rewards, axis=rewards.ndim - 1, reverse=True)
    return (rewards - backwards).sum(-1)


def ipo_optimum(ref_logps: Array, wins: Array, *, beta: float) -> Array:
    """Returns log π of IPO's minimiser in a tabular softmax; the paper's τ is `beta`.

    With h = log π/ref the loss is the weighted least-squares problem h_i − h_j =
    ±1/(2β) over the comparisons, whose normal equations are a graph Laplacian. Of all
    solutions it returns the one that gradient descent on the logits reaches from the
    reference, which keeps the mean logit of every connected set of responses. With all
    pairs compared equally often, h_i = (mean win rate of i − ½)/β.

    Args:
      ref_logps: [K] nats.
      wins: [K, K], how often (or with what probability) row is preferred to column.
      beta: > 0.

    Source: arXiv:2310.12036 eq. 17; the closed form is ours.
    """
    chex.assert_shape(wins, (*ref_logps.shape, *ref_logps.shape))
    compared = wins + wins.T
    laplacian = jnp.diag(compared.sum(-1)) - compared
    pull = (wins - wins.T).sum(-1) / (2.0 * beta)
    return jax.nn.log_softmax(ref_logps + jnp.linalg.pinv(laplacian) @ pull)


def frontier(ref_logps: Array, rewards: Array, *, beta: Array | float) -> FrontierPoint:
    """Returns the place of π*_β; along β the slope dE[r]/dKL is β itself.

    Args:
      ref_logps: [K] nats.
      rewards: [K].
      beta: > 0, a scalar; vmap for a curve.
    """
    best = optimal_policy(ref_logps, rewards, beta=beta)
    return FrontierPoint(kl(best, ref_logps), expected_reward(best, rewards))


def frontier_beta(ref_logps: Array, rewards: Array, target_kl: Array) -> Array:
    """Returns the β at which KL(π*_β‖ref) is `target_kl`, by bisection on ln β.

    The KL falls strictly in β, from −log ref(best) to 0. A target outside what the
    bracket of `WIDEST` times the spread of the rewards can reach gets its end.

    Args:
      ref_logps: [K] nats.
      rewards: [K], not all equal.
      target_kl: nats, a scalar.
    """
    spread = jnp.log(rewards.max() - rewards.min())
    width = jnp.log(WIDEST)

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        above = frontier(ref_logps, rewards, beta=jnp.exp(middle)).kl > target_kl
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    start = (spread - width, spread + width)
    low, high = jax.lax.fori_loop(0, BISECTIONS, halve, start)
    return jnp.exp((low + high) / 2)


def frontier_reward(ref_logps: Array, rewards: Array, target_kl: Array) -> Array:
    """Returns the largest E[r] within a KL of `target_kl` nats (a scalar)."""
    beta = frontier_beta(ref_logps, rewards, target_kl)
    return frontier(ref_logps, rewards, beta=beta).reward


def frontier_gap(logps: Array, ref_logps: Array, rewards: Array) -> Array:
    """Returns how far E_π[r] lies below the frontier at π's own KL; never negative."""
    spent = kl(logps, ref_logps)
    most = frontier_reward(ref_logps, rewards, spent)
    return most - expected_reward(logps, rewards)


def sampled_frontier(
    sampled_rewards: Array, *, beta: Array | float
) -> tuple[FrontierPoint, Array]:
    """Estimates the place of π*_β from samples of the reference.

    Self-normalised importance weights w = e^(r/β) make it the exact frontier of the
    uniform distribution over the samples: E[r] = Σwr/Σw, KL = E[r]/β − log mean w.

    Args:
      sampled_rewards: [..., M] of M responses that the reference gave to each prompt.
      beta: > 0, a scalar.

    Returns:
      (the place, means over the prompts; bool[], whether to trust it: KL ≤ ln M − 2 at
      every prompt, beyond which too few samples carry the weight).
    """
    samples = sampled_rewards.shape[-1]
    uniform = jnp.full(sampled_rewards.shape, -jnp.log(samples))
    tilted = optimal_policy(uniform, sampled_rewards, beta=beta)
    spent, reward = kl(tilted, uniform), expected_reward(tilted, sampled_rewards)
    trusted = (spent <= jnp.log(samples) - 2.0).all()
    return FrontierPoint(spent.mean(), reward.mean()), trusted


def best_of_n(ref_logps: Array, rewards: Array, *, n: Array | int) -> Array:
    """Returns log q of the best of n draws from the reference, ties shared evenly.

    The best reward is v with probability F(v)^n − F(v−)^n, F being the reference's
    distribution of rewards; within v a response has its share of the reference.

    Args:
      ref_logps: [K] nats.
      rewards: [K].
      n: draws, ≥ 1.
    """
    chex.assert_equal_shape([ref_logps, rewards])
    ref_logps, rewards = jnp.asarray(ref_logps), jnp.asarray(rewards)
    order = jnp.argsort(rewards)
    ranked = rewards[order]
    mass = jnp.exp(ref_logps)
    # A level's own mass is summed by itself: a difference of two values of F rounds.
    first = jnp.searchsorted(ranked, ranked, side="left")
    level_mass = jnp.zeros_like(mass).at[first].add(mass[order])
    upto = jnp.cumsum(level_mass)[first]  # F
    below = upto - level_mass[first]  # F−
    share = n * jnp.log(below / upto)
    level_logps = n * jnp.log(upto) + jnp.log(-jnp.expm1(share))
    logps = ref_logps[order] - jnp.log(level_mass[first]) + level_logps
    logps = jnp.where(mass[order] > 0, logps, -jnp.inf)
    return jnp.zeros_like(logps).at[order].set(logps)


def best_of_n_kl_bound(n: Array | int) -> Array:
    """Returns ln n − (n − 1)/n, what KL(best of n‖ref) cannot exceed, nats.

    Source: arXiv:2401.01879; equality for rewards without ties of a continuous ref.
    """
    return jnp.log(n) - (n - 1) / n


def chain(conditionals: Sequence[Array]) -> Array:
    """Enumerates the log-probs of all V^L sequences from next-token distributions.

    Args:
      conditionals: L arrays; the t-th is broadcastable to [V] * (t + 1) and holds
        log p(token t | tokens before), the last axis being token t. Leading axes of
        length 1 say that a token far back does not matter.

    Returns:
      f[V^L] nats, in lexicographic order of the sequences.
    """
    length, vocabulary = len(conditionals), conditionals[0].shape[-1]
    total = jnp.zeros(())
    for t, table in enumerate(conditionals):
        chex.assert_rank(table, t + 1)
        total = total + table.reshape(table.shape + (1,) * (length - t - 1))
    return jnp.broadcast_to(total, (vocabulary,) * length).reshape(-1)


def chain_kl(conditionals: Sequence[Array], ref_conditionals: Sequence[Array]) -> Array:
    """Sums the KL of each next-token distribution over the prefixes that π visits.

    Equals `kl` of the two `chain`s: what a sequence KL summed over time steps means.

    Args:
      conditionals: of π, as in `chain`.
      ref_conditionals: of the reference.

    Source: arXiv:2305.18290 §6.1, footnote 3.
    """
    total = jnp.zeros(())
    for t, (table, ref_table) in enumerate(
        zip(conditionals, ref_conditionals, strict=True)
    ):
        vocabulary = table.shape[-1]
        each = kl(*jnp.broadcast_arrays(table, ref_table))  # one per prefix of length t
        each = jnp.broadcast_to(each, (vocabulary,) * t).reshape(-1)
        visited = jnp.exp(chain(conditionals[:t])) if t else jnp.ones(1)
        total = total + (visited * each).sum()
    return total
