"""What can be judged, and one table of it: `config.objective` -> its kind.

A kind says which rows of data it takes, how what was scored of them is compared, and
which metrics that gives. The losses themselves lie in another room.
"""

from dpo_jax.objectives import preference, ranking, reward, sft, unpaired
from dpo_jax.objectives.judged import Kind

OBJECTIVES: dict[str, Kind] = {
    "preference": preference.PAIRS,
    "sft": sft.COMPLETIONS,
    "unpaired": unpaired.SINGLES,
    "ranking": ranking.LISTS,
    "reward": reward.SCORES,
}
