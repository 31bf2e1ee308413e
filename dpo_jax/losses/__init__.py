"""Pure functions of log-probs, and one table of their names.

A loss takes a `PairLogps` of N pairs and keyword-only options, and returns f32[N]
unreduced: its options are exactly its keyword-only parameters, so the configuration can
refuse an option that the chosen loss does not use. This room knows nothing of models,
data or optimizers.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import NamedTuple

from dpo_jax.errors import ConfigError, unknown
from dpo_jax.losses import pairwise, supervised
from dpo_jax.types import Array

LossFn = Callable[..., Array]


class Loss(NamedTuple):
    """A row of the table.

    Attributes:
      fn: `(PairLogps, **options) -> f32[N]`.
      formula: as in the README's table.
      source: where it was published.
      reference: whether the value depends on the reference.
      per: what the sum over pairs is divided by: `pairs` or `chosen_tokens`.
    """

    fn: LossFn
    formula: str = ""
    source: str = ""
    reference: bool = True
    per: str = "pairs"


def options(loss: Loss) -> tuple[str, ...]:
    """Names the options that a loss uses, in order."""
    parameters = inspect.signature(loss.fn).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


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
