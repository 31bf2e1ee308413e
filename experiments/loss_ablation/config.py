"""A loss as it is usually set; the trials of `sweep.py` differ from it in few keys.

    python -m dpo_jax train --config=experiments/loss_ablation/config.py:loss=simpo \
        --config.model.path=runs/loss/sft/export --config.model.preset= --workdir=RUN

`tier=laptop` (the default) learns from the embedded reviews in 100 steps of 64 pairs;
`tier=ultrafeedback` from UltraFeedback with Llama-3-8B, with the batch, schedule and
lengths of arXiv:2405.14734's runs (prompts of 1024 tokens, so that 1024 are left for
the samples that are judged).
"""

from dpo_jax import schema
from dpo_jax.config import parse_arg
from dpo_jax.configs import quickstart
from dpo_jax.errors import known
from dpo_jax.schema import Config
from experiments.loss_ablation.losses import ENTRIES, Keys

ULTRAFEEDBACK: Keys = {
    "model.path": "princeton-nlp/Llama-3-Base-8B-SFT",
    "model.dtype": "bfloat16",
    "model.remat": "block",
    "data.train": "ultrafeedback:train",
    "data.eval": "ultrafeedback:test",
    "data.max_tokens": 2048,
    "data.max_prompt_tokens": 1024,
    "train.epochs": 1.0,
    "batch.pairs": 128,
    "optimizer.name": "adamw",
    "optimizer.lr": 5e-7,
    "optimizer.schedule": "cosine",
    "optimizer.warmup_steps": 0,
    "optimizer.warmup_share": 0.1,
    "optimizer.clip": 1.0,
    "mesh.fsdp": 16,
    "eval.limit": 2000,
    "eval.rollouts": 512,
    "reward.path": "Skywork/Skywork-Reward-V2-Llama-3.1-8B",
    "reward.dtype": "bfloat16",
    "checkpoint.every_steps": 100,
    "checkpoint.after": "none",
}


def laptop() -> Config:
    """Returns what all losses share on the embedded reviews."""
    config = quickstart.get_config("stage=dpo,steps=100")
    with config.unlocked():
        config.update_from_flattened_dict(
            {
                "eval.every_steps": 0,
                "eval.limit": 64,
                "loss.beta": schema.KEYS["loss.beta"].default,
                "checkpoint.after": "none",
            }
        )
    return config


def ultrafeedback() -> Config:
    """Returns what all losses share on UltraFeedback."""
    config = schema.base().lock()
    config.update_from_flattened_dict(ULTRAFEEDBACK)
    return config


TIERS = {"laptop": laptop, "ultrafeedback": ultrafeedback}


def get_config(arg: str | None = None) -> Config:
    """Returns the usual setting of a loss.

    Args:
      arg: `loss=dpo`, a name of `losses.ENTRIES`; `tier=laptop|ultrafeedback`.
    """
    given = parse_arg(arg, loss="dpo", tier="laptop")
    for name, names in {"loss": ENTRIES, "tier": TIERS}.items():
        known(name, given[name], names)
    config, entry = TIERS[given["tier"]](), ENTRIES[given["loss"]]
    values = entry.values if given["tier"] == "laptop" else entry.pod
    config.loss.name = given["loss"]
    config.loss[entry.strength] = values[0]
    for name, value in entry.keys.items():
        config.loss[name] = value
    return config.lock()
