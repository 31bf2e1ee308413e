"""Which losses stand on the leaderboard, and what of each is tuned.

Every entry has the same number of trials: learning rate × the one scale of its own that
matters most, the other options at their usual setting. What is left out says why.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dpo_jax.losses import LOSSES, find, options
from dpo_jax.types import Array
from experiments.exact import enumerable
from experiments.exact.enumerable import Method, World

LRS = (0.003, 0.01, 0.03, 0.1)
WIDE = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
WIDE_PER_TOKEN = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # β of mean log-probs
ALPHAS = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
TRIALS = len(LRS) * len(WIDE)
LONE_LRS = tuple(np.geomspace(0.001, 0.3, TRIALS).tolist())  # without a scale


class Entry(NamedTuple):
    """A line of the leaderboard.

    Attributes:
      loss: a name of `LOSSES`, or several joined by `+` and added up.
      scale: the option that is tuned beside the learning rate; '' = none.
      scales: its values, as many as `WIDE` has.
      options: others that differ from the usual setting.
    """

    loss: str
    scale: str = "beta"
    scales: tuple[float, ...] = WIDE
    options: Mapping[str, Any] = {}


OUT = {
    "bradley_terry": "a reward model has no policy to score",
    "dpo, normalize=mean": "equal lengths: `dpo` at β/3, which is in its grid",
    "ipo, normalize=mean": "equal lengths and Adam: `ipo` at β/3, in its grid",
    "ld_alpha": "equal lengths: no token lies past the shorter response",
    "weighting=wpo": "needs the policy's collision probability of every token",
}
NOT_MEASURED = "came after the measurements"
OUT |= dict.fromkeys(
    ("sppo", "rpo", "rebel", "simper", "arpo", "apo_zero_unpaired", "infonca", "nca"),
    NOT_MEASURED,
)
MEASURED_AT: dict[str, Mapping[str, Any]] = {  # what was usual then
    "exo_pair": {"label_smoothing": 1e-3},
    "mmpo": {"mmpo_gamma": 1.0},
    "dpo_shift": {"shift_lambda": 0.75},
    "cpo": {"likelihood": "sum"},
}
BY_BETA = (  # their β over WIDE, all else usual
    "dpo ipo hinge exo_pair robust discopop nca_pair bco_pair sppo_hard aot "
    "aot_unpaired apo_zero apo_down dpop r_dpo tdpo1 tdpo2 beta_dpo cal_dpo odpo mmpo "
    "chi_po dpo_shift d2po sampo dr_dpo cpo orpo kto bco plackett_luce"
)
ENTRIES: dict[str, Entry] = {
    **{n: Entry(n, options=MEASURED_AT.get(n, {})) for n in BY_BETA.split()},
    "simpo": Entry("simpo", "beta", WIDE_PER_TOKEN),
    "alpha_po": Entry("alpha_po", "beta", WIDE_PER_TOKEN),
    "alpha_dpo": Entry("alpha_dpo", "beta", WIDE_PER_TOKEN),
    "slic_hf": Entry("slic_hf", "nll_weight"),
    "unlikelihood": Entry("unlikelihood", "unlikelihood_alpha", ALPHAS),
    "sft": Entry("sft", "", ()),
    "dpo(ε=0.2)": Entry("dpo", options={"label_smoothing": 0.2}),
    "robust(ε=0.2)": Entry("robust", options={"label_smoothing": 0.2}),
    "dpo(forward_kl)": Entry("dpo", options={"divergence": "forward_kl"}),
    "dpo(js)": Entry("dpo", options={"divergence": "js"}),
    "bco_pair(running)": Entry("bco_pair", options={"baseline": "running"}),
    "dpop(λ=1)": Entry("dpop", options={"dpop_lambda": 1.0}),
    "simpo(γ=0)": Entry("simpo", "beta", WIDE_PER_TOKEN, {"gamma": 0.0}),
    "dpo+sft": Entry("dpo+sft"),
}


def sees_rewards(entry: Entry) -> bool:
    """Says whether a loss reads ratings, which are the true rewards here."""
    rows = [find(name, LOSSES) for name in entry.loss.split("+")]
    return any("ratings" in row.columns for row in rows)


def trials(entry: Entry) -> tuple[np.ndarray, np.ndarray]:
    """Lists learning rates and scales, [TRIALS] each; without a scale NaN."""
    if not entry.scale:
        return np.asarray(LONE_LRS), np.full(TRIALS, np.nan)
    lrs, scales = np.meshgrid(LRS, entry.scales, indexing="ij")
    return lrs.reshape(-1), scales.reshape(-1)


def at_edge(entry: Entry, trial: int) -> str:
    """Says at which ends of its grid a trial lies: `lr-`, `lr+`, `scale-`, `scale+`."""
    found = []
    for name, values in zip(("lr", "scale"), trials(entry), strict=True):
        if values[trial] == values.min():
            found.append(f"{name}-")
        if values[trial] == values.max():
            found.append(f"{name}+")
    return " ".join(found)


def build(entry: Entry, scale: Array, world: World) -> Method:
    """Makes what training minimises; a likelihood in a sum is per token, as in IRPO.

    Args:
      entry: of the leaderboard.
      scale: its value, may be traced; not read if the entry has none.
      world: the environment.
    """
    tuned = {entry.scale: scale} if entry.scale else {}
    given = {**entry.options, **tuned}
    rows = [find(name, LOSSES) for name in entry.loss.split("+")]
    methods = [
        enumerable.method(
            name, {o: given[o] for o in options(row) if o in given}, world
        )
        for name, row in zip(entry.loss.split("+"), rows, strict=True)
    ]
    if len(methods) == 1:
        return methods[0]
    shares = [1 / len(world.ref) if r.per == "chosen_tokens" else 1.0 for r in rows]

    def loss(pairs, stats):
        total = 0.0
        for method, share in zip(methods, shares, strict=True):
            value, stats = method.loss(pairs, stats)
            total = total + share * value
        return total, stats

    start = {name: value for m in methods for name, value in m.start.items()}
    return Method(start, methods[0].weights, loss)
