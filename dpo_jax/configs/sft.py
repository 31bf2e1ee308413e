"""Supervised fine-tuning on completions, or on the chosen responses of pairs.

    python -m dpo_jax train --config=configs/sft.py --workdir=runs/sft \
        --config.model.path=MODEL --config.data.train=ROWS.jsonl

Rows are `{"prompt", "completion"}`; of preference pairs the chosen response is taken,
which is the paper's preferred-FT (arXiv:2305.18290 §6). The loss is the mean over
response tokens, in nats. This project has not been timed on an accelerator; hours will
stand here once measured.
"""

from dpo_jax import schema
from dpo_jax.errors import ConfigError
from dpo_jax.schema import Config


def get_config(arg: str | None = None) -> Config:
    """Returns the configuration; takes no argument."""
    if arg:
        raise ConfigError(f"configs/sft.py takes no argument, got {arg!r}")
    config = schema.base()
    config.objective = "sft"
    config.loss.name = "sft"
    config.ref.mode = "none"
    config.optimizer.name = "adamw"
    config.optimizer.lr = 1e-5
    config.optimizer.schedule = "cosine"
    config.optimizer.clip = 1.0
    config.data.layout = "packed"
    return config.lock()
