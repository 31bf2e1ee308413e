"""On-policy learning from a reward: PPO, RLOO, AWR, or preference losses online.

    python -m dpo_jax train --config=configs/ppo.py:algorithm=rloo --workdir=runs/rloo \
        --config.model.path=MODEL --config.data.train=PROMPTS.jsonl \
        --config.reward.name=length

Each turn samples prompts from the policy, asks the reward, and takes the algorithm's
updates: what arXiv:2305.18290 §6 compares DPO with. Rows need a `prompt`; their other
columns are handed to the reward. This project has not been timed on an accelerator;
hours will stand here once measured.
"""

from dpo_jax import schema
from dpo_jax.config import parse_arg
from dpo_jax.errors import known
from dpo_jax.schema import Config

ALGORITHMS = ("ppo", "rloo", "awr", "online")


def get_config(arg: str | None = None) -> Config:
    """Returns the configuration of an algorithm.

    Args:
      arg: `algorithm=ppo|rloo|awr|online`.
    """
    given = parse_arg(arg, algorithm="ppo")["algorithm"]
    name = known("algorithm", given, ALGORITHMS)
    config = schema.base()
    config.objective = name
    config.optimizer.name = "adamw"
    config.optimizer.lr = 3e-6
    config.optimizer.clip = 1.0
    config.optimizer.warmup_steps = 0
    return config.lock()
