"""The main job on embedded data, small enough for two CPU cores.

    make quickstart

runs `stage=sft` (a tiny decoder on reviews from a grammar), then `stage=dpo` on pairs
labelled by the grammar's true reward, starting from what SFT exported, then samples
both and prints the true reward and the KL before and after. The miniature follows
figure 2 (left) of arXiv:2305.18290. By itself the file is 40 steps of DPO on a fresh
model.
"""

from dpo_jax import schema
from dpo_jax.config import parse_arg
from dpo_jax.errors import known
from dpo_jax.schema import Config


def get_config(arg: str | None = None) -> Config:
    """Returns the configuration of a stage.

    Args:
      arg: `stage=dpo|sft`, `steps=40`, `model=FOLDER` to start from instead of fresh.
    """
    chosen = parse_arg(arg, stage="dpo", steps=40, model="")
    known("stage", chosen["stage"], STAGES)
    config = schema.base()
    config.train.steps = chosen["steps"]
    config.train.epochs = 0.0
    config.model.path = chosen["model"]
    config.model.preset = "" if chosen["model"] else "tiny"
    config.data.train = "sentiment"
    config.data.eval = "sentiment"
    config.data.max_tokens = 32
    config.data.max_prompt_tokens = 12
    config.data.row_shapes = 1  # so small a model compiles longer than it trains
    config.checkpoint.every_steps = 10 if chosen["steps"] <= 100 else 100
    STAGES[chosen["stage"]](config)
    return config.lock()


def sft(config: Config) -> None:
    """Learns the grammar."""
    config.objective = "sft"
    config.loss.name = "sft"
    config.ref.mode = "none"
    config.data.layout = "packed"
    config.data.limit = 20_000
    config.batch.pairs = 128
    config.optimizer.name = "adamw"
    config.optimizer.lr = 3e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 10


def dpo(config: Config) -> None:
    """Learns which of two continuations is the kinder review."""
    config.data.limit = 10_000
    config.batch.pairs = 64
    config.loss.beta = 1.0
    config.optimizer.lr = 3e-4
    config.optimizer.warmup_steps = 20
    config.eval.every_steps = 50
    config.eval.rollouts = 512


STAGES = {"sft": sft, "dpo": dpo}
