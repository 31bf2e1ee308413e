"""Likelihood of the chosen response: the baselines without a comparison."""

from dpo_jax.losses import shared
from dpo_jax.types import Array, PairLogps


def sft(
    logps: PairLogps,
    *,
    tokens_per_pair: Array,
    whole_per_pair: Array,
    likelihood: str = "",
) -> Array:
    """Computes −log π(chosen), f32[N] nats; the sum is divided by chosen tokens.

    Args:
      logps: of N pairs.
      likelihood: as in `shared.likelihood`, '' = `tokens`. `responses` is the term of
        IRPO (arXiv:2404.19733) and of Llama 3 (arXiv:2407.21783).
      tokens_per_pair: as there.
      whole_per_pair: as there.

    Source: preferred-FT of arXiv:2305.18290 §6.
    """
    if likelihood in ("", "tokens"):
        return -logps.chosen
    per_pair = shared.likelihood(
        logps,
        likelihood,
        tokens_per_pair=tokens_per_pair,
        whole_per_pair=whole_per_pair,
    )
    return per_pair * tokens_per_pair
