"""A dozen losses on the same pairs, each tuned over learning rate × its own strength.

    python -m dpo_jax sweep experiments/loss_ablation/sweep.py --out=runs/loss
    python -m dpo_jax sweep experiments/loss_ablation/sweep.py --out=runs/loss --table

ARG is a tier: `tier=laptop` (embedded reviews; 96 trials and the reference, 20 minutes
on two CPU cores that do nothing else), `tier=quick` (4 trials, under 3 minutes),
`tier=ultrafeedback` (Llama-3-8B, 216 trials, for a pod).
"""

from typing import NamedTuple

from dpo_jax.config import parse_arg
from dpo_jax.errors import known
from dpo_jax.launch import Trial
from experiments.loss_ablation.losses import ENTRIES, Keys

CONFIG = "experiments/loss_ablation/config.py"
SFT = "quickstart:stage=sft,steps=300"
LITTLE: Keys = {"eval.limit": 64, "data.eval": "", "checkpoint.after": "none"}
FROM_SFT: Keys = {"model.preset": "", "model.path": "{sft}"}


class Tier(NamedTuple):
    """How much is tried.

    Attributes:
      losses: names of `ENTRIES`.
      lrs: learning rates; the first is the default.
      strengths: values of each loss's own strength.
      seeds: of each setting.
      keys: what differs from `config.py`.
      pod: whether it is the tier for a pod.
    """

    losses: tuple[str, ...]
    lrs: tuple[float, ...]
    strengths: int
    seeds: tuple[int, ...]
    keys: Keys
    pod: bool = False


TIERS: dict[str, Tier] = {
    "laptop": Tier(tuple(ENTRIES), (3e-4, 1e-4), 2, (0, 1), {}),
    "quick": Tier(("dpo", "ipo"), (3e-4,), 1, (0, 1), {"train.steps": 30}),
    "ultrafeedback": Tier(tuple(ENTRIES), (5e-7, 3e-7, 1e-6), 3, (0, 1), {}, pod=True),
}


def get_sweep(arg: str | None = None) -> list[Trial]:
    """Returns the trials of a tier, the first seed of all before the second.

    Args:
      arg: `tier=laptop|quick|ultrafeedback`.
    """
    tier = TIERS[known("tier", parse_arg(arg, tier="laptop")["tier"], TIERS)]
    first = [] if tier.pod else [Trial("sft", SFT, LITTLE)]
    return first + [
        trial(tier, loss, lr, strength, seed)
        for seed in tier.seeds
        for loss in tier.losses
        for lr in tier.lrs
        for strength in range(tier.strengths)
    ]


def trial(tier: Tier, loss: str, lr: float, strength: int, seed: int) -> Trial:
    """Makes a trial; `strength` counts the values of the loss's own."""
    entry, config = ENTRIES[loss], f"{CONFIG}:loss={loss}"
    value = (entry.pod if tier.pod else entry.values)[strength]
    start = {} if tier.pod else FROM_SFT
    tuned = {"optimizer.lr": lr, f"loss.{entry.strength}": value, "seed": seed}
    return Trial(
        f"{loss}.lr={lr:g}.{entry.strength}={value:g}.seed={seed}",
        f"{config},tier=ultrafeedback" if tier.pod else config,
        {**start, **tier.keys, **tuned},
    )
