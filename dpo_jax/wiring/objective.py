"""The names in `loss.*` to what is minimised.

A mixture `dpo+sft` is several rows of the loss table, weighted by `loss.weights`. Which
record the rows take says which objective it is. Float options are traced, so that a
sweep over them compiles once; the others are fixed.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dpo_jax.config import Config
from dpo_jax.data.loader import Join
from dpo_jax.data.mismatch import mismatch
from dpo_jax.losses import Loss, LossFn, find, keywords, options
from dpo_jax.losses.tokens import WEIGHTS
from dpo_jax.objectives import preference, ranking, reward, unpaired
from dpo_jax.objectives.judged import Judged, Kind, Term
from dpo_jax.objectives.sft import Sft
from dpo_jax.objectives.terms import Scorer, Weigh
from dpo_jax.types import ApplyFn, Array, Columns, Head, Hyper, Objective, Params, Stats

LossTable = Mapping[str, Loss | LossFn]

TAKEN_BY = {  # the record that a loss takes -> config.objective
    "pairs": "preference",
    "singles": "unpaired",
    "lists": "ranking",
    "scores": "reward",
}
FIXED = ("divergence_alpha",)  # floats that choose a formula


def components(config: Config, losses: LossTable) -> tuple[Loss, ...]:
    """Looks up the rows of `loss.name`, one or several joined by `+`.

    Raises:
      ConfigError: if the table lacks one.
    """
    return tuple(find(name, losses) for name in config.loss.name.split("+"))


def needs_whole_reference(rows: tuple[Loss, ...]) -> bool:
    """Says whether a loss reads the reference's whole distribution at each token."""
    return any("kls" in row.columns for row in rows)


def join_of(config: Config, rows: tuple[Loss, ...]) -> Join | None:
    """Finds what a step's records are joined by: KTO's mismatched responses."""
    if not any("mismatched" in row.columns for row in rows):
        return None
    return functools.partial(mismatch, max_tokens=config.data.max_tokens)


def used_options(config: Config, rows: tuple[Loss, ...]) -> set[str]:
    """Names the options of `loss.*` that a run reads.

    `ld_alpha` and `weighting` act on any loss of pairs' summed log-ratios.
    """
    used = {"name"} | {name for row in rows for name in options(row)}
    ratios = all(row.takes == "pairs" and row.reference for row in rows)
    elementwise = not any(row.couples for row in rows)
    if len(rows) > 1:
        used.add("weights")
    elif ratios and not any(row.token_weights for row in rows):
        used.add("ld_alpha")
    if ratios and elementwise:
        used.add("weighting")
    if config.objective == "reward":
        used.add("margin")
    elif config.ref.mode != "none" or config.objective == "preference":
        used.add("beta")  # of the metrics `rewards/*`
    return used


def is_traced(name: str, value: Any) -> bool:
    """Tells hyper-parameters that a sweep may change without compiling again."""
    return isinstance(value, float) and name not in FIXED


def hyper(config: Config) -> Hyper:
    """Collects the float hyper-parameters as arrays."""
    values = {k: v for k, v in config.loss.items() if is_traced(k, v)}
    values["lr"] = config.optimizer.lr
    return {name: jnp.float32(value) for name, value in values.items()}


def bound(function: Callable[..., Any], config: Config) -> Callable[..., Any]:
    """Gives a function of the table its options: `(record, hyper, **more) -> …`."""
    section = config.loss
    names = [name for name in keywords(function) if name in section]
    fixed = {n: section[n] for n in names if not is_traced(n, section[n])}
    traced = [name for name in names if name not in fixed]

    def call(record: Any, hyper: Hyper, **more: Any) -> Any:
        given = {name: hyper[name] for name in traced}
        return function(record, **fixed, **given, **more)

    return call


def term(row: Loss, config: Config, weight: float) -> Term:
    """Binds a row of the table to the configuration."""
    loss = bound(row.fn, config)
    running = row.running
    if running is None:
        return Term(lambda record, stats, hyper: loss(record, hyper), row.per, weight)
    names = [name for name in keywords(row.fn) if name in running.start]
    move = bound(running.update, config)

    def of_stats(record: NamedTuple, stats: Stats, hyper: Hyper) -> Array:
        return loss(record, hyper, **{name: stats[name] for name in names})

    def update(record: NamedTuple, stats: Stats, hyper: Hyper) -> Stats:
        own = {name: stats[name] for name in running.start}
        return move(record, hyper, stats=own)

    return Term(of_stats, row.per, weight, update)


def start_stats(rows: tuple[Loss, ...]) -> Stats:
    """Returns the running statistics before the first step; {} where none is kept."""
    return {
        name: jnp.float32(value)
        for row in rows
        if row.running is not None
        for name, value in row.running.start.items()
    }


def weigh_tokens(row: Loss, config: Config) -> Weigh | None:
    """Finds the weights of tokens in a response's sum; None = each counts once."""
    name = row.token_weights
    if not name and config.loss.ld_alpha != 1.0:
        name = "ld"
    return bound(WEIGHTS[name], config) if name else None


def clamped(columns: Columns) -> Array:
    """Returns e^(m_w + m_l), at most 1: the official code of WPO."""
    return jnp.minimum(plain(columns), 1.0)


def plain(columns: Columns) -> Array:
    """Returns e^(m_w + m_l) of each pair, no gradient.

    Source: WPO, arXiv:2406.11827 eq. 6.
    """
    chosen, rejected = preference.sides(columns, columns.response["certainty"])
    return jax.lax.stop_gradient(jnp.exp(chosen + rejected))


WEIGHTINGS: dict[str, Callable[[Columns], Array] | None] = {
    "none": None,
    "wpo": plain,
    "wpo_clamped": clamped,
}
KINDS: dict[str, Kind] = {  # config.objective -> what is judged
    "preference": preference.PAIRS,
    "unpaired": unpaired.SINGLES,
    "ranking": ranking.LISTS,
}


def make_objective(
    config: Config,
    rows: tuple[Loss, ...],
    apply: ApplyFn,
    ref_head: Callable[[Params], Head] | None,
) -> Objective:
    """Builds what is minimised.

    Args:
      config: of the run.
      rows: from `components`.
      apply: the policy.
      ref_head: the head of the reference's parameters, where a loss needs its whole
        distribution.
    """
    weights = config.loss.weights or (1.0,) * len(rows)
    parts = tuple(
        term(row, config, weight) for row, weight in zip(rows, weights, strict=True)
    )
    couples = any(row.couples or row.running is not None for row in rows)
    if config.objective == "reward":
        margins = config.loss.margin == "data"
        kind = reward.SCORES_AND_MARGINS if margins else reward.SCORES
        return Judged(kind, reward.Scorer(apply), parts, couples)
    weighting = WEIGHTINGS[config.loss.weighting]
    scorer = Scorer(
        apply,
        config.model.logits_chunk,
        weigh_tokens(rows[0], config),
        ref_head,
        weighting is not None,
    )
    if config.objective == "sft":
        return Sft(scorer)
    return Judged(KINDS[config.objective], scorer, parts, couples, weighting)
