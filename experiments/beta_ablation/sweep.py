"""DPO over β: eight strengths by the same pairs in the same order, several seeds.

    python -m dpo_jax sweep experiments/beta_ablation/sweep.py --out=runs/beta
    python -m dpo_jax sweep experiments/beta_ablation/sweep.py --out=runs/beta --table

ARG is a tier: `tier=laptop` (embedded reviews, 24 trials and the reference, 20 minutes
on two CPU cores), `tier=quick` (4 trials, under 3 minutes), `tier=hh` (Anthropic's HH
with Pythia-2.8B, as arXiv:2305.18290 §6.2, for a pod: the reference, a reward model
trained from it that judges samples, and 16 trials; give a launcher, as
`--launcher=gke`).
"""

from typing import Any, NamedTuple

from dpo_jax.config import parse_arg
from dpo_jax.errors import known
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
      judge: of the reward model that judges samples; {} = the truth is known.
    """

    sft: str
    sft_keys: Keys
    dpo: str
    dpo_keys: Keys
    betas: tuple[float, ...]
    seeds: tuple[int, ...]
    judge: Keys = {}


LAPTOP = Tier(
    sft="quickstart:stage=sft,steps=300",
    sft_keys={**LITTLE, "data.eval": ""},
    dpo="quickstart:stage=dpo,steps=100",
    dpo_keys={**LITTLE, "eval.every_steps": 0, "eval.rollouts": 512},
    betas=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    seeds=(0, 1, 2),
)
QUICK = LAPTOP._replace(
    dpo="quickstart:stage=dpo,steps=30", betas=(1.0, 0.1), seeds=(0, 1)
)
HH_PAIRS: Keys = {
    "data.train": "hh:train",
    "data.eval": "hh:test",
    "data.max_tokens": 512,
    "data.max_prompt_tokens": 256,
    "data.truncate_response": "fixed",
    "model.dtype": "bfloat16",
    "mesh.fsdp": 8,
    "eval.limit": 2000,
    "checkpoint.every_steps": 200,
    "checkpoint.after": "none",
}
HH = Tier(
    sft="sft",
    sft_keys={
        **HH_PAIRS,
        "model.path": "EleutherAI/pythia-2.8b",
        "train.epochs": 1.0,
        "batch.pairs": 64,
        "optimizer.name": "rmsprop",
        "optimizer.lr": 5e-7,
    },
    dpo="dpo:preset=reference_repo",
    dpo_keys={
        **HH_PAIRS,
        "train.epochs": 1.0,
        "eval.rollouts": 512,
        "reward.path": "{judge}",
        "reward.dtype": "bfloat16",
    },
    betas=LAPTOP.betas,
    seeds=(0, 1),
    judge={
        **HH_PAIRS,
        "objective": "reward",
        "loss.name": "bradley_terry",
        "ref.mode": "none",
        "model.path": "{sft}",
        "train.epochs": 1.0,
        "batch.pairs": 64,
        "optimizer.name": "adamw",
        "optimizer.lr": 1e-5,
        "optimizer.schedule": "cosine",
        "optimizer.clip": 1.0,
    },
)
TIERS: dict[str, Tier] = {"laptop": LAPTOP, "quick": QUICK, "hh": HH}


def get_sweep(arg: str | None = None) -> list[Trial]:
    """Returns the reference and the trials that start from it.

    Args:
      arg: `tier=laptop|quick|hh`.
    """
    tier = TIERS[known("tier", parse_arg(arg, tier="laptop")["tier"], TIERS)]
    start: Keys = {"model.preset": "", "model.path": "{sft}"}
    judge = [Trial("judge", tier.dpo, tier.judge)] if tier.judge else []
    return [
        Trial("sft", tier.sft, tier.sft_keys),
        *judge,
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
