"""A loss from outside the package, with an option of its own."""

from typing import Annotated

import jax

from dpo_jax.losses import Loss
from dpo_jax.schema import NOT_NEGATIVE
from dpo_jax.types import Array


def _focal(
    delta: Array, *, beta: float, focal_gamma: Annotated[float, NOT_NEGATIVE] = 2.0
) -> Array:
    """DPO that looks away from pairs which are right already, f32[N].

    −σ(−βδ)^γ log σ(βδ): of a pair that the policy has right with probability σ(βδ) the
    weight is the γ-th power of what is missing to 1. γ = 0 is DPO.

    Args:
      delta: f32[N], log-ratio of the chosen − of the rejected response, nats.
      beta: β.
      focal_gamma: γ, an option of this loss alone.

    Source: the weight: Lin et al. 2017, arXiv:1708.02002 eq. 4; on DPO: FocalPO,
      arXiv:2501.06645, has it the other way, σ(βδ)^γ.
    """
    logits = beta * delta
    return -(jax.nn.sigmoid(-logits) ** focal_gamma) * jax.nn.log_sigmoid(logits)


focal = Loss(_focal, "−σ(−βδ)^γ log σ(βδ)", "arXiv:1708.02002 eq. 4", of="delta")
