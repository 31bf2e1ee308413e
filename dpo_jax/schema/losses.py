"""Keys of the losses: which one, and the options of each."""

from dpo_jax.schema.key import (
    ANY,
    NOT_NEGATIVE,
    POSITIVE,
    POSITIVE_SHARE,
    SHARE,
    UP_TO_ONE,
    Key,
)

LOSSES: dict[str, Key] = {
    "loss.name": Key("dpo", "or several: 'dpo+sft'"),
    "loss.weights": Key(
        (), "of a sum of losses, one number each; () = 1.0", items=float
    ),
    "loss.beta": Key(
        0.1, "β, strength of the KL penalty; also of `rewards/*`", POSITIVE
    ),
    "loss.label_smoothing": Key(
        0.0, "ε, share of flipped labels, 0 ≤ ε < ½", (0.0, 0.5, True)
    ),
    "loss.normalize": Key(
        "sum", "or 'mean' over a response's tokens", choices=("sum", "mean")
    ),
    "loss.divergence": Key(
        "reverse_kl",
        "or 'forward_kl', 'js', 'alpha'",
        choices=("reverse_kl", "forward_kl", "js", "alpha"),
    ),
    "loss.divergence_alpha": Key(1.0, "of 'alpha'", ANY),
    "loss.ld_alpha": Key(
        1.0, "weight of tokens past the shorter response; 1 = off", SHARE
    ),
    "loss.weighting": Key(
        "none",
        "of pairs: or 'wpo', 'wpo_clamped'",
        choices=("none", "wpo", "wpo_clamped"),
    ),
    "loss.likelihood": Key(
        "",
        "of sft, cpo, arpo, orpo: mean over the chosen 'tokens' of the batch, those of "
        "their prompts too ('whole'), or over 'responses', each a mean or a 'sum'; "
        "'' = 'responses' of orpo, 'tokens' of others",
        choices=("", "sum", "responses", "tokens", "whole"),
    ),
    "loss.baseline": Key(
        "none",
        "bco_pair: or 'running', the mean of rewards so far",
        choices=("none", "running"),
    ),
    "loss.discopop_tau": Key(0.05, "discopop: temperature of the modulation", POSITIVE),
    "loss.dpop_lambda": Key(
        50.0, "dpop: weight of a chosen response that fell", NOT_NEGATIVE
    ),
    "loss.length_alpha": Key(0.1, "r_dpo: nats a token", NOT_NEGATIVE),
    "loss.tdpo_alpha": Key(0.5, "tdpo2: weight of the difference of KLs", NOT_NEGATIVE),
    "loss.beta_scale": Key(
        0.6, "beta_dpo: how far β follows the batch; 0 = off", NOT_NEGATIVE
    ),
    "loss.keep_fraction": Key(0.8, "beta_dpo: of the pairs of a batch", POSITIVE_SHARE),
    "loss.filter": Key(
        "draw",
        "beta_dpo: which pairs are kept; or 'nearest'",
        choices=("draw", "nearest"),
    ),
    "loss.momentum": Key(
        0.9,
        "beta_dpo, alpha_dpo: of the running statistics, a step; the authors' "
        "runs move them at .9 a part of a step, which is .81 and .185 a step",
        (0.0, 1.0, True),
    ),
    "loss.odpo_alpha": Key(
        1.0, "odpo: weight of the log of the ratings' difference", NOT_NEGATIVE
    ),
    "loss.mmpo_gamma": Key(1.0, "mmpo: scale of the ratings' difference", NOT_NEGATIVE),
    "loss.rating_scale": Key(
        1.0, "rpo, rebel: of the ratings' difference", NOT_NEGATIVE
    ),
    "loss.rpo_distance": Key(
        "backward",
        "rpo: KL to the ratings' preference, or 'forward', 'squared'",
        choices=("backward", "forward", "squared"),
    ),
    "loss.temperature": Key(
        1.0, "infonca, nca: of the ratings, in their units", POSITIVE
    ),
    "loss.chi_clip": Key(10.0, "chi_po: half of the largest logit", POSITIVE),
    "loss.shift_lambda": Key(0.75, "dpo_shift: weight of the rejected response", SHARE),
    "loss.shift_end": Key(
        -1.0,
        "dpo_shift: the weight that is reached along a line after the last step; < 0 = "
        "it stays",
        (-1.0, UP_TO_ONE, True),
    ),
    "loss.decay": Key(
        0.98, "d2po: weight of a token relative to the one before", POSITIVE_SHARE
    ),
    "loss.alpha": Key(
        0.1, "alpha_dpo: weight of the reference in the margin", NOT_NEGATIVE
    ),
    "loss.gamma": Key(
        1.0, "simpo, alpha_po, alpha_dpo: margin of the logit", NOT_NEGATIVE
    ),
    "loss.dr_beta": Key(1.0, "dr_dpo: robustness over pairs; ∞ = dpo", POSITIVE),
    "loss.alpha_po_alpha": Key(0.25, "alpha_po: shape of the reward; 0 = simpo", ANY),
    "loss.nll_weight": Key(
        1.0, "cpo, arpo, slic_hf: of the chosen response's likelihood", NOT_NEGATIVE
    ),
    "loss.arpo_scale": Key(0.9, "arpo: η₁, growth of the penalty", NOT_NEGATIVE),
    "loss.arpo_rate": Key(0.4, "arpo: η₂, a nat of difference a token", NOT_NEGATIVE),
    "loss.slic_margin": Key(1.0, "slic_hf: nats", NOT_NEGATIVE),
    "loss.unlikelihood_alpha": Key(
        0.5, "unlikelihood: weight of the rejected response", NOT_NEGATIVE
    ),
    "loss.desirable_weight": Key(1.0, "kto", NOT_NEGATIVE),
    "loss.undesirable_weight": Key(1.0, "kto", NOT_NEGATIVE),
    "loss.centering": Key(
        0.01, "bradley_terry: of the squared sum of scores; 0 = off", NOT_NEGATIVE
    ),
    "loss.margin": Key(
        "none",
        "bradley_terry: or 'data', the ratings' difference",
        choices=("none", "data"),
    ),
}
