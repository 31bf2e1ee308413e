"""Presets of settings that were released with code or models, and of no paper's table.

α-DPO's and β-DPO's momentum acts on each part of an accumulated batch there; here it is
that of a step: .9 over α-DPO's 16 parts is .185 a step.
"""

from typing import Any

from dpo_jax.configs._preset import (
    COMMON,
    REFERENCE_REPO,
    SIMPO,
    ULTRAFEEDBACK,
    Preset,
    at,
    within,
)

ALPHA_DPO = {**ULTRAFEEDBACK, "loss.name": "alpha_dpo"}
DPO_SHIFT = {
    **COMMON,
    "loss.name": "dpo_shift",
    "loss.beta": 0.01,
    "optimizer.lr": 5e-7,
    **within(2048, 1792),
}
DPO_NORM = {  # of Tülu 3 and OLMo 3
    **COMMON,
    "loss.name": "dpo",
    "loss.normalize": "mean",
    "loss.beta": 5.0,
    "optimizer.schedule": "linear",
    "train.epochs": 1.0,
}


def alpha_dpo(beta: float, gamma: float, alpha: float, lr: float) -> dict[str, Any]:
    """Sets what differs between the runs of α-DPO; γ is β times theirs."""
    loss = {"loss.beta": beta, "loss.gamma": gamma, "loss.alpha": alpha}
    return {**ALPHA_DPO, **loss, "optimizer.lr": lr}


RELEASED: dict[str, Preset] = {
    "alpha_dpo_llama3_instruct": Preset(
        "arXiv:2410.10148, official config of Llama-3-8B-Instruct: γ/β .6",
        alpha_dpo(2.5, 1.5, 0.2, 1e-6),
    ),
    "alpha_dpo_llama3_instruct_v2": Preset(
        "arXiv:2410.10148, official config of Llama-3-8B-Instruct v2: γ/β .4",
        alpha_dpo(10.0, 4.0, 0.2, 1e-6),
    ),
    "alpha_dpo_mistral_instruct": Preset(
        "arXiv:2410.10148, official config of Mistral-7B-Instruct: γ/β .15",
        alpha_dpo(2.5, 0.375, 0.05, 6e-7),
    ),
    "alpha_dpo_gemma2_it": Preset(
        "arXiv:2410.10148, official config of Gemma-2-9B-it: γ/β .4",
        alpha_dpo(10.0, 4.0, 0.05, 8e-7),
    ),
    "cal_dpo": Preset(
        "arXiv:2412.14516, official `run/*.sh`; its yaml has β .002",
        {
            "loss.name": "cal_dpo",
            "loss.beta": 1e-3,
            "optimizer.lr": 5e-7,
            "optimizer.schedule": "cosine",
            "optimizer.warmup_share": 0.1,
            **within(1024, 512),
        },
    ),
    "mmpo": Preset(
        "arXiv:2410.03145, official runs; γ 2.2, .3 or 1.1 by data",
        {
            "loss.name": "mmpo",
            "loss.beta": 0.01,
            "loss.mmpo_gamma": 2.2,
            "optimizer.lr": 5e-7,
            "optimizer.warmup_share": 0.3,
            **within(1024, 512),
        },
    ),
    "odpo": Preset(
        "arXiv:2402.10571, official TL;DR run; IMDb has β .7, α .5, toxicity .05 and 1",
        {
            **REFERENCE_REPO,
            "loss.name": "odpo",
            "loss.beta": 0.5,
            "loss.odpo_alpha": 1.0,
        },
        ours=("batch.pairs", "train.epochs", *within(512, 256)),
    ),
    "dpo_shift": Preset(
        "arXiv:2502.07599, released models: λ .95; the yaml has .7",
        {**DPO_SHIFT, "loss.shift_lambda": 0.95},
    ),
    "dpo_shift_rising": Preset(
        "arXiv:2502.07599, official `run.sh`, `increase_linear`: λ from .95, or from "
        ".75 or .85, to 1",
        {**DPO_SHIFT, "loss.shift_lambda": 0.95, "loss.shift_end": 1.0},
    ),
    "dpo_shift_falling": Preset(
        "arXiv:2502.07599, official `run.sh`, `decrease_linear`: λ from 1 to .95, or "
        "to .75 or .85",
        {**DPO_SHIFT, "loss.shift_lambda": 1.0, "loss.shift_end": 0.95},
    ),
    "dr_dpo": Preset(
        "arXiv:2407.07880, official code, a fork of DPO's; its log-mean-exp is over 8 "
        "pairs of a device and part",
        {
            **REFERENCE_REPO,
            "loss.name": "dr_dpo",
            "loss.beta": 0.1,
            "loss.dr_beta": 1.0,
        },
    ),
    "tulu3_70b": Preset(
        "arXiv:2411.15124, official `tulu3_dpo_70b.yaml`; prompts have no limit of "
        "their own",
        {**DPO_NORM, "optimizer.lr": 2e-7, **within(2048, 2047)},
    ),
    "olmo3_7b_instruct": Preset(
        "OLMo 3, open-instruct `scripts/train/olmo3/7b_instruct_dpo.sh` on 4 nodes of "
        "8 devices; the loss of Tülu 3 (arXiv:2411.15124)",
        {**DPO_NORM, "optimizer.lr": 1e-6, **within(16384, 16383)},
    ),
    "olmo3_7b_think": Preset(
        "OLMo 3, open-instruct `scripts/train/olmo3/7b_think_dpo.sh`; the loss of "
        "Tülu 3 (arXiv:2411.15124)",
        {**DPO_NORM, "optimizer.lr": 8e-8, **within(16384, 16383)},
    ),
    "olmo3_32b_instruct": Preset(
        "OLMo 3, open-instruct `scripts/train/olmo3/32b_instruct_dpo.sh` on 8 nodes of "
        "8 devices; the loss of Tülu 3 (arXiv:2411.15124)",
        {**DPO_NORM, "optimizer.lr": 1e-6, **within(8192, 8191)},
    ),
    "olmo3_32b_think": Preset(
        "OLMo 3, open-instruct `scripts/train/olmo3/32b_think_dpo.sh` on 16 nodes of 8 "
        "devices, of whose learning rates 7e-8, 8e-8 and 9e-8 this is the second; the "
        "loss of Tülu 3 (arXiv:2411.15124)",
        {**DPO_NORM, "optimizer.lr": 8e-8, **within(8192, 8191)},
    ),
    "cpo_simpo": Preset(
        "arXiv:2401.08417 with arXiv:2405.14734, official "
        "`llama-3-8b-instruct-cpo-simpo.yaml`",
        {
            **SIMPO,
            "loss.name": "simpo+sft",
            "loss.weights": (1.0, 0.05),
            "loss.beta": 10.0,
            "loss.gamma": 5.4,
            "optimizer.lr": 1e-6,
        },
    ),
    "llama3": Preset(
        "arXiv:2407.21783 §4.1.4: β .1, likelihood of the chosen response times .2; of "
        "special tokens, which it masks, all count here",
        {
            "loss.name": "dpo+sft",
            "loss.weights": (1.0, 0.2),
            "loss.likelihood": "responses",
            "loss.beta": 0.1,
            **at(1e-5, 128),
        },
        ours=("batch.pairs",),
    ),
}
