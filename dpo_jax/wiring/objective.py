"""The names in `loss.*` to what is minimised.

A mixture `dpo+sft` is several losses of the table, weighted by `loss.weights`. `given`
is `config.loss`: the options of all losses of a run.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from dpo_jax.data.loader import Join
from dpo_jax.data.mismatch import mismatch
from dpo_jax.errors import ConfigError
from dpo_jax.losses import Bound, LossTable, find
from dpo_jax.losses.loss import options, pick
from dpo_jax.losses.tokens import WEIGHTS
from dpo_jax.losses.weightings import WEIGHTINGS
from dpo_jax.models import moe
from dpo_jax.models.spec import DecoderSpec
from dpo_jax.objectives import balanced, preference, reward
from dpo_jax.objectives.judged import Judged, Kind
from dpo_jax.objectives.terms import Scorer, Weigh
from dpo_jax.types import ApplyFn, Array, Columns, Head, Hyper, Objective, Params, Stats

Losses = Sequence[Bound]


def losses_of(given: Mapping[str, Any], table: LossTable) -> Losses:
    """Looks the losses of `loss.name` up and gives each its options.

    Raises:
      ConfigError: if the table lacks one.
    """
    names = given["name"].split("+")
    weights = given["weights"] or (1.0,) * len(names)
    return tuple(
        find(name, table).bind(
            given,
            given["options"].get(name, {}),
            name=name,
            weight=float(weight) if len(names) > 1 else None,
        )
        for name, weight in zip(names, weights, strict=False)
    )


def name_of(losses: Losses) -> str:
    """Returns `loss.name`."""
    return "+".join(bound.name for bound in losses)


def needs_whole_reference(losses: Losses) -> bool:
    """Says whether a loss reads the reference's whole distribution at each token."""
    return any("kls" in bound.loss.columns for bound in losses)


def join_of(losses: Losses, max_tokens: int) -> Join | None:
    """Finds what a step's records are joined by: KTO's mismatched responses."""
    if not any("mismatched" in bound.loss.columns for bound in losses):
        return None
    return functools.partial(mismatch, max_tokens=max_tokens)


def used_options(kind: Kind, losses: Losses, given: Mapping[str, Any]) -> set[str]:
    """Names the options of `loss.*` that a run reads.

    `ld_alpha` and `weighting` act on any loss of pairs' summed log-ratios.
    """
    used = set()
    for bound in losses:
        used |= set(options(bound.loss)) - set(given["options"].get(bound.name, ()))
    ratios = all(b.loss.takes == "pairs" and b.loss.reference for b in losses)
    if len(losses) > 1:
        used.add("weights")
    elif ratios and not losses[0].loss.token_weights:
        used.add("ld_alpha")
    if ratios and not any(bound.loss.couples for bound in losses):
        used.add("weighting")
    if kind.scalar:
        used.add("margin")
    if kind.reference:
        used.add("beta")
    return used


def hyper(losses: Losses, given: Mapping[str, Any], **others: float) -> Hyper:
    """Collects the float hyper-parameters as arrays: of the losses, and others."""
    values = {"beta": given["beta"], "ld_alpha": given["ld_alpha"]}
    for bound in losses:
        values |= bound.hyper
    return {name: jnp.float32(value) for name, value in (values | others).items()}


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


def make_objective(
    kind: Kind,
    losses: Losses,
    given: Mapping[str, Any],
    apply: ApplyFn,
    *,
    chunk: int,
    ref_head: Callable[[Params], Head] | None = None,
    temperature: float = 1.0,
    labels: str = "order",
) -> Objective:
    """Builds what is minimised.

    Args:
      kind: of the table of objectives.
      losses: from `losses_of`.
      given: as above.
      apply: the policy.
      chunk: scored tokens per row whose logits are held at a time.
      ref_head: the head of the reference's parameters, where a loss needs its whole
        distribution.
      temperature: of the distribution that responses are scored under.
      labels: of `online.labels`; `soft` takes both orders of a pair by their chances.
    """
    if kind.scalar:
        if given["margin"] == "data":
            kind = kind._replace(take=reward.take_scores_and_margins)
        return Judged(kind, reward.ScalarScorer(apply), losses)
    if losses[0].loss.means:
        kind = kind._replace(metrics=preference.metrics_of_means)
    weighting = weigh_pairs(given["weighting"])
    scorer = Scorer(
        apply,
        chunk,
        weigh_tokens(losses, given["ld_alpha"]),
        ref_head,
        certain=weighting is not None,
        prompts=any(b.fixed.get("likelihood") == "whole" for b in losses),
        noisy=any(b.fixed.get("filter") == "draw" for b in losses),
        temperature=temperature,
    )
    soften = preference.bradley_terry if labels == "soft" else None
    return Judged(kind, scorer, losses, weighting, soften)


def with_routers(
    objective: Objective, spec: DecoderSpec, *, weighted: bool
) -> Objective:
    """Adds what the routers of a mixture of experts do, where there are any.

    Args:
      objective: of the run.
      spec: of the policy.
      weighted: whether their load-balancing loss counts.

    Raises:
      ConfigError: if it should and there are none.
    """
    if spec.experts:
        told = (moe.balance, moe.largest_load, moe.TOKENS)
        return balanced.Balanced(objective, *told, weighted)
    if weighted:
        raise ConfigError(
            f"model.router_aux_coef is of a mixture of experts, and {spec.model_type} "
            "has none; set it to 0"
        )
    return objective
