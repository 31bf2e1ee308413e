"""Table 2 of arXiv:2305.18290: do people agree with the judge?

python -m dpo_jax sweep experiments/table2_human/sweep.py:tier=quick --out=RUNS
"""

from typing import NamedTuple

from dpo_jax.launch import Trial
from experiments import judged, judged_tiers
from experiments.fig2_tldr_winrate.sweep import FIGURE as FIGURE_2
from experiments.table1_ood.sweep import FIGURE as TABLE_1


class Column(NamedTuple):
    """A policy that people compare with PPO at temperature 0.

    Attributes:
      trial: the policy.
      temperature: at which it is sampled.
      comparisons: that are rated (appendix D.3).
      raters: of each.
    """

    trial: str
    temperature: float
    comparisons: int
    raters: int


class Reading(NamedTuple):
    """A way of asking the judge.

    Attributes:
      judge: as `winrate --judge` has it; '' = the one that is given.
      template: as `winrate --prompt` has it.
    """

    judge: str
    template: str


COLUMNS = {
    "DPO": Column("dpo", 0.25, 150, 2),
    "SFT": Column("sft", 0.25, 125, 1),
    "PPO-1": Column("ppo", 1.0, 100, 2),
}
AGAINST = ("ppo", 0.0)
READINGS = {  # tier -> name in the paper -> what stands for it
    "quick": {
        "GPT-4 (S)": Reading("model", "summary"),
        "GPT-4 (C)": Reading("sentiment", "summary"),
    },
    "full": {
        "GPT-4 (S)": Reading("", "summary"),
        "GPT-4 (C)": Reading("", "concise_summary"),
    },
}
FIGURE = judged.Figure(
    folder="experiments/table2_human",
    temperatures=(0.0, 0.25, 1.0),
    names={},
    tiers={
        "quick": judged_tiers.QUICK._replace(
            trials=TABLE_1.tiers["quick"].trials,
            keys={"eval.limit": 256},
            limit=256,
            samples=1,
            comparable="no: reviews of a grammar, simulated raters, and other judges",
        ),
        "full": FIGURE_2.tiers["full"]._replace(
            trials=TABLE_1.tiers["full"].trials, samples=1
        ),
    },
    template="summary",
    prefix="rated_",
)


def get_sweep(arg: str | None = None) -> list[Trial]:
    """Returns the trials of a tier: `tier=quick|full`."""
    return judged.trials(FIGURE, arg)
