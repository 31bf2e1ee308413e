"""Figure 2 (right) of arXiv:2305.18290: summaries of TL;DR against people's.

python -m dpo_jax sweep experiments/fig2_tldr_winrate/sweep.py:tier=quick --out=RUNS
"""

from dpo_jax.launch import Trial
from experiments import judged, judged_tiers

FIGURE = judged.Figure(
    folder="experiments/fig2_tldr_winrate",
    temperatures=(0.0, 0.25, 0.5, 0.75, 1.0),
    names={
        "DPO": ("dpo", 1),
        "Best of 128": ("sft", 128),
        "Preferred-FT": ("preferred_ft", 1),
        "SFT": ("sft", 1),
    },
    tiers={
        "quick": judged_tiers.QUICK,
        "full": judged_tiers.full_tier(
            "tldr", "trl-lib/tldr", "paper_tldr", {"data.max_tokens": 640}, 64
        ),
    },
    template="concise_summary",
)


def get_sweep(arg: str | None = None) -> list[Trial]:
    """Returns the trials of a tier: `tier=quick|full`."""
    return judged.trials(FIGURE, arg)
