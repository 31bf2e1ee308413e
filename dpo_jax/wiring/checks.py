"""A configuration against the tables of losses, optimizers, sources and devices."""

import datetime

from dpo_jax import config as config_lib
from dpo_jax.config import Config
from dpo_jax.data import mixture, sources
from dpo_jax.data.sources import mapping
from dpo_jax.data.sources.mapping import NO_COLUMNS, ColumnMap
from dpo_jax.errors import ConfigError, collected, unknown
from dpo_jax.losses import LOSSES, LossTable
from dpo_jax.objectives import OBJECTIVES
from dpo_jax.objectives.algorithms import SampleKind
from dpo_jax.rewards import REWARDS, RewardTable
from dpo_jax.schema import Section
from dpo_jax.train import optimizer, trackers
from dpo_jax.wiring import lora_checks, loss_checks, objective, rewarding, sample_checks
from dpo_jax.wiring.objective import Losses


def check(config: Config, table: LossTable, rewards: RewardTable = REWARDS) -> Losses:
    """Checks a configuration on its own and looks up its losses.

    Raises:
      ConfigError: naming the faults together.
    """
    config_lib.check(config)
    if config.losses and table is LOSSES:
        raise ConfigError(
            f"losses={config.losses!r}: this run has losses of its own, from a file of "
            "this digest; give --losses=FILE"
        )
    if config.rewards and rewards is REWARDS:
        raise ConfigError(
            f"rewards={config.rewards!r}: this run has rewards of its own, from a file "
            "of this digest; give --rewards=FILE"
        )
    names, kind = config.loss.name.split("+"), OBJECTIVES[config.objective]
    with collected(ConfigError) as complaints:
        missing = [name for name in names if name not in table]
        complaints += [unknown("loss.name", name, table) for name in missing]
        complaints += trackers.faults(config.log.to, config.log.project)
        complaints += sample_checks.on_policy_faults(config)
        if isinstance(kind, SampleKind):
            by = f"objective={config.objective!r}"
            complaints += config_lib.unused_options("loss", config.loss, (), by)
        elif not missing:
            losses = objective.losses_of(config.loss, table)
            complaints += loss_checks.faults(
                kind, losses, table, given=config.loss, ref=config.ref
            )
            if config.online.labels == "soft":
                complaints += sample_checks.label_faults(losses)
            whole = objective.needs_whole_reference(losses)
            if whole and config.objective == "online":
                by = f"loss.name={objective.name_of(losses)!r}"
                complaints += sample_checks.whole_faults(
                    by, config.online, config.rollout
                )
        complaints += kind_faults(
            config.objective,
            config.ref,
            config.checkpoint,
            scored=config.data.scored,
            start=config.model.score_start,
            rollouts=config.eval.rollouts,
        )
        complaints += lora_checks.faults(config.lora, config.model, config.ref)
        complaints += optimizer_faults(config.optimizer) + source_faults(config.data)
        complaints += owner_faults(config.checkpoint.keep_best, config.data.eval)
        complaints += rewarding.config_faults(config, rewards)
        judged = rewarding.names_of(config.reward)
        complaints += sample_checks.rollout_faults(
            config.eval, config.data.eval, config.ref.mode, judged
        )
    return objective.losses_of(config.loss, table)


def kind_faults(
    name: str,
    ref: Section,
    checkpoint: Section,
    *,
    scored: str,
    start: str,
    rollouts: int,
) -> list[str]:
    """Complains of keys that say nothing under an objective.

    Args:
      name: of the objective.
      ref: `config.ref`.
      checkpoint: `config.checkpoint`.
      scored: `data.scored`.
      start: `model.score_start`.
      rollouts: `eval.rollouts`, which are compared with those of a reference that
        stays, whatever is trained.
    """
    kind, faults, best = OBJECTIVES[name], [], checkpoint["keep_best"]
    beside = rollouts and not kind.scalar and not ref["sync_every_steps"]
    if ref["mode"] != "none" and not kind.reference and not beside:
        faults.append(f"objective={name!r} uses no reference; set ref.mode='none'")
    metric = config_lib.owner_of(config_lib.best_of(best)[0])[1]
    if metric.startswith("scores/") and not kind.scalar:
        scalars = [repr(n) for n, k in OBJECTIVES.items() if k.scalar]
        faults.append(
            f"checkpoint.keep_best={best!r} is a metric of objective="
            f"{' and '.join(scalars)} alone"
        )
    field = f"data.scored={scored!r}"
    if scored and kind.scalar:
        faults.append(
            f"{field} is not used by objective={name!r}, which scores no tokens"
        )
    elif scored == "all" and kind.rows != "completions":
        faults.append(
            f"{field} is for objective='sft': a comparison has a prompt of its own"
        )
    if start != "normal" and not kind.scalar:
        faults.append(
            f"model.score_start={start!r} is not used by objective={name!r}, which "
            "has no scalar head"
        )
    return faults


def optimizer_faults(given: Section) -> list[str]:
    """Complains of names that are not known and of options that are not used.

    Args:
      given: `config.optimizer`.
    """
    faults, name, schedule = [], given["name"], given["schedule"]
    if schedule not in optimizer.SCHEDULES:
        faults.append(unknown("optimizer.schedule", schedule, optimizer.SCHEDULES))
    if name not in optimizer.OPTIMIZERS:
        return [*faults, unknown("optimizer.name", name, optimizer.OPTIMIZERS)]
    always = {"name", "lr", "warmup_steps", "warmup_share", "schedule", "clip"}
    used = always | set(optimizer.options(name))
    by = f"optimizer.name={name!r}"
    return faults + config_lib.unused_options("optimizer", given, used, by)


def source_faults(given: Section) -> list[str]:
    """Complains of keys that none of the sources reads, and of a mapping's words.

    Args:
      given: `config.data`.
    """
    said = {split: given[split] for split in ("train", "eval") if given[split]}
    both = " and ".join(f"data.{split}={text!r}" for split, text in said.items())
    names = [
        part.source
        for split, text in said.items()
        for part in sources.parts_of(text, f"data.{split}")
    ]
    columns = ColumnMap(**given["columns"])
    generated = [name for name in names if name in sources.GENERATED]
    unused = {}
    if given["path"] and not any(map(sources.name_of, names)):
        unused["path"] = sources.PUBLISHED
    if given["labels"] and not generated:
        unused["labels"] = sources.GENERATED
    if columns != NO_COLUMNS and generated == names:
        unused["columns"] = ["files", "data sets"]
    faults = [
        f"data.{key}={str(given[key])!r} is not used by {both}; only by {', '.join(by)}"
        for key, by in unused.items()
    ]
    if given["disjoint"] and not given["eval"]:
        faults.append("data.disjoint=True is not used by data.eval=''; set data.eval")
    faults += mapping.faults_of(columns, "data.columns")
    for field, text in ((f"data.{split}", text) for split, text in said.items()):
        faults += mixture.faults_of(sources.parts_of(text, field), field)
    return faults + clock_faults(given["now"])


def owner_faults(keep_best: str, given: str) -> list[str]:
    """Complains of a `checkpoint.keep_best` of a source that is not evaluated.

    Args:
      keep_best: the metric.
      given: `data.eval`.
    """
    owner, metric = config_lib.owner_of(config_lib.best_of(keep_best)[0])
    if not owner or not given:
        return []
    names = mixture.names_of(sources.parts_of(given, "data.eval"))
    if len(names) == 1:
        return [
            f"checkpoint.keep_best={keep_best!r}: data.eval is one source; write "
            f"{metric!r}"
        ]
    return [] if owner in names else [unknown("checkpoint.keep_best", owner, names)]


def clock_faults(now: str) -> list[str]:
    """Complains of a time that is none."""
    try:
        datetime.datetime.fromisoformat(now or "2000-01-01")
    except ValueError:
        return [f"data.now={now!r} is no time; write it as 2026-07-26T08:00:00"]
    return []
