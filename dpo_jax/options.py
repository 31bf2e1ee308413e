"""Options of the losses: default, range, meaning.

One that the chosen loss does not use is an error. Which loss uses which is said by the
keyword-only parameters of its function (`losses.options`); here stands what a value
means before any loss is chosen. No jax, so that a configuration is read in a blink.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

Range = tuple[float, float, bool]  # lowest, highest, whether the lowest is allowed
UP_TO_ONE = math.nextafter(1.0, 2.0)  # the highest, never allowed, where 1 is

ANY: Range = (-math.inf, math.inf, False)
POSITIVE: Range = (0.0, math.inf, False)
NOT_NEGATIVE: Range = (0.0, math.inf, True)
SHARE: Range = (0.0, UP_TO_ONE, True)
POSITIVE_SHARE: Range = (0.0, UP_TO_ONE, False)


class Option(NamedTuple):
    """An option of a loss.

    Attributes:
      default: its value, off where that makes sense.
      meaning: whose it is, and what it does.
      range: of a number.
      choices: of a word.
    """

    default: Any
    meaning: str
    range: Range | None = None
    choices: Sequence[str] = ()


LOSS_OPTIONS: dict[str, Option] = {
    "weights": Option((), "of a sum of losses, one number each; () = 1.0"),
    "beta": Option(0.1, "β, strength of the KL penalty; also of `rewards/*`", POSITIVE),
    "label_smoothing": Option(
        0.0, "ε, share of flipped labels, 0 ≤ ε < ½", (0.0, 0.5, True)
    ),
    "normalize": Option(
        "sum", "or 'mean' over a response's tokens", choices=("sum", "mean")
    ),
    "divergence": Option(
        "reverse_kl",
        "or 'forward_kl', 'js', 'alpha'",
        choices=("reverse_kl", "forward_kl", "js", "alpha"),
    ),
    "divergence_alpha": Option(1.0, "of 'alpha'", ANY),
    "ld_alpha": Option(
        1.0, "weight of tokens past the shorter response; 1 = off", SHARE
    ),
    "weighting": Option(
        "none",
        "of pairs: or 'wpo', 'wpo_clamped'",
        choices=("none", "wpo", "wpo_clamped"),
    ),
    "baseline": Option(
        "none",
        "bco_pair: or 'running', the mean of rewards so far",
        choices=("none", "running"),
    ),
    "discopop_tau": Option(0.05, "discopop: temperature of the modulation", POSITIVE),
    "dpop_lambda": Option(
        50.0, "dpop: weight of a chosen response that fell", NOT_NEGATIVE
    ),
    "length_alpha": Option(0.1, "r_dpo: nats a token", NOT_NEGATIVE),
    "tdpo_alpha": Option(0.5, "tdpo2: weight of the difference of KLs", NOT_NEGATIVE),
    "beta_scale": Option(
        0.6, "beta_dpo: how far β follows the batch; 0 = off", NOT_NEGATIVE
    ),
    "keep_fraction": Option(0.8, "beta_dpo: of the pairs of a batch", POSITIVE_SHARE),
    "momentum": Option(
        0.9, "beta_dpo, alpha_dpo: of the running statistics", (0.0, 1.0, True)
    ),
    "odpo_alpha": Option(
        1.0, "odpo: weight of the log of the ratings' difference", NOT_NEGATIVE
    ),
    "mmpo_gamma": Option(1.0, "mmpo: scale of the ratings' difference", NOT_NEGATIVE),
    "chi_clip": Option(10.0, "chi_po: half of the largest logit", POSITIVE),
    "shift_lambda": Option(0.75, "dpo_shift: weight of the rejected response", SHARE),
    "decay": Option(
        0.98, "d2po: weight of a token relative to the one before", POSITIVE_SHARE
    ),
    "alpha": Option(
        0.1, "alpha_dpo: weight of the reference in the margin", NOT_NEGATIVE
    ),
    "gamma": Option(
        1.0, "simpo, alpha_po, alpha_dpo: margin of the logit", NOT_NEGATIVE
    ),
    "dr_beta": Option(1.0, "dr_dpo: robustness over pairs; ∞ = dpo", POSITIVE),
    "alpha_po_alpha": Option(0.25, "alpha_po: shape of the reward; 0 = simpo", ANY),
    "nll_weight": Option(
        1.0, "cpo, slic_hf: of the chosen response's likelihood", NOT_NEGATIVE
    ),
    "slic_margin": Option(1.0, "slic_hf: nats", NOT_NEGATIVE),
    "unlikelihood_alpha": Option(
        0.5, "unlikelihood: weight of the rejected response", NOT_NEGATIVE
    ),
    "desirable_weight": Option(1.0, "kto", NOT_NEGATIVE),
    "undesirable_weight": Option(1.0, "kto", NOT_NEGATIVE),
    "centering": Option(
        0.01, "bradley_terry: of the squared sum of scores; 0 = off", NOT_NEGATIVE
    ),
    "margin": Option(
        "none",
        "bradley_terry: or 'data', the ratings' difference",
        choices=("none", "data"),
    ),
}
