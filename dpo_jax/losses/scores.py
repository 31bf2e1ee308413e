"""Losses of a reward model's scores."""

import chex
import jax

from dpo_jax.losses.shared import square
from dpo_jax.types import Array, PairScores


def bradley_terry(scores: PairScores, *, centering: Array) -> Array:
    """Computes −log σ(s_w − s_l − margin) + c(s_w + s_l)², f32[N].

    Source: arXiv:1706.03741; margin arXiv:2307.09288 eq. 2; centering
    arXiv:2312.09244.
    """
    chex.assert_equal_shape(list(scores))
    gap = scores.chosen - scores.rejected - scores.margins
    return -jax.nn.log_sigmoid(gap) + centering * square(
        scores.chosen + scores.rejected
    )
