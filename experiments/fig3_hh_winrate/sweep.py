"""Figure 3 (left) of arXiv:2305.18290: answers to one question of HH.

python -m dpo_jax sweep experiments/fig3_hh_winrate/sweep.py:tier=quick --out=RUNS
"""

from typing import Any

from dpo_jax.launch import Trial
from experiments import judged, judged_tiers
from experiments.fig3_hh_winrate import halves

SMOLLM2 = ".cache/smollm2/smollm2-135m-instruct"  # that `make smollm2` makes
SHARED: dict[str, Any] = {
    **judged_tiers.EXPORT_ALONE,
    "data.max_tokens": 128,
    "data.max_prompt_tokens": 80,
    "data.row_shapes": 1,
    "batch.pairs": 16,
    "checkpoint.every_steps": 16,
    "optimizer.name": "adamw",
    "optimizer.schedule": "cosine",
    "optimizer.warmup_steps": 5,
    "optimizer.clip": 1.0,
}
POLICY = {**SHARED, "data.train": "{data}/policy.jsonl", "eval.rollouts": 0}
REAL = judged_tiers.Tier(
    trials={
        "sft": (
            "sft",
            {**POLICY, "model.path": SMOLLM2, "train.steps": 32, "optimizer.lr": 2e-5},
        ),
        "dpo": (
            "dpo",
            {**POLICY, "model.path": "{sft}", "train.steps": 64, "optimizer.lr": 1e-5},
        ),
        "reward_model": (
            "dpo",
            {
                **SHARED,
                **judged_tiers.REWARD,
                "model.path": SMOLLM2,
                "model.score_start": "zero",
                "data.train": "{data}/judge.jsonl",
                "data.eval": "{data}/prompts.jsonl",
                "train.steps": 64,
                "optimizer.lr": 2e-5,
            },
        ),
    },
    config="dpo",
    keys={"data.max_tokens": 128, "data.max_prompt_tokens": 80},
    limit=128,
    samples=8,
    new_tokens=48,
    judges=(),
    comparable="no: SmolLM2-135M, HH's test set alone, and a reward model of that size",
    stops=(judged_tiers.HUMAN,),
    data=halves.write,
    batch=64,
)
FIGURE = judged.Figure(
    folder="experiments/fig3_hh_winrate",
    temperatures=(0.25, 0.7, 1.0),
    names={
        "DPO": ("dpo", 1),
        "Best of 128": ("sft", 128),
        "Preferred-FT": ("sft", 1),  # on the chosen responses
    },
    tiers={
        "quick": judged_tiers.QUICK,
        "real": REAL,
        "full": judged_tiers.full_tier("hh", "hh", "paper_default", {}, 256),
    },
    template="helpful",
)


def get_sweep(arg: str | None = None) -> list[Trial]:
    """Returns the trials of a tier: `tier=quick|real|full`."""
    return judged.trials(FIGURE, arg)
