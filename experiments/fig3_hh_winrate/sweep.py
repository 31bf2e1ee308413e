"""Figure 3 (left) of arXiv:2305.18290: answers to one question of HH.

python -m dpo_jax sweep experiments/fig3_hh_winrate/sweep.py:tier=quick --out=RUNS
"""

from dpo_jax.launch import Trial
from experiments import judged

FIGURE = judged.Figure(
    folder="experiments/fig3_hh_winrate",
    temperatures=(0.25, 0.7, 1.0),
    names={
        "DPO": ("dpo", 1),
        "Best of 128": ("sft", 128),
        "Preferred-FT": ("sft", 1),  # on the chosen responses
    },
    tiers={
        "quick": judged.QUICK,
        "full": judged.full_tier("hh", "hh", "paper_default", {}, 256),
    },
    template="helpful",
)


def get_sweep(arg: str | None = None) -> list[Trial]:
    """Returns the trials of a tier: `tier=quick|full`."""
    return judged.trials(FIGURE, arg)
