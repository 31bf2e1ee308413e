"""Likelihood of the chosen response: the baselines without a comparison."""

from dpo_jax.types import Array, PairLogps


def sft(logps: PairLogps) -> Array:
    """Computes −log π(chosen), f32[N] nats; its mean is over chosen tokens.

    Source: preferred-FT of arXiv:2305.18290 §6.
    """
    return -logps.chosen
