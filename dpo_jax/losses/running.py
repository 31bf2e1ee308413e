"""Statistics that losses keep from step to step; nothing here has a gradient.

Each `update_*` is pure and takes the global batch. Before the first batch a count (or
`*_seen`) is 0, and the losses say what stands in for the statistics then.
"""

import jax
import jax.numpy as jnp

from dpo_jax.losses.shared import counted, log_ratios, mean, per_token, single_ratios
from dpo_jax.types import Array, PairLogps, SingleLogps, Stats

REWARDS = {"reward_mean": 0.0, "reward_count": 0.0}
GAPS = {"gap_mean": 0.0, "gap_std": 0.0, "gap_seen": 0.0}
SPREADS = {"spread_mean": 0.0, "spread_std": 0.0, "spread_seen": 0.0}


def update_pair_rewards(logps: PairLogps, stats: Stats, *, beta: Array) -> Stats:
    """Averages βa and βb of all pairs seen so far, one weight each."""
    pairs, mask = counted(jax.lax.stop_gradient(logps))
    rewards = jnp.concatenate([beta * ratio for ratio in log_ratios(pairs)])
    return _average(rewards, jnp.concatenate([mask, mask]), stats)


def update_rewards(singles: SingleLogps, stats: Stats, *, beta: Array) -> Stats:
    """Averages β log π/ref of all labelled responses seen so far, one weight each."""
    ratios = single_ratios(jax.lax.stop_gradient(singles))
    mask = singles.mask & (singles.labels != 0)
    return _average(beta * ratios, mask, stats)


def _average(rewards: Array, mask: Array, stats: Stats) -> Stats:
    number = mask.sum().astype(rewards.dtype)
    count = stats["reward_count"] + number
    step = mean(rewards, mask) - stats["reward_mean"]
    moved = stats["reward_mean"] + number / jnp.maximum(count, 1.0) * step
    return {"reward_mean": moved, "reward_count": count}


def update_gap(logps: PairLogps, stats: Stats, *, momentum: Array) -> Stats:
    """Moves mean and deviation of Δ towards the batch's; the first batch sets them.

    Source: arXiv:2407.08639; the official code starts at 0 and moves them once for each
    part of an accumulated batch: k parts at .9 are one step at .9^k.
    """
    pairs, mask = counted(jax.lax.stop_gradient(logps))
    chosen, rejected = log_ratios(pairs)
    return _follow("gap", chosen - rejected, stats, mask, momentum)


def spreads(logps: PairLogps) -> Array:
    """Computes g, the difference of the log-ratios per token, f32[N]."""
    chosen, rejected = per_token(logps, *log_ratios(logps))
    return chosen - rejected


def update_spread(logps: PairLogps, stats: Stats, *, momentum: Array) -> Stats:
    """Moves mean and standard deviation of g towards the batch's; the first sets them.

    Source: arXiv:2410.10148; the official code starts at 0 and moves them once for each
    part of an accumulated batch: 16 parts at .9 are one step at .185.
    """
    pairs, mask = counted(jax.lax.stop_gradient(logps))
    return _follow("spread", spreads(pairs), stats, mask, momentum)


def _follow(
    name: str, values: Array, stats: Stats, mask: Array, momentum: Array
) -> Stats:
    """Mixes a batch's mean and deviation in; a batch without pairs changes nothing.

    The deviation is the sample's (n − 1), 0 for a single pair.
    """
    middle, seen = mean(values, mask), f"{name}_seen"
    squares = jnp.where(mask, jnp.square(values - middle), 0.0).sum()
    variance = squares / jnp.maximum(mask.sum() - 1, 1)
    new = {f"{name}_mean": middle, f"{name}_std": jnp.sqrt(variance)}
    kept = jnp.where(stats[seen] > 0, momentum, 0.0)
    kept = jnp.where(mask.any(), kept, 1.0)
    moved = {k: kept * stats[k] + (1.0 - kept) * value for k, value in new.items()}
    moved[seen] = jnp.where(mask.any(), 1.0, stats[seen])
    return moved
