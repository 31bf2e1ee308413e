"""Table 1 of arXiv:2305.18290: policies of TL;DR on news, which they never saw.

python -m dpo_jax sweep experiments/table1_ood/sweep.py:tier=quick --out=RUNS
"""

from dpo_jax.launch import Trial
from experiments import judged, judged_tiers
from experiments.fig2_tldr_winrate.sweep import FIGURE as FIGURE_2
from experiments.table1_ood import openings

TLDR = FIGURE_2.tiers["full"]
FIGURE = judged.Figure(
    folder="experiments/table1_ood",
    temperatures=(0.0, 0.25),
    names={"DPO": ("dpo", 1), "PPO": ("ppo", 1), "SFT": ("sft", 1)},
    tiers={
        "quick": judged_tiers.QUICK._replace(
            trials={**judged_tiers.QUICK.trials, "ppo": judged_tiers.QUICK_PPO},
            data=openings.write,
        ),
        "full": TLDR._replace(
            trials={**TLDR.trials, "ppo": judged_tiers.full_ppo(TLDR)},
            config="sft",
            keys={
                "data.eval": "cnn_dailymail",
                "data.max_tokens": 2_048,
                "data.max_prompt_tokens": 1_920,
            },
            samples=1,
        ),
    },
    template="concise_news_summary",
    prefix="ood_",
)


def get_sweep(arg: str | None = None) -> list[Trial]:
    """Returns the trials of a tier: `tier=quick|full`."""
    return judged.trials(FIGURE, arg)
