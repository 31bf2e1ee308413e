"""A configuration against the tables of losses, optimizers, sources and devices."""

import datetime
import math
from collections.abc import Sequence

import numpy as np

from dpo_jax import config as config_lib
from dpo_jax.config import Config
from dpo_jax.data import layouts, mixture, sources
from dpo_jax.data.sources import mapping
from dpo_jax.data.sources.mapping import NO_COLUMNS, ColumnMap
from dpo_jax.errors import ConfigError, DataError, collected, unknown
from dpo_jax.losses import LOSSES, Bound, LossTable, find, pairwise
from dpo_jax.losses.loss import default_of, options, pick, range_of
from dpo_jax.objectives import OBJECTIVES
from dpo_jax.objectives.algorithms import SampleKind
from dpo_jax.objectives.judged import Kind
from dpo_jax.rewards import REWARDS, RewardTable
from dpo_jax.schema import Section
from dpo_jax.train import optimizer, trackers
from dpo_jax.wiring import lora_checks, objective, rewarding, sample_checks
from dpo_jax.wiring.data import Data
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
            complaints += (
                own_option_faults(config.loss, table)
                or mixture_faults(losses, config.loss.weights)
                + objective_faults(kind, losses)
                or loss_faults(kind, losses, config.loss)
                + reference_faults(losses, config.ref)
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
        complaints += sample_checks.rollout_faults(config)
    return objective.losses_of(config.loss, table)


def unusual(losses: Losses) -> list[str]:
    """Says which options lie far from the usual setting of their loss.

    Another loss's value may stand there: a preset's β, or the default.
    """
    said = []
    for bound in losses:
        values = bound.options(bound.hyper)
        for name, usual in bound.loss.usual.items():
            value = values.get(name)
            if isinstance(usual, float) and usual and isinstance(value, float):
                far = value <= 0 or abs(math.log10(value / usual)) >= 1
                if far:
                    said.append(
                        f"loss.name={bound.name!r} is usually run with "
                        f"loss.{name}={usual:g}; this run has {value:g}"
                    )
    return said


def own_option_faults(given: Section, table: LossTable) -> list[str]:
    """Complains of `loss.options` of which nothing is read.

    Args:
      given: `config.loss`.
      table: of losses.
    """
    names, faults = given["name"].split("+"), []
    for name in names:
        loss = find(name, table)
        faults += [
            f"loss {name!r} has an option {option!r} that no key gives; give it a "
            "default in its file"
            for option in options(loss)
            if option not in given and default_of(loss, option) is None
        ]
    for name, own in given["options"].items():
        if name not in names:
            faults.append(unknown("loss.options", name, names))
            continue
        loss = find(name, table)
        used = options(loss)
        for option, value in own.items():
            if option not in used:
                faults.append(unknown(f"loss.options.{name}", option, used))
            elif bounds := range_of(loss, option):
                key = f"loss.options.{name}.{option}"
                faults += config_lib.out_of_range(key, value, bounds)
    return faults


def mixture_faults(losses: Losses, weights: Sequence[float]) -> list[str]:
    """Complains of mixtures whose losses or weights do not fit together."""
    names, faults = [bound.name for bound in losses], []
    by = f"loss.name={objective.name_of(losses)!r}"
    if weights and len(weights) != len(names):
        faults.append(
            f"loss.weights={tuple(weights)} has {len(weights)} weights for the "
            f"{len(names)} losses of {by}"
        )
    if len(set(names)) < len(names):
        faults.append(f"{by} names a loss twice")
    weighing = [bound.name for bound in losses if bound.loss.token_weights]
    if len(names) > 1 and weighing:
        faults.append(
            f"{by}: {', '.join(weighing)} weighs tokens in its own way and cannot be "
            "mixed"
        )
    return faults


def objective_faults(kind: Kind, losses: Losses) -> list[str]:
    """Complains of losses that are not for the objective."""
    return [
        f"loss.name={bound.name!r} needs objective={name!r}"
        for bound in losses
        if not kind.judges(bound.loss)
        for name in [n for n, k in OBJECTIVES.items() if k.judges(bound.loss)][:1]
    ]


def loss_faults(kind: Kind, losses: Losses, given: Section) -> list[str]:
    """Complains of options that the losses do not use, or cannot take.

    Args:
      kind: of the objective.
      losses: of the run.
      given: `config.loss`.
    """
    used = {"name", *objective.used_options(kind, losses, given)}
    by = f"loss.name={objective.name_of(losses)!r}"
    faults = config_lib.unused_options("loss", given, used, by)
    return faults + [fault for bound in losses for fault in bound_faults(bound)]


def bound_faults(bound: Bound) -> list[str]:
    """Complains of options that a loss cannot take, or that contradict each other."""
    values = bound.options(bound.hyper)
    faults = [
        f"{'loss.options' if '.' in bound.traced[name] else 'loss'}."
        f"{bound.traced[name]}={values[name]} must be > 0 for loss.name={bound.name!r}"
        for name in bound.loss.positive
        if not values[name] > 0
    ]
    if "divergence" in values:
        try:
            pairwise.check_choices(**pick(pairwise.check_choices, values))
        except ConfigError as error:
            faults.append(str(error))
    return faults


def reference_faults(losses: Losses, ref: Section) -> list[str]:
    """Complains of a reference that does not give what the losses read.

    Args:
      losses: of the run.
      ref: `config.ref`.
    """
    by, faults = f"loss.name={objective.name_of(losses)!r}", []
    if any(b.loss.reference for b in losses) and ref["mode"] == "none":
        faults.append(f"{by} needs a reference; set ref.mode='live'")
    if not objective.needs_whole_reference(losses):
        return faults
    if ref["sync_every_steps"]:
        faults.append(f"{by} needs a reference that stays; set ref.sync_every_steps=0")
    if ref["mode"] == "cached":
        faults.append(
            f"{by} needs the reference's whole distribution, and the cache keeps the "
            "log-probs of the responses only; set ref.mode='live'"
        )
    return faults


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


def reads_ratings(losses: Losses, given: Section) -> bool:
    """Says whether the losses read the data's ratings; `given` is `config.loss`."""
    named = any("ratings" in bound.loss.columns for bound in losses)
    return named or given["margin"] == "data"


def check_data(losses: Losses, given: Section, data: Data) -> None:
    """Refuses data without ratings that a loss needs, or without a clear partner.

    Args:
      losses: of the run.
      given: `config.loss`.
      data: of the run.

    Raises:
      DataError: naming the columns or the row.
    """
    check_partners(losses, given["ld_alpha"], data)
    if not reads_ratings(losses, given):
        return
    with collected(DataError) as complaints:
        for split, records in (("train", data.train), ("eval", data.eval)):
            if not all("ratings" in r.response for r in records[:1]):
                complaints.append(
                    f"data.{split} has no columns 'score_chosen' and 'score_rejected' "
                    f"(or 'margin'), which loss.name={objective.name_of(losses)!r} "
                    "reads"
                )


def check_partners(losses: Losses, ld_alpha: float, data: Data) -> None:
    """Refuses responses in several comparisons where tokens are weighed by a partner.

    Raises:
      DataError: naming the first row of each split.
    """
    by_partner = any(bound.loss.token_weights == "sampo" for bound in losses)
    if not by_partner and ld_alpha == 1.0:
        return
    by = f"loss.name={objective.name_of(losses)!r} with loss.ld_alpha={ld_alpha}"
    with collected(DataError) as complaints:
        for split, records in (("train", data.train), ("eval", data.eval)):
            compared = layouts.measure(records).comparisons if records else ()
            for at in np.flatnonzero(np.asarray(compared) > 1):
                record = records[int(at)]
                both = [r for pair in record.comparisons for r in pair]
                if len(set(both)) < len(both):
                    complaints.append(
                        f"data.{split}: row {record.index} has a response in two "
                        f"comparisons, and {by} weighs its tokens by what it is "
                        "compared with; use another loss, ld_alpha=1.0"
                    )
                    break


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
