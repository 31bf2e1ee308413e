"""A configuration against the tables of losses, optimizers, sources and devices."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from dpo_jax import config as config_lib
from dpo_jax.config import Config
from dpo_jax.data import layouts, sources
from dpo_jax.errors import ConfigError, DataError, DeviceError, collected, unknown
from dpo_jax.losses import Bound, LossTable, find, pairwise
from dpo_jax.losses.loss import options, pick
from dpo_jax.sharding import mesh
from dpo_jax.train import optimizer
from dpo_jax.wiring import objective
from dpo_jax.wiring.data import Data
from dpo_jax.wiring.objective import Losses


def check(config: Config, table: LossTable) -> Losses:
    """Checks a configuration on its own and looks up its losses.

    Raises:
      ConfigError: naming the faults together.
    """
    config_lib.check(config)
    names = config.loss.name.split("+")
    with collected(ConfigError) as complaints:
        missing = [name for name in names if name not in table]
        complaints += [unknown("loss.name", name, table) for name in missing]
        if not missing:
            faults = own_option_faults(config.loss, table)
            losses = objective.losses_of(config.loss, table)
            complaints += faults or loss_faults(config, losses)
        complaints += optimizer_faults(config) + source_faults(config.data)
        complaints += rollout_faults(config)
    return objective.losses_of(config.loss, table)


def own_option_faults(section: Config, table: LossTable) -> list[str]:
    """Complains of `loss.options` of which nothing is read.

    Args:
      section: `config.loss`.
      table: of losses.
    """
    names, found = section.name.split("+"), []
    for name, own in section.options.items():
        if name not in names:
            found.append(unknown("loss.options", name, names))
            continue
        used = options(find(name, table))
        found += [
            unknown(f"loss.options.{name}", option, used)
            for option in own
            if option not in used
        ]
    return found


def loss_faults(config: Config, losses: Losses) -> list[str]:
    """Complains of losses that do not go together, and of options they do not use."""
    by = f"loss.name={config.loss.name!r}"
    found = mixture_faults(config, losses) + objective_faults(config, losses)
    if found:
        return found
    used = objective.used_options(config, losses)
    found += config_lib.unused_options("loss", config.loss, {"name", *used}, by)
    found += [fault for bound in losses for fault in bound_faults(bound)]
    if any(b.loss.reference for b in losses) and config.ref.mode == "none":
        found.append(f"{by} needs a reference; set ref.mode='live'")
    if objective.needs_whole_reference(losses) and config.ref.sync_every_steps:
        found.append(f"{by} needs a reference that stays; set ref.sync_every_steps=0")
    if objective.needs_whole_reference(losses) and config.ref.mode == "cached":
        found.append(
            f"{by} needs the reference's whole distribution, and the cache keeps the "
            "log-probs of the responses only; set ref.mode='live'"
        )
    return found


def bound_faults(bound: Bound) -> list[str]:
    """Complains of options that a loss cannot take, or that contradict each other."""
    values = bound.options(bound.hyper)
    found = [
        f"{'loss.options' if '.' in bound.traced[name] else 'loss'}."
        f"{bound.traced[name]}={values[name]} must be > 0 for loss.name={bound.name!r}"
        for name in bound.loss.positive
        if not values[name] > 0
    ]
    if "divergence" in values:
        try:
            pairwise.check_choices(**pick(pairwise.check_choices, values))
        except ConfigError as error:
            found.append(str(error))
    return found


def mixture_faults(config: Config, losses: Losses) -> list[str]:
    """Complains of mixtures whose losses or weights do not fit together."""
    names, weights = config.loss.name.split("+"), config.loss.weights
    found = []
    if weights and len(weights) != len(names):
        found.append(
            f"loss.weights={tuple(weights)} has {len(weights)} weights for the "
            f"{len(names)} losses of loss.name={config.loss.name!r}"
        )
    if len(names) == 1:
        return found
    if len(set(names)) < len(names):
        found.append(f"loss.name={config.loss.name!r} names a loss twice")
    own = [bound.name for bound in losses if bound.loss.token_weights]
    if own:
        found.append(
            f"loss.name={config.loss.name!r}: {', '.join(own)} weighs tokens in its "
            "own way and cannot be mixed"
        )
    return found


def objective_faults(config: Config, losses: Losses) -> list[str]:
    """Complains of losses that are not for the objective."""
    found = []
    for bound in losses:
        loss, wanted = bound.loss, objective.TAKEN_BY[bound.loss.takes]
        of_tokens = loss.of == "pairs" and loss.per == "chosen_tokens"
        if config.objective != wanted and not (config.objective == "sft" and of_tokens):
            found.append(f"loss.name={bound.name!r} needs objective={wanted!r}")
    return found


def check_data(config: Config, losses: Losses, data: Data) -> None:
    """Refuses data without ratings that a loss needs, or without a clear partner.

    Raises:
      DataError: naming the columns or the row.
    """
    check_partners(config, losses, data)
    if config.loss.margin != "data" and not any(
        "ratings" in bound.loss.columns for bound in losses
    ):
        return
    with collected(DataError) as complaints:
        for split, records in (("train", data.train), ("eval", data.eval)):
            if not all("ratings" in r.response for r in records[:1]):
                complaints.append(
                    f"data.{split} has no columns 'score_chosen' and 'score_rejected' "
                    f"(or 'margin'), which loss.name={config.loss.name!r} reads"
                )


def check_partners(config: Config, losses: Losses, data: Data) -> None:
    """Refuses responses in several comparisons where tokens are weighed by a partner.

    Raises:
      DataError: naming the first row of each split.
    """
    by_partner = any(bound.loss.token_weights == "sampo" for bound in losses)
    if not by_partner and config.loss.ld_alpha == 1.0:
        return
    with collected(DataError) as complaints:
        for split, records in (("train", data.train), ("eval", data.eval)):
            compared = layouts.measure(records).comparisons if records else ()
            for at in np.flatnonzero(np.asarray(compared) > 1):
                record = records[int(at)]
                both = [r for pair in record.comparisons for r in pair]
                if len(set(both)) < len(both):
                    complaints.append(
                        f"data.{split}: row {record.index} has a response in two "
                        f"comparisons, and loss.name={config.loss.name!r} with "
                        f"loss.ld_alpha={config.loss.ld_alpha} weighs its tokens by "
                        "what it is compared with; use another loss, ld_alpha=1.0"
                    )
                    break


def optimizer_faults(config: Config) -> list[str]:
    """Complains of names that are not known and of options that are not used."""
    found, section = [], config.optimizer
    if section.schedule not in optimizer.SCHEDULES:
        known = optimizer.SCHEDULES
        found.append(unknown("optimizer.schedule", section.schedule, known))
    if section.name not in optimizer.OPTIMIZERS:
        return [*found, unknown("optimizer.name", section.name, optimizer.OPTIMIZERS)]
    always = {"name", "lr", "warmup_steps", "warmup_share", "schedule", "clip"}
    return found + config_lib.unused_options(
        "optimizer",
        section,
        always | set(optimizer.options(section.name)),
        f"optimizer.name={section.name!r}",
    )


def source_faults(section: Config) -> list[str]:
    """Complains of keys that neither of the two sources reads."""
    names = {section.train, section.eval}
    readers = {"path": sources.LOCAL_COPY, "labels": sources.GENERATED}
    return [
        f"data.{key}={section[key]!r} is not used by data.train={section.train!r} and "
        f"data.eval={section.eval!r}; only by {', '.join(sorted(known))}"
        for key, known in readers.items()
        if section[key] and not names & known
    ]


def rollout_faults(config: Config) -> list[str]:
    """Complains of rollouts without a true reward or without a reference."""
    section, found = config.eval, []
    if not section.rollouts:
        if section.rollouts_every_steps:
            found.append(
                f"eval.rollouts_every_steps={section.rollouts_every_steps} is not used "
                "by eval.rollouts=0; set it to 0, or sample"
            )
        return found
    if config.data.eval not in sources.JUDGED:
        known = ", ".join(sources.JUDGED)
        found.append(
            f"eval.rollouts={config.eval.rollouts} needs a data.eval with a true "
            f"reward ({known}), not {config.data.eval!r}"
        )
    if config.ref.mode == "none":
        found.append("eval.rollouts needs a reference; set ref.mode='live' or 0")
    if config.ref.mode == "cached":
        found.append(
            f"eval.rollouts={config.eval.rollouts} samples the reference, which "
            "ref.mode='cached' does not hold; set eval.rollouts=0 or ref.mode='live'"
        )
    return found


def make_mesh(config: Config, devices: Sequence[Any] | None = None) -> Mesh:
    """Lays out the devices and checks that the batch fits them.

    Args:
      config: of the run.
      devices: see `mesh.make_mesh`.

    Raises:
      DeviceError: with the numbers and the nearest that fit.
    """
    built = mesh.make_mesh(
        config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices
    )
    shards, pairs = mesh.row_shards(built), config.batch.pairs
    if pairs % shards:
        near = f"{pairs - pairs % shards} or " if pairs > shards else ""
        raise DeviceError(
            f"batch.pairs={pairs} is not a multiple of the {shards} data shards; use "
            f"{near}{pairs - pairs % shards + shards}"
        )
    if config.batch.microbatches > pairs:
        raise DeviceError(
            f"batch.microbatches={config.batch.microbatches} exceeds "
            f"batch.pairs={pairs}; use at most {pairs}"
        )
    return built
