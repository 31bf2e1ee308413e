"""Pure functions of log-probs, and one table of their names.

A row of the table says what its function is a function of (δ, two log-ratios, pairs,
single responses, rankings, scores: see `Loss.of`). The function returns f32[N]
unreduced: the options of a loss are exactly keyword-only parameters, so the
configuration can refuse an option that the chosen loss does not use. This room knows
nothing of models, data or optimizers.
"""

from collections.abc import Mapping

from dpo_jax import markdown
from dpo_jax.errors import known
from dpo_jax.losses import (
    batch,
    free,
    lists,
    pairwise,
    ratios,
    running,
    scores,
    singles,
    supervised,
)
from dpo_jax.losses.loss import Bound as Bound
from dpo_jax.losses.loss import Loss, LossFn, Running, options
from dpo_jax.losses.loss import keywords as keywords

LossTable = Mapping[str, Loss | LossFn]


def find(name: str, table: LossTable) -> Loss:
    """Looks a loss up; a bare function counts as a `Loss` with a reference.

    Raises:
      ConfigError: if the table has no such name.
    """
    row = table[known("loss.name", name, table)]
    return row if isinstance(row, Loss) else Loss(row)


REWARDS = Running(
    running.REWARDS, running.update_pair_rewards, where={"baseline": "running"}
)
SINGLE_REWARDS = Running(running.REWARDS, running.update_rewards)
GAPS = Running(running.GAPS, running.update_gap)
SPREADS = Running(running.SPREADS, running.update_spread)

LOSSES: dict[str, Loss | LossFn] = {
    "dpo": Loss(
        pairwise.dpo,
        "−(1−ε) log σ(βδ) − ε log σ(−βδ)",
        "Rafailov et al. 2023, arXiv:2305.18290 eq. 7; ε > 0: cDPO",
        of="delta",
    ),
    "ipo": Loss(
        pairwise.ipo,
        "(δ − 1/(2β))²",
        "Azar et al. 2023, arXiv:2310.12036 eq. 17",
        of="delta",
    ),
    "hinge": Loss(
        pairwise.hinge,
        "max(0, 1 − βδ)",
        "SLiC arXiv:2305.10425, RSO arXiv:2309.06657",
        usual={"beta": 0.05},
        of="delta",
    ),
    "exo_pair": Loss(
        pairwise.exo_pair,
        "σ(βδ)[log σ(βδ) − log(1−ε)] + σ(−βδ)[log σ(−βδ) − log ε]",
        "EXO, arXiv:2402.00856; its code has log ε = −10",
        usual={"label_smoothing": 4.54e-5},
        positive=("label_smoothing",),
        of="delta",
    ),
    "robust": Loss(
        pairwise.robust,
        "[−(1−ε) log σ(βδ) + ε log σ(−βδ)] / (1 − 2ε)",
        "rDPO, arXiv:2403.00409",
        usual={"label_smoothing": 0.1},
        of="delta",
    ),
    "discopop": Loss(
        pairwise.discopop,
        "(1−m)(−log σ(x)) + m e^(−x), x = βδ, m = σ(x/τ)",
        "DiscoPOP, arXiv:2406.08414",
        usual={"beta": 0.05},
        of="delta",
    ),
    "nca_pair": Loss(
        ratios.nca_pair,
        "−log σ(βa) − ½ log σ(−βa) − ½ log σ(−βb)",
        "NCA, arXiv:2402.05369",
        usual={"beta": 0.01},
        of="ratios",
    ),
    "bco_pair": Loss(
        ratios.bco_pair,
        "−log σ(βa − m) − log σ(−(βb − m)), m = 0 or the running mean of rewards",
        "BCO, arXiv:2404.04656",
        usual={"beta": 0.01},
        running=REWARDS,
        of="ratios",
    ),
    "sppo_hard": Loss(
        ratios.sppo_hard,
        "(a − 1/(2β))² + (b + 1/(2β))²",
        "SPPO, arXiv:2405.00675; twice its official code",
        usual={"beta": 1e-3},
        of="ratios",
    ),
    "sppo": Loss(
        ratios.sppo,
        "½[(a − (s_w − ½)/β)² + (b − (s_l − ½)/β)²], s the data's probabilities to win",
        "SPPO, arXiv:2405.00675",
        usual={"beta": 1e-3},
        columns=("ratings",),
    ),
    "aot": Loss(
        batch.aot,
        "mean over ranks of −(1−ε) log σ(βu) − ε log σ(−βu), "
        "u = sort(pw − pl) − sort(rw − rl)",
        "AOT, arXiv:2406.05882",
        couples=True,
    ),
    "aot_unpaired": Loss(
        batch.aot_unpaired,
        "as `aot` with u = sort(a) − sort(b)",
        "AOT, arXiv:2406.05882",
        couples=True,
    ),
    "apo_zero": Loss(
        ratios.apo_zero,
        "(1 − σ(βa)) + σ(βb)",
        "APO, arXiv:2408.06266 eq. 7",
        of="ratios",
    ),
    "apo_down": Loss(
        ratios.apo_down,
        "σ(βa) + 1 − σ(β(a − b))",
        "APO, arXiv:2408.06266 eq. 8",
        of="ratios",
    ),
    "dpop": Loss(
        ratios.dpop,
        "−log σ(β[Δ − λ max(0, rw − pw)])",
        "Smaug, arXiv:2402.13228",
        of="ratios",
    ),
    "r_dpo": Loss(
        ratios.r_dpo, "−log σ(βΔ + α(nw − nl))", "R-DPO, arXiv:2403.19159 eq. 9"
    ),
    "tdpo1": Loss(
        ratios.tdpo1,
        "−log σ(β[Δ − (D_l − D_w)]), D = Σ_t KL(ref‖π)",
        "TDPO, arXiv:2404.11999",
        columns=("kls",),
    ),
    "tdpo2": Loss(
        ratios.tdpo2,
        "−log σ(β[Δ − α(D_l − sg D_w)]), D = Σ_t KL(ref‖π)",
        "TDPO, arXiv:2404.11999",
        columns=("kls",),
    ),
    "beta_dpo": Loss(
        batch.beta_dpo,
        "−log σ(β'Δ) on pairs drawn near M, β' = max(1e-3, β(1 + c(mean Δ − M)))",
        "β-DPO, arXiv:2407.08639",
        couples=True,
        running=GAPS,
    ),
    "cal_dpo": Loss(
        ratios.cal_dpo,
        "−log σ(Δ) + ½[(a − 1/(2β))² + (b + 1/(2β))²]",
        "Cal-DPO, arXiv:2412.14516",
        usual={"beta": 1e-3},
        of="ratios",
    ),
    "odpo": Loss(
        ratios.odpo,
        "−log σ(βΔ − α log(s_w − s_l)), s the data's ratings",
        "ODPO, arXiv:2402.10571",
        usual={"beta": 0.5},
        columns=("ratings",),
    ),
    "mmpo": Loss(
        ratios.mmpo,
        "−p log σ(βΔ) − (1−p) log σ(−βΔ), p = σ(γ(s_w − s_l))",
        "MMPO, arXiv:2410.03145",
        usual={"beta": 0.01, "mmpo_gamma": 2.2},
        columns=("ratings",),
    ),
    "rpo": Loss(
        ratios.rpo,
        "KL(σ(y)‖σ(x)), KL(σ(x)‖σ(y)) or (x − y)², x = βΔ, y = η(s_w − s_l)",
        "reward-aware preference optimization, arXiv:2406.11704",
        columns=("ratings",),
    ),
    "rebel": Loss(
        ratios.rebel,
        "(Δ − η(s_w − s_l))²",
        "REBEL, arXiv:2404.16767",
        columns=("ratings",),
    ),
    "chi_po": Loss(
        ratios.chi_po,
        "−log σ(clip[β(e^a + a) − β(e^b + b), ±2R])",
        "χPO, arXiv:2407.13399",
        of="ratios",
    ),
    "dpo_shift": Loss(
        ratios.dpo_shift,
        "−log σ(β(a − λb)), λ fixed or along a line to `shift_end`",
        "DPO-Shift, arXiv:2502.07599",
        usual={"beta": 0.01, "shift_lambda": 0.95},
        of="ratios",
    ),
    "d2po": Loss(
        pairwise.dpo,
        "`dpo` on sums with weight γ^t on token t",
        "D²PO, arXiv:2502.14340; its code counts t from 1: β there is βγ here",
        token_weights="d2po",
        of="delta",
    ),
    "sampo": Loss(
        pairwise.dpo,
        "`dpo` on min(nw, nl) random tokens of each response",
        "SamPO, arXiv:2406.10957; its code draws anew for the reference",
        token_weights="sampo",
        of="delta",
    ),
    "alpha_dpo": Loss(
        batch.alpha_dpo,
        "−log σ(β{(p̄w − p̄l) − sg[γ/β + α(g − μ)/s]}), g = ā − b̄, running μ, s",
        "α-DPO, arXiv:2410.10148",
        usual={"beta": 2.5, "gamma": 1.5, "alpha": 0.2},
        running=SPREADS,
        means=True,
    ),
    "dr_dpo": Loss(
        batch.dr_dpo,
        "−β' log mean exp(log σ(βΔ)/β')",
        "Dr. DPO, arXiv:2407.07880",
        couples=True,
    ),
    "simpo": Loss(
        free.simpo,
        "−(1−ε) log σ(x) − ε log σ(−x), x = β(p̄w − p̄l) − γ",
        "SimPO, arXiv:2405.14734 eq. 6",
        reference=False,
        usual={"beta": 2.0},
        of="mean_logps",
        means=True,
    ),
    "alpha_po": Loss(
        free.alpha_po,
        "`simpo` with (1 − e^(−α p̄))/α in place of p̄",
        "AlphaPO, arXiv:2501.03884",
        reference=False,
        usual={"beta": 2.0},
        of="mean_logps",
        means=True,
    ),
    "simper": Loss(
        free.simper,
        "e^p̄l − e^p̄w",
        "SimPER, arXiv:2502.00883",
        reference=False,
        of="mean_logps",
        means=True,
    ),
    "cpo": Loss(
        free.cpo,
        "−log σ(β(pw − pl)) + λ NLL, NLL = −log π(chosen), mean over tokens",
        "CPO, arXiv:2401.08417 as its code has it; the paper's NLL: `sum`",
        reference=False,
    ),
    "arpo": Loss(
        free.arpo,
        "`cpo` with κ pl in place of pl, κ = min(η₁ e^(η₂ abs(p̄w − p̄l)) − 1, 1)",
        "X-ALMA, arXiv:2410.03115",
        reference=False,
    ),
    "orpo": Loss(
        free.orpo,
        "NLL − β log σ(log odds(p̄w) − log odds(p̄l)), NLL = −p̄w",
        "ORPO, arXiv:2403.07691 eqs. 6–7; its code's NLL: `whole`",
        reference=False,
        means=True,
    ),
    "slic_hf": Loss(
        free.slic_hf,
        "max(0, δ₀ − pw + pl) − λ pw",
        "SLiC-HF, arXiv:2305.10425",
        reference=False,
        of="logps",
    ),
    "unlikelihood": Loss(
        free.unlikelihood,
        "−pw + α pl",
        "baseline of arXiv:2305.18290 §6",
        reference=False,
        of="logps",
    ),
    "sft": Loss(
        supervised.sft,
        "−log π(chosen), mean over tokens or responses",
        "preferred-FT, arXiv:2305.18290 §6; IRPO's term, arXiv:2404.19733: `responses`",
        reference=False,
        per="chosen_tokens",
    ),
    "kto": Loss(
        singles.kto,
        "λ_D(1 − σ(β(a − z₀))) or λ_U(1 − σ(β(z₀ − b))), "
        "z₀ = max(0, mean mismatched log-ratio)",
        "KTO, arXiv:2402.01306",
        of="singles",
        per="singles",
        couples=True,
        columns=("mismatched",),
    ),
    "apo_zero_unpaired": Loss(
        singles.apo_zero_unpaired,
        "1 − σ(βa) or σ(βb)",
        "APO, arXiv:2408.06266 eq. 7, one response at a time",
        of="singles",
        per="singles",
    ),
    "bco": Loss(
        singles.bco,
        "−log σ(βa − m) or −log σ(−(βb − m)), m the running mean of rewards",
        "BCO, arXiv:2404.04656",
        of="singles",
        per="singles",
        usual={"beta": 0.01},
        running=SINGLE_REWARDS,
    ),
    "plackett_luce": Loss(
        lists.plackett_luce,
        "−Σ_k log[e^(βr_k) / Σ_{j≥k} e^(βr_j)]",
        "arXiv:2305.18290 appendix A.3",
        of="lists",
        per="lists",
    ),
    "infonca": Loss(
        lists.infonca,
        "−Σ softmax(s/α) · log softmax(βr), s the data's ratings",
        "InfoNCA, arXiv:2402.05369",
        of="lists",
        per="lists",
        usual={"beta": 0.01},
        columns=("ratings",),
    ),
    "nca": Loss(
        lists.nca,
        "−Σ softmax(s/α) · log σ(βr) − mean log σ(−βr), s the data's ratings",
        "NCA, arXiv:2402.05369",
        of="lists",
        per="lists",
        usual={"beta": 0.01},
        columns=("ratings",),
    ),
    "bradley_terry": Loss(
        scores.bradley_terry,
        "−log σ(s_w − s_l − margin) + c(s_w + s_l)²",
        "reward model; margin arXiv:2307.09288, c arXiv:2312.09244",
        reference=False,
        of="scores",
    ),
}


def as_markdown(table: LossTable) -> str:
    """Renders the table of the documentation."""
    rows = []
    for name in table:
        row = find(name, table)
        used = ", ".join(f"`{option}`" for option in options(row)) or "–"
        rows.append((f"`{name}`", row.formula, used, row.source))
    return markdown.table(("name", "loss", "options", "source"), rows)
