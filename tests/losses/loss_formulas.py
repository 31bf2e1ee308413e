"""Every loss once more in float64 NumPy, straight from its formula.

A formula takes (r, s, o): the record; the same record where the loss stops gradients
(so that finite differences of r leave it alone); the options and running statistics.
It returns one number per element, or a single one for the batch.
"""

import numpy as np


def sigma(x):
    return 1 / (1 + np.exp(-x))


def log_sigma(x):
    return -np.logaddexp(0, -x)


def ratios(r):
    return r.chosen - r.ref_chosen, r.rejected - r.ref_rejected


def gap(r):
    a, b = ratios(r)
    return a - b


def per_token(r):
    return r.chosen / r.chosen_lengths, r.rejected / r.rejected_lengths


def token_gap(r):
    a, b = ratios(r)
    return a / r.chosen_lengths - b / r.rejected_lengths


def delta(r, o):
    alpha = o.divergence_alpha
    f = {
        "reverse_kl": lambda x: x,
        "forward_kl": lambda x: 1 - np.exp(-x),
        "js": lambda x: np.log(2) + log_sigma(x),
        "alpha": lambda x: (np.exp((alpha - 1) * x) - 1) / (alpha - 1),
    }[o.divergence]
    c, d = (f(x) for x in ratios(r))
    if o.normalize == "mean":
        c, d = c / r.chosen_lengths, d / r.rejected_lengths
    return c - d


def flipped(x, o):
    eps = o.label_smoothing
    return -(1 - eps) * log_sigma(x) - eps * log_sigma(-x)


def exo_pair(r, s, o):
    x, eps = o.beta * delta(r, o), o.label_smoothing
    win = sigma(x) * (log_sigma(x) - np.log(1 - eps))
    return win + sigma(-x) * (log_sigma(-x) - np.log(eps))


def robust(r, s, o):
    x, eps = o.beta * delta(r, o), o.label_smoothing
    return (-(1 - eps) * log_sigma(x) + eps * log_sigma(-x)) / (1 - 2 * eps)


def discopop(r, s, o):
    x = o.beta * delta(r, o)
    m = sigma(x / o.discopop_tau)
    return (1 - m) * -log_sigma(x) + m * np.exp(-x)


def nca_pair(r, s, o):
    a, b = ratios(r)
    first = -log_sigma(o.beta * a)
    return first - log_sigma(-o.beta * a) / 2 - log_sigma(-o.beta * b) / 2


def bco_pair(r, s, o):
    a, b = ratios(r)
    m = {"none": 0.0, "running": o.reward_mean}[o.baseline]
    return -log_sigma(o.beta * a - m) - log_sigma(-(o.beta * b - m))


def sppo_hard(r, s, o):
    a, b = ratios(r)
    return (a - 1 / (2 * o.beta)) ** 2 + (b + 1 / (2 * o.beta)) ** 2


def aot(r, s, o):
    policy, reference = r.chosen - r.rejected, r.ref_chosen - r.ref_rejected
    return np.mean(flipped(o.beta * (np.sort(policy) - np.sort(reference)), o))


def aot_unpaired(r, s, o):
    a, b = ratios(r)
    return np.mean(flipped(o.beta * (np.sort(a) - np.sort(b)), o))


def apo_zero(r, s, o):
    a, b = ratios(r)
    return (1 - sigma(o.beta * a)) + sigma(o.beta * b)


def apo_down(r, s, o):
    a, b = ratios(r)
    return sigma(o.beta * a) + 1 - sigma(o.beta * (a - b))


def dpop(r, s, o):
    fell = np.maximum(0, r.ref_chosen - r.chosen)
    return -log_sigma(o.beta * (gap(r) - o.dpop_lambda * fell))


def r_dpo(r, s, o):
    longer = r.chosen_lengths - r.rejected_lengths
    return -log_sigma(o.beta * gap(r) + o.length_alpha * longer)


def tdpo1(r, s, o):
    return -log_sigma(o.beta * (gap(r) - (r.rejected_kls - r.chosen_kls)))


def tdpo2(r, s, o):
    drift = o.tdpo_alpha * (r.rejected_kls - s.chosen_kls)
    return -log_sigma(o.beta * (gap(r) - drift))


def beta_dpo(r, s, o):
    weights = np.exp(-0.5 * ((gap(s) - o.gap_mean) / 2.0) ** 2)
    kept = np.argsort(-weights)[: int(o.keep_fraction * len(weights))]
    change = gap(s)[kept].mean() - o.gap_mean
    beta = max(1e-3, o.beta * (1 + o.beta_scale * change))
    return np.mean(-log_sigma(beta * gap(r)[kept]))


def sppo(r, s, o):
    a, b = ratios(r)
    high, low = r.chosen_ratings - 0.5, r.rejected_ratings - 0.5
    return 0.5 * ((a - high / o.beta) ** 2 + (b - low / o.beta) ** 2)


def rpo(r, s, o):
    x = o.beta * gap(r)
    y = o.rating_scale * (r.chosen_ratings - r.rejected_ratings)
    if o.rpo_distance == "squared":
        return (x - y) ** 2
    p, q = sigma(y), sigma(x)
    if o.rpo_distance == "forward":
        p, q = q, p
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def rebel(r, s, o):
    return (gap(r) - o.rating_scale * (r.chosen_ratings - r.rejected_ratings)) ** 2


def cal_dpo(r, s, o):
    return -log_sigma(gap(r)) + 0.5 * sppo_hard(r, s, o)


def odpo(r, s, o):
    offset = o.odpo_alpha * np.log(r.chosen_ratings - r.rejected_ratings)
    return -log_sigma(o.beta * gap(r) - offset)


def mmpo(r, s, o):
    p = sigma(o.mmpo_gamma * (r.chosen_ratings - r.rejected_ratings))
    x = o.beta * gap(r)
    return -p * log_sigma(x) - (1 - p) * log_sigma(-x)


def chi_po(r, s, o):
    a, b = ratios(r)
    x = o.beta * (np.exp(a) + a) - o.beta * (np.exp(b) + b)
    return -log_sigma(np.clip(x, -2 * o.chi_clip, 2 * o.chi_clip))


def dpo_shift(r, s, o):
    a, b = ratios(r)
    assert o.shift_end < 0  # λ stays
    return -log_sigma(o.beta * (a - o.shift_lambda * b))


def alpha_dpo(r, s, o):
    high, low = per_token(r)
    normal = (token_gap(s) - o.spread_mean) / o.spread_std
    target = o.gamma / o.beta + o.alpha * normal
    return -log_sigma(o.beta * (high - low - target))


def dr_dpo(r, s, o):
    inside = np.exp(log_sigma(o.beta * gap(r)) / o.dr_beta)
    return -o.dr_beta * np.log(np.mean(inside))


def simpo(r, s, o):
    high, low = per_token(r)
    return flipped(o.beta * (high - low) - o.gamma, o)


def alpha_po(r, s, o):
    a = o.alpha_po_alpha
    high, low = ((1 - np.exp(-a * p)) / a for p in per_token(r))
    return flipped(o.beta * (high - low) - o.gamma, o)


def likelihood(r, o, otherwise):
    units = {
        "tokens": r.chosen_lengths.mean(),
        "responses": r.chosen_lengths,
        "sum": 1.0,
    }
    return -r.chosen / units[o.likelihood or otherwise]


def cpo(r, s, o):
    margin = o.beta * (r.chosen - r.rejected)
    return -log_sigma(margin) + o.nll_weight * likelihood(r, o, "tokens")


def arpo(r, s, o):
    high, low = per_token(r)
    kappa = np.minimum(o.arpo_scale * np.exp(o.arpo_rate * abs(high - low)) - 1, 1)
    margin = o.beta * (r.chosen - kappa * r.rejected)
    return -log_sigma(margin) + o.nll_weight * likelihood(r, o, "tokens")


def simper(r, s, o):
    high, low = per_token(r)
    return -np.exp(high) + np.exp(low)


def orpo(r, s, o):
    high, low = (np.log(np.exp(p) / (1 - np.exp(p))) for p in per_token(r))
    return likelihood(r, o, "responses") - o.beta * log_sigma(high - low)


def sft(r, s, o):
    """Its sum is divided by tokens, not by pairs."""
    return likelihood(r, o, "tokens") * r.chosen_lengths.mean()


def slic_hf(r, s, o):
    rank = np.maximum(0, o.slic_margin - r.chosen + r.rejected)
    return rank + o.nll_weight * -r.chosen


def unlikelihood(r, s, o):
    return -r.chosen + o.unlikelihood_alpha * r.rejected


def kto(r, s, o):
    z0 = max(0.0, np.mean((s.logps - s.ref_logps)[r.labels == 0]))
    x = o.beta * (r.logps - r.ref_logps - z0)
    desirable = o.desirable_weight * (1 - sigma(x))
    undesirable = o.undesirable_weight * (1 - sigma(-x))
    return np.select([r.labels == 1, r.labels == -1], [desirable, undesirable])


def apo_zero_unpaired(r, s, o):
    good = sigma(o.beta * (r.logps - r.ref_logps))
    return np.select([r.labels == 1, r.labels == -1], [1 - good, good])


def bco(r, s, o):
    x = o.beta * (r.logps - r.ref_logps) - o.reward_mean
    return np.select([r.labels == 1, r.labels == -1], [-log_sigma(x), -log_sigma(-x)])


def plackett_luce(r, s, o):
    losses = []
    for row, mask in zip(r.ratios, r.mask, strict=True):
        strength = np.exp(o.beta * row[mask])
        rest = [strength[k] / strength[k:].sum() for k in range(len(strength))]
        losses.append(-np.log(rest).sum())
    return np.array(losses)


def rated_lists(r, o):
    """Yields β log-ratios and softmax(s/α) of each list."""
    for ratios, ratings, mask in zip(r.ratios, r.ratings, r.mask, strict=True):
        share = np.exp(ratings[mask] / o.temperature)
        yield o.beta * ratios[mask], share / share.sum()


def infonca(r, s, o):
    logs = [(x - np.log(np.exp(x).sum()), p) for x, p in rated_lists(r, o)]
    return np.array([-(p * x).sum() for x, p in logs])


def nca(r, s, o):
    parts = rated_lists(r, o)
    return np.array(
        [-(p * log_sigma(x)).sum() - log_sigma(-x).mean() for x, p in parts]
    )


def bradley_terry(r, s, o):
    centered = o.centering * (r.chosen + r.rejected) ** 2
    return -log_sigma(r.chosen - r.rejected - r.margins) + centered


FORMULAS = {
    "dpo": lambda r, s, o: flipped(o.beta * delta(r, o), o),
    "ipo": lambda r, s, o: (delta(r, o) - 1 / (2 * o.beta)) ** 2,
    "hinge": lambda r, s, o: np.maximum(0, 1 - o.beta * delta(r, o)),
    "exo_pair": exo_pair,
    "robust": robust,
    "discopop": discopop,
    "nca_pair": nca_pair,
    "bco_pair": bco_pair,
    "sppo_hard": sppo_hard,
    "sppo": sppo,
    "aot": aot,
    "aot_unpaired": aot_unpaired,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "dpop": dpop,
    "r_dpo": r_dpo,
    "tdpo1": tdpo1,
    "tdpo2": tdpo2,
    "beta_dpo": beta_dpo,
    "cal_dpo": cal_dpo,
    "odpo": odpo,
    "mmpo": mmpo,
    "rpo": rpo,
    "rebel": rebel,
    "chi_po": chi_po,
    "dpo_shift": dpo_shift,
    "d2po": lambda r, s, o: flipped(o.beta * delta(r, o), o),
    "sampo": lambda r, s, o: flipped(o.beta * delta(r, o), o),
    "alpha_dpo": alpha_dpo,
    "dr_dpo": dr_dpo,
    "simpo": simpo,
    "alpha_po": alpha_po,
    "simper": simper,
    "cpo": cpo,
    "arpo": arpo,
    "orpo": orpo,
    "slic_hf": slic_hf,
    "unlikelihood": unlikelihood,
    "sft": sft,
    "kto": kto,
    "apo_zero_unpaired": apo_zero_unpaired,
    "bco": bco,
    "plackett_luce": plackett_luce,
    "infonca": infonca,
    "nca": nca,
    "bradley_terry": bradley_terry,
}
