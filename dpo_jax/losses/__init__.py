"""Pure functions of log-probs, and one table of their names.

A loss takes a record of N pairs (or single responses, or rankings: see `Loss.takes`)
and keyword-only options, and returns f32[N] unreduced: its options are exactly its
keyword-only parameters, so the configuration can refuse an option that the chosen loss
does not use. This room knows nothing of models, data or optimizers.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dpo_jax.errors import ConfigError, unknown
from dpo_jax.losses import pairwise, supervised
from dpo_jax.types import Array

LossFn = Callable[..., Array]
Stats = dict[str, Array]


class Running(NamedTuple):
    """Statistics that a loss keeps from step to step.

    They stand in the train state and in checkpoints. A step first updates them with its
    whole batch, then computes the loss with the new ones, which get no gradient.

    Attributes:
      start: name -> value before the first step; the loss function takes each name as a
        keyword-only parameter.
      update: `(record, stats, **options) -> stats`, pure.
    """

    start: Mapping[str, float]
    update: Callable[..., Stats]


class Loss(NamedTuple):
    """A row of the table.

    Attributes:
      fn: `(record, **options) -> f32[N]`.
      formula: as in the README's table.
      source: where it was published.
      reference: whether the value depends on the reference.
      takes: the record: `pairs` (PairLogps), `singles` (SingleLogps), `lists`
        (ListLogps) or `scores` (PairScores).
      per: what the sum is divided by: `pairs`, `chosen_tokens`, `singles`, `lists`.
      usual: options of the usual setting that differ from the configuration's defaults.
      couples: whether an element depends on other elements of the batch.
      columns: optional fields of the record that it reads: `ratings`, `kls`.
      token_weights: weights of its own on the tokens, a name of `tokens.WEIGHTS`; ''
        for none. The options of that function are options of the loss.
      running: statistics it keeps; None for none.
    """

    fn: LossFn
    formula: str = ""
    source: str = ""
    reference: bool = True
    takes: str = "pairs"
    per: str = "pairs"
    usual: Mapping[str, Any] = {}
    couples: bool = False
    columns: tuple[str, ...] = ()
    token_weights: str = ""
    running: Running | None = None


def keywords(function: Callable) -> list[str]:
    """Names the keyword-only parameters of a function, in order."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]


def options(loss: Loss) -> tuple[str, ...]:
    """Names the options that a loss uses, in order."""
    names = keywords(loss.fn)
    if loss.running is not None:
        own = [name for name in names if name not in loss.running.start]
        names = own + keywords(loss.running.update)
    return tuple(dict.fromkeys(names))


def find(name: str, table: Mapping[str, Loss | LossFn]) -> Loss:
    """Looks a loss up; a bare function counts as a `Loss` with a reference.

    Raises:
      ConfigError: if the table has no such name.
    """
    if name not in table:
        raise ConfigError(unknown("loss.name", name, table))
    row = table[name]
    return row if isinstance(row, Loss) else Loss(row)


LOSSES: dict[str, Loss | LossFn] = {
    "dpo": Loss(
        pairwise.dpo,
        "−(1−ε) log σ(βδ) − ε log σ(−βδ)",
        "Rafailov et al. 2023, arXiv:2305.18290 eq. 7; ε > 0: cDPO",
    ),
    "ipo": Loss(
        pairwise.ipo, "(δ − 1/(2β))²", "Azar et al. 2023, arXiv:2310.12036 eq. 17"
    ),
    "hinge": Loss(
        pairwise.hinge,
        "max(0, 1 − βδ)",
        "SLiC arXiv:2305.10425, RSO arXiv:2309.06657",
    ),
    "sft": Loss(
        supervised.sft,
        "−log π(chosen), mean over tokens",
        "preferred-FT, arXiv:2305.18290 §6",
        reference=False,
        per="chosen_tokens",
    ),
}


def as_markdown(table: Mapping[str, Loss | LossFn]) -> str:
    """Renders the table of the README."""
    lines = ["| name | loss | options | source |", "|---|---|---|---|"]
    for name in table:
        row = find(name, table)
        used = ", ".join(f"`{option}`" for option in options(row)) or "–"
        lines.append(f"| `{name}` | {row.formula} | {used} | {row.source} |")
    return "\n".join(lines) + "\n"
