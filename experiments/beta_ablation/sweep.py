"""DPO over β: eight strengths by the same pairs in the same order, several seeds.

    python -m dpo_jax sweep experiments/beta_ablation/sweep.py --out=runs/beta
    python -m dpo_jax sweep experiments/beta_ablation/sweep.py --out=runs/beta --table

ARG is a tier: `tier=laptop` (embedded reviews, 24 trials and the reference, 20 minutes
on two CPU cores), `tier=quick` (4 trials, under 3 minutes), `tier=hh` (Anthropic's HH
with Pythia-2.8B, the setting of arXiv:2305.18290 §6.2, 16 trials and the reference, for
a pod).
"""

from typing import Any, NamedTuple

from dpo_jax.config import parse_arg
from dpo_jax.errors import ConfigError, unknown
from dpo_jax.launch import Trial

Keys = dict[str, Any]
LITTLE: Keys = {"eval.limit": 64, "checkpoint.after": "none"}


class Tier(NamedTuple):
    """What the trials of a tier are given.

    Attributes:
      sft: `--config` of the reference.
      sft_keys: what differs there.
      dpo: `--config` of all others; its β is the default.
      dpo_keys: what differs there.
      betas: β of DPO.
      seeds: of each.
    """

    sft: str
    sft_keys: Keys
    dpo: str
    dpo_keys: Keys
    betas: tuple[float, ...]
    seeds: tuple[int, ...]


LAPTOP = Tier(
    sft="quickstart:stage=sft,steps=300",
    sft_keys={**LITTLE, "data.eval": ""},
    dpo="quickstart:stage=dpo,steps=100",
    dpo_keys={**LITTLE, "eval.every_steps": 0, "eval.rollouts": 512},
    betas=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    seeds=(0, 1, 2),
)
TIERS: dict[str, Tier] = {"laptop": LAPTOP}


def get_sweep(arg: str | None = None) -> list[Trial]:
    """Returns the reference and the trials that start from it.

    Args:
      arg: `tier=laptop|quick|hh`.
    """
    named = parse_arg(arg, tier="laptop")["tier"]
    if named not in TIERS:
        raise ConfigError(unknown("tier", named, TIERS))
    tier = TIERS[named]
    start: Keys = {"model.preset": "", "model.path": "{sft}"}
    return [
        Trial("sft", tier.sft, tier.sft_keys),
        *(
            Trial(
                f"beta={beta:g}.seed={seed}",
                tier.dpo,
                {**start, **tier.dpo_keys, "loss.beta": beta, "seed": seed},
            )
            for seed in tier.seeds
            for beta in tier.betas
        ),
    ]
