"""The names in `loss.*` to what is minimised.

A mixture `dpo+sft` is several losses of the table, weighted by `loss.weights`. Which
record they take says which objective it is.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp

from dpo_jax.config import Config
from dpo_jax.data.loader import Join
from dpo_jax.data.mismatch import mismatch
from dpo_jax.losses import Bound, LossTable, find
from dpo_jax.losses.loss import options, pick
from dpo_jax.losses.tokens import WEIGHTS
from dpo_jax.losses.weightings import WEIGHTINGS
from dpo_jax.objectives import preference, ranking, reward, sft, unpaired
from dpo_jax.objectives.judged import Judged, Kind
from dpo_jax.objectives.terms import Scorer, Weigh
from dpo_jax.types import ApplyFn, Array, Columns, Head, Hyper, Objective, Params, Stats

Losses = Sequence[Bound]

TAKEN_BY = {  # the record that a loss takes -> config.objective
    "pairs": "preference",
    "singles": "unpaired",
    "lists": "ranking",
    "scores": "reward",
}


def losses_of(section: Config, table: LossTable) -> Losses:
    """Looks the losses of `loss.name` up and gives each its options.

    Args:
      section: `config.loss`.
      table: of losses.

    Raises:
      ConfigError: if the table lacks one.
    """
    names = section.name.split("+")
    weights = section.weights or (1.0,) * len(names)
    return tuple(
        find(name, table).bind(
            section,
            section.options.get(name, {}),
            name=name,
            weight=float(weight) if len(names) > 1 else None,
        )
        for name, weight in zip(names, weights, strict=False)
    )


def needs_whole_reference(losses: Losses) -> bool:
    """Says whether a loss reads the reference's whole distribution at each token."""
    return any("kls" in bound.loss.columns for bound in losses)


def join_of(config: Config, losses: Losses) -> Join | None:
    """Finds what a step's records are joined by: KTO's mismatched responses."""
    if not any("mismatched" in bound.loss.columns for bound in losses):
        return None
    return functools.partial(mismatch, max_tokens=config.data.max_tokens)


def used_options(config: Config, losses: Losses) -> set[str]:
    """Names the options of `loss.*` that a run reads.

    `ld_alpha` and `weighting` act on any loss of pairs' summed log-ratios.
    """
    used = set()
    for bound in losses:
        used |= set(options(bound.loss)) - set(config.loss.options.get(bound.name, ()))
    ratios = all(b.loss.takes == "pairs" and b.loss.reference for b in losses)
    if len(losses) > 1:
        used.add("weights")
    elif ratios and not losses[0].loss.token_weights:
        used.add("ld_alpha")
    if ratios and not any(bound.loss.couples for bound in losses):
        used.add("weighting")
    if config.objective == "reward":
        used.add("margin")
    elif config.ref.mode != "none" or config.objective == "preference":
        used.add("beta")  # of the metrics `rewards/*`
    return used


def hyper(config: Config, losses: Losses, others: Mapping[str, float] = {}) -> Hyper:
    """Collects the float hyper-parameters as arrays: of the losses, and others."""
    section = config.loss
    values = {"beta": section.beta, "ld_alpha": section.ld_alpha}
    for bound in losses:
        values |= bound.hyper
    return {name: jnp.float32(v) for name, v in {**values, **others}.items()}


def start_stats(losses: Losses) -> Stats:
    """Returns the running statistics before the first step; {} where none is kept."""
    return {
        name: jnp.float32(value)
        for bound in losses
        if bound.running is not None
        for name, value in bound.running.start.items()
    }


def weigh_tokens(losses: Losses, ld_alpha: float) -> Weigh | None:
    """Finds the weights of tokens in a response's sum; None = each counts once."""
    only = losses[0]
    name = only.loss.token_weights or ("ld" if ld_alpha != 1.0 else "")
    if not name:
        return None
    weigh = WEIGHTS[name]
    return lambda places, hyper: weigh(
        places, **pick(weigh, hyper | only.options(hyper))
    )


def weigh_pairs(name: str) -> Callable[[Columns], Array] | None:
    """Finds the factor on each pair's loss; None = 1."""
    weigh = WEIGHTINGS[name]
    if weigh is None:
        return None
    return lambda columns: weigh(
        *preference.sides(columns, columns.response["certainty"])
    )


KINDS: dict[str, Kind] = {  # config.objective -> what is judged
    "preference": preference.PAIRS,
    "sft": sft.COMPLETIONS,
    "unpaired": unpaired.SINGLES,
    "ranking": ranking.LISTS,
}


def make_objective(
    config: Config,
    losses: Losses,
    apply: ApplyFn,
    ref_head: Callable[[Params], Head] | None,
) -> Objective:
    """Builds what is minimised.

    Args:
      config: of the run.
      losses: from `losses_of`.
      apply: the policy.
      ref_head: the head of the reference's parameters, where a loss needs its whole
        distribution.
    """
    if config.objective == "reward":
        margins = config.loss.margin == "data"
        kind = reward.SCORES_AND_MARGINS if margins else reward.SCORES
        return Judged(kind, reward.Scorer(apply), losses)
    weighting = weigh_pairs(config.loss.weighting)
    scorer = Scorer(
        apply,
        config.model.logits_chunk,
        weigh_tokens(losses, config.loss.ld_alpha),
        ref_head,
        weighting is not None,
    )
    return Judged(KINDS[config.objective], scorer, losses, weighting)
