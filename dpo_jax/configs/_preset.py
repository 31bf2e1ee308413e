"""What a preset is, and what many of them share."""

from typing import Any, NamedTuple


class Preset(NamedTuple):
    """A published setting.

    Attributes:
      source: where it was published.
      keys: `section.key` -> value.
      ours: those of the keys that the source does not state.
    """

    source: str
    keys: dict[str, Any]
    ours: tuple[str, ...] = ()


def within(tokens: int, prompt: int) -> dict[str, int]:
    """Limits a prompt with one response, and the prompt."""
    return {"data.max_tokens": tokens, "data.max_prompt_tokens": prompt}


def at(lr: float, pairs: int) -> dict[str, float]:
    """Sets the learning rate and the pairs a step."""
    return {"optimizer.lr": lr, "batch.pairs": pairs}


WITHOUT = {"ref.mode": "none"}
COMMON = {  # what many runs on 7B and 8B models share
    "optimizer.name": "adamw",
    "optimizer.schedule": "cosine",
    "optimizer.warmup_share": 0.1,
    "batch.pairs": 128,
}
ULTRAFEEDBACK = {**COMMON, **within(2048, 1800), "train.epochs": 1.0}  # SimPO's runs
SIMPO = {**ULTRAFEEDBACK, **WITHOUT, "loss.name": "simpo"}
REFERENCE_REPO = {  # of DPO's own repository, which others forked
    "optimizer.name": "rmsprop",
    "optimizer.lr": 5e-7,
    "optimizer.schedule": "constant",
    "optimizer.warmup_steps": 150,
    "optimizer.warmup_share": 0.0,
    "optimizer.clip": 10.0,
    "batch.pairs": 64,
    "train.epochs": 1.0,
    **within(512, 256),
    "data.truncate_response": "fixed",
}
APO = {**at(2e-7, 64), **within(1024, 512), "loss.beta": 0.1}
BCO = {**at(5e-7, 128), **within(2048, 1536), "loss.beta": 0.01}
