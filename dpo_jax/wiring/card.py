"""The model card of an export: what it was made from, how, and by which code."""

import subprocess
from pathlib import Path

from dpo_jax import __version__
from dpo_jax.config import Config, fingerprint, flat
from dpo_jax.losses import LossTable
from dpo_jax.wiring.objective import losses_of, used_options


def commit() -> str:
    """Names the code: the commit of this checkout, else the installed version."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "--short=12", "HEAD"]
    try:
        found = subprocess.run(
            [*command, "--show-prefix"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return f"version {__version__}"
    lines = found.stdout.split()
    if found.returncode or lines[1:] != ["dpo_jax/wiring/"]:  # another repository's
        return f"version {__version__}"
    return f"commit {lines[0]}"


def model_card(config: Config, step: int, losses: LossTable) -> str:
    """Renders the README.md of an export.

    Args:
      config: of the run.
      step: optimizer steps taken.
      losses: the table that `loss.name` was looked up in.
    """
    base = config.model.path or f"none (preset `{config.model.preset}`, from scratch)"
    used = [f"{name} {config.loss[name]}" for name in _options(config, losses)]
    own = [f"{name} {value}" for name, value in flat(config.loss.options).items()]
    settings = ", ".join(used + own)
    rows = {
        "base model": base,
        "reference": _reference(config),
        "training data": config.data.train,
        "objective": config.objective,
        "loss": f"{config.loss.name} ({settings})" if settings else config.loss.name,
        "steps": f"{step} of {config.batch.pairs} rows each",
        "optimizer": (
            f"{config.optimizer.name}, lr {config.optimizer.lr:g}, schedule "
            f"{config.optimizer.schedule} after {_warmup(config)}"
        ),
        "code": f"dpo_jax, {commit()}, configuration {fingerprint(config)}",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        "---\nlibrary_name: transformers\ntags:\n- dpo_jax\n"
        f"- {config.loss.name}\n---\n\n# Policy trained with dpo_jax\n\n"
        f"| | |\n|---|---|\n{table}\n"
    )


def _options(config: Config, losses: LossTable) -> list[str]:
    """Names the options of the losses; none of one that a user's own table had."""
    if not all(name in losses for name in config.loss.name.split("+")):
        return []
    used = used_options(config, losses_of(config.loss, losses))
    return [name for name in config.loss if name in used]


def _warmup(config: Config) -> str:
    share = config.optimizer.warmup_share
    return (
        f"{share:.3g} of the steps"
        if share
        else f"{config.optimizer.warmup_steps} steps"
    )


def _reference(config: Config) -> str:
    if config.ref.mode == "none":
        return "none"
    if config.ref.sync_every_steps:
        start = config.ref.path or "the initial policy"
        every, mix = config.ref.sync_every_steps, config.ref.sync_mix
        return f"{start}, moved by {mix:g} to the policy every {every} steps"
    return config.ref.path or "the initial policy"
