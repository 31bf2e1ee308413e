"""What losses refuse of their options, of the reference and of the data."""

import math
from collections.abc import Sequence

import numpy as np

from dpo_jax import config as config_lib
from dpo_jax.data import layouts
from dpo_jax.errors import ConfigError, DataError, collected, unknown
from dpo_jax.losses import Bound, LossTable, find, pairwise
from dpo_jax.losses.loss import default_of, options, pick, range_of
from dpo_jax.objectives import OBJECTIVES
from dpo_jax.objectives.judged import Kind
from dpo_jax.schema import Section
from dpo_jax.wiring import objective
from dpo_jax.wiring.data import Data
from dpo_jax.wiring.objective import Losses


def faults(
    kind: Kind, losses: Losses, table: LossTable, *, given: Section, ref: Section
) -> list[str]:
    """Complains of losses that do not fit what they are given, or each other.

    Args:
      kind: of the objective.
      losses: of the run.
      table: of losses.
      given: `config.loss`.
      ref: `config.ref`.
    """
    return (
        own_option_faults(given, table)
        or mixture_faults(losses, given["weights"]) + objective_faults(kind, losses)
        or loss_faults(kind, losses, given) + reference_faults(losses, ref)
    )


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
