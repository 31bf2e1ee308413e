"""The loss of `focal.py` against DPO: as many trials each, over its γ and DPO's β.

    python -m dpo_jax sweep experiments/my_loss/sweep.py --out=runs/my_loss
    python -m dpo_jax sweep experiments/my_loss/sweep.py --out=runs/my_loss --table

12 trials and the reference, 5 minutes on two CPU cores that do nothing else; ARG
`tier=quick` is 4 of them, of fewer steps.
"""

from typing import Any

from dpo_jax.config import parse_arg
from dpo_jax.errors import known
from dpo_jax.launch import Trial

FILE = "experiments/my_loss/focal.py"
GAMMA = "loss.options.focal.focal_gamma"
SFT = "quickstart:stage=sft,steps=300"
START = {
    **{"model.preset": "", "model.path": "{sft}", "eval.limit": 64},
    **{"eval.every_steps": 0, "checkpoint.after": "none"},
}
TIERS = {  # name -> (steps, β of DPO, γ of focal, seeds)
    "laptop": (100, (1.0, 3.0), (2.0, 0.5), (0, 1, 2)),
    "quick": (30, (1.0,), (2.0,), (0, 1)),
}


def get_sweep(arg: str | None = None) -> list[Trial]:
    """Returns the reference and the trials that start from it.

    Args:
      arg: `tier=laptop|quick`.
    """
    tier = parse_arg(arg, tier="laptop")["tier"]
    steps, betas, gammas, seeds = TIERS[known("tier", tier, TIERS)]
    own = {"losses": FILE, "loss.name": "focal"}
    tried: list[tuple[str, dict[str, Any]]] = [
        *((f"dpo.beta={beta:g}", {"loss.beta": beta}) for beta in betas),
        *((f"focal.gamma={gamma:g}", {**own, GAMMA: gamma}) for gamma in gammas),
    ]
    config = f"quickstart:stage=dpo,steps={steps}"
    start = {"eval.limit": 64, "data.eval": "", "checkpoint.after": "none"}
    return [Trial("sft", SFT, start)] + [
        Trial(f"{name}.seed={seed}", config, {**START, **keys, "seed": seed})
        for seed in seeds
        for name, keys in tried
    ]
