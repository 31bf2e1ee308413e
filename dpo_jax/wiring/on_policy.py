"""What an on-policy run learns by, and what draws and judges its samples."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from dpo_jax.objectives import preference
from dpo_jax.objectives.algorithms import ALGORITHMS
from dpo_jax.objectives.judged import Kind
from dpo_jax.objectives.on_policy import (
    Algorithm,
    OnPolicy,
    SampleScorer,
    rollout_of,
    settled,
)
from dpo_jax.objectives.terms import masked_mean
from dpo_jax.sharding import arrays
from dpo_jax.train.step import Metrics, StepFn
from dpo_jax.train.turn import take_turn
from dpo_jax.types import (
    ApplyFn,
    Columns,
    Frozen,
    Hyper,
    PairLogps,
    Sums,
    TrainState,
)
from dpo_jax.wiring.turns import Turn

FLOATS = {  # algorithm -> hyper-parameter -> its key in the algorithm's section
    "ppo": {
        **dict.fromkeys(("kl_coef", "gamma", "lam", "value_clip", "value_coef"), ""),
        **dict.fromkeys(("kl_target", "kl_horizon", "missing_eos_penalty"), ""),
        "clip_range": "clip",
    },
    "rloo": {"kl_coef": "", "missing_eos_penalty": "", "clip_range": "clip"},
    "awr": {"awr_beta": "beta", "weight_clip": "", "missing_eos_penalty": ""},
}


def floats_of(name: str, given: Mapping[str, Any]) -> dict[str, float]:
    """Collects the float hyper-parameters of an algorithm; `given` is its section."""
    return {hyper: given[key or hyper] for hyper, key in FLOATS[name].items()}
