"""Presets without a reference, of mixtures, and of all that is no pair."""

from dpo_jax.configs._preset import (
    BCO,
    COMMON,
    SIMPO,
    WITHOUT,
    Preset,
    at,
    within,
)

FREE: dict[str, Preset] = {  # without a reference
    "simpo_mistral_base": Preset(
        "arXiv:2405.14734, official `mistral-7b-base-simpo.yaml`: γ/β .8",
        {
            **SIMPO,
            "loss.beta": 2.0,
            "loss.gamma": 1.6,
            "optimizer.lr": 3e-7,
            **within(1024, 512),
        },
    ),
    "simpo_mistral_instruct": Preset(
        "arXiv:2405.14734, official `mistral-7b-instruct-simpo.yaml`: γ/β .1; the "
        "paper's v3 has γ .3",
        {**SIMPO, "loss.beta": 2.5, "loss.gamma": 0.25, "optimizer.lr": 5e-7},
    ),
    "simpo_llama3_base": Preset(
        "arXiv:2405.14734, official `llama-3-8b-base-simpo.yaml`: γ/β .5",
        {**SIMPO, "loss.beta": 2.0, "loss.gamma": 1.0, "optimizer.lr": 6e-7},
    ),
    "simpo_llama3_instruct": Preset(
        "arXiv:2405.14734, official `llama-3-8b-instruct-simpo.yaml`: γ/β .55; the "
        "paper's v3 has γ 1.4",
        {**SIMPO, "loss.beta": 2.5, "loss.gamma": 1.375, "optimizer.lr": 1e-6},
    ),
    "simpo_llama3_instruct_v2": Preset(
        "arXiv:2405.14734, official `llama-3-8b-instruct-simpo-v2.yaml`: γ/β .3",
        {**SIMPO, "loss.beta": 10.0, "loss.gamma": 3.0, "optimizer.lr": 1e-6},
    ),
    "simpo_gemma2_it": Preset(
        "arXiv:2405.14734, official `gemma-2-9b-it-simpo.yaml`: γ/β .5",
        {**SIMPO, "loss.beta": 10.0, "loss.gamma": 5.0, "optimizer.lr": 8e-7},
    ),
    "alpha_po_mistral_instruct": Preset(
        "arXiv:2501.03884 table 3, by TRL's paper index",
        {
            **WITHOUT,
            "loss.name": "alpha_po",
            "loss.beta": 2.5,
            "loss.gamma": 0.1,
            "loss.alpha_po_alpha": 0.25,
            "optimizer.lr": 7e-7,
        },
    ),
    "cpo": Preset(
        "arXiv:2401.08417, official `runs/cpo_ft.sh`, which trains adapters, on 8 "
        "processes; the likelihood is a mean over tokens, the paper's a sum",
        {
            **WITHOUT,
            "loss.name": "cpo",
            "loss.beta": 0.1,
            "loss.nll_weight": 1.0,
            "optimizer.lr": 1e-4,
            "optimizer.schedule": "inverse_sqrt",
            "optimizer.clip": 1.0,
            "batch.pairs": 16,
            "optimizer.weight_decay": 0.01,
            "optimizer.warmup_share": 0.01,
            "train.epochs": 1.0,
            **within(512, 256),
        },
    ),
    "orpo": Preset(
        "arXiv:2403.07691, official `scripts/run_mistral_orpo_beta.sh` on 4 "
        "devices; its likelihood runs over the prompt, too",
        {
            **WITHOUT,
            "loss.name": "orpo",
            "loss.beta": 0.1,
            "loss.likelihood": "whole",
            "optimizer.lr": 5e-6,
            "optimizer.schedule": "inverse_sqrt",
            "optimizer.clip": 1.0,
            "optimizer.warmup_steps": 200,
            "optimizer.warmup_share": 0.0,
            "batch.pairs": 32,
            "train.epochs": 5.0,
            **within(2048, 1792),
        },
    ),
    "slic_hf": Preset(
        "arXiv:2305.10425 as published at a conference §3.2, by TRL's paper index; "
        "margin one of .1, .5, 1, 2, λ one of .1, .5, 1, 10 in arXiv:2405.14734",
        {
            **WITHOUT,
            "loss.name": "slic_hf",
            "loss.slic_margin": 1.0,
            "loss.nll_weight": 1.0,
            **at(1e-4, 512),
        },
    ),
    "unlikelihood": Preset(
        "arXiv:2305.18290 §6.1, IMDb: α one of .05, .1, .5, 1",
        {**WITHOUT, "loss.name": "unlikelihood", "loss.unlikelihood_alpha": 0.5},
    ),
    "preferred_ft": Preset(
        "arXiv:2305.18290 §6: fine-tuning on the chosen responses",
        {**WITHOUT, "objective": "sft", "loss.name": "sft", "data.layout": "packed"},
    ),
}

MIXTURES: dict[str, Preset] = {
    "mpo": Preset(
        "arXiv:2411.10442, official `internvl2.0_mpo`: .8 DPO + .2 BCO + likelihood",
        {
            "loss.name": "dpo+bco_pair+sft",
            "loss.weights": (0.8, 0.2, 1.0),
            "loss.baseline": "running",
            "optimizer.schedule": "cosine",
            "optimizer.weight_decay": 0.05,
            "optimizer.warmup_share": 0.03,
            "train.epochs": 1.0,
            "data.max_tokens": 6144,
            **at(5e-6, 256),
        },
    ),
    "irpo": Preset(
        "arXiv:2404.19733: the likelihood is averaged per response",
        {
            "loss.name": "dpo+sft",
            "loss.weights": (1.0, 1.0),
            "loss.likelihood": "responses",
            "loss.beta": 0.1,
            "optimizer.name": "adamw",
            **at(7e-7, 16),
        },
    ),
    "rpo": Preset(
        "arXiv:2405.16436: DPO + .005 likelihood",
        {"loss.name": "dpo+sft", "loss.weights": (1.0, 0.005)},
    ),
}

OTHERS: dict[str, Preset] = {  # single responses, rankings, reward models
    "kto": Preset(
        "arXiv:2402.01306, HALOs' `config.yaml`, `kto.yaml`, `base_model.yaml`; "
        "λ_D n_D / (λ_U n_U) between 1 and 1.5",
        {
            **COMMON,
            "objective": "unpaired",
            "loss.name": "kto",
            "loss.beta": 0.1,
            "loss.desirable_weight": 1.0,
            "loss.undesirable_weight": 1.0,
            "optimizer.weight_decay": 0.01,
            "optimizer.eps": 1e-5,
            "optimizer.clip": 1.0,
            "train.epochs": 1.0,
            **at(5e-6, 32),
            **within(1250, 625),
        },
    ),
    "bco": Preset(
        "arXiv:2404.04656 app. C, by TRL's paper index",
        {**BCO, "objective": "unpaired", "loss.name": "bco"},
    ),
    "plackett_luce": Preset(
        "arXiv:2305.18290 app. A.3: the loss, no numbers",
        {"objective": "ranking", "loss.name": "plackett_luce"},
    ),
    "reward_model": Preset(
        "arXiv:2312.09244: scores centred with η .01",
        {
            **WITHOUT,
            "objective": "reward",
            "loss.name": "bradley_terry",
            "loss.centering": 0.01,
        },
    ),
    "reward_model_margin": Preset(
        "arXiv:2307.09288: a margin from the data's ratings, no centring",
        {
            **WITHOUT,
            "objective": "reward",
            "loss.name": "bradley_terry",
            "loss.margin": "data",
            "loss.centering": 0.0,
        },
    ),
}
