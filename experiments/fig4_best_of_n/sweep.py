"""Figure 4 (HH) of arXiv:2305.18290: the best of N by a learned reward.

python -m dpo_jax sweep experiments/fig4_best_of_n/sweep.py:tier=quick --out=RUNS
"""

from dpo_jax.launch import Trial
from experiments import judged, judged_tiers

FIGURE = judged.Figure(
    folder="experiments/fig4_best_of_n",
    temperatures=(0.25, 0.7, 1.0),
    names={f"Best of {n}": ("sft", n) for n in (1, 4, 16, 64, 128)},
    tiers={
        "quick": judged_tiers.QUICK,
        "full": judged_tiers.full_tier("hh", "hh", "paper_default", {}, 256),
    },
    template="helpful",
)


def get_sweep(arg: str | None = None) -> list[Trial]:
    """Returns the trials of a tier: `tier=quick|full`."""
    return judged.trials(FIGURE, arg)
