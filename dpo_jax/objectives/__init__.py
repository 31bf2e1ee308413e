"""What can be judged, and one table of it: `config.objective` -> its kind.

A kind says which rows of data it takes, how what was scored of them is compared, and
which metrics that gives. The losses themselves lie in another room. Those that take
prompts are on-policy: the responses are samples of the policy.
"""

from dpo_jax.objectives import (
    algorithms,
    preference,
    ranking,
    reward,
    sft,
    unpaired,
)
from dpo_jax.objectives.algorithms import SampleKind
from dpo_jax.objectives.judged import Kind

OBJECTIVES: dict[str, Kind | SampleKind] = {
    "preference": preference.PAIRS,
    "sft": sft.COMPLETIONS,
    "unpaired": unpaired.SINGLES,
    "ranking": ranking.LISTS,
    "reward": reward.SCORES,
    "ppo": algorithms.PPO,
    "rloo": algorithms.RLOO,
    "awr": algorithms.AWR,
    "online": preference.SAMPLED_PAIRS,
}
ON_POLICY = [name for name, kind in OBJECTIVES.items() if kind.rows == "prompts"]
