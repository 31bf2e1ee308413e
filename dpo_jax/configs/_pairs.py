"""Presets of losses of pairs with a reference."""

from dpo_jax.configs._preset import (
    APO,
    BCO,
    COMMON,
    REFERENCE_REPO,
    ULTRAFEEDBACK,
    Preset,
    at,
    within,
)

MARGINS: dict[str, Preset] = {  # losses of δ
    "ipo": Preset(
        "arXiv:2310.12036 §5.4, a bandit of 3 actions: τ one of .1, .5, 1",
        {"loss.name": "ipo", "loss.beta": 0.1},
    ),
    "cdpo": Preset(
        "Mitchell 2023 (A note on DPO with noisy preferences): the loss, no numbers; "
        "ε .1 is our choice",
        {"loss.name": "dpo", "loss.label_smoothing": 0.1},
    ),
    "rdpo": Preset(
        "arXiv:2403.00409 §6, app. B, by TRL's index; an older one says β .01",
        {
            "loss.name": "robust",
            "loss.beta": 0.1,
            "loss.label_smoothing": 0.1,
            **at(1e-3, 16),
            **within(512, 128),
        },
    ),
    "rso": Preset(
        "arXiv:2309.06657: the hinge at γ = β = .05",
        {"loss.name": "hinge", "loss.beta": 0.05},
    ),
    "exo": Preset(
        "arXiv:2402.00856 app. B, official `exp/imdb_exp/train_exo.sh`: IMDb with "
        "prefixes of 10 tokens; log ε = −10 stands in its loss.py (TRL has ε 1e-3)",
        {
            "loss.name": "exo_pair",
            "loss.beta": 0.1,
            "loss.label_smoothing": 4.54e-5,
            "optimizer.schedule": "cosine",
            "optimizer.warmup_steps": 0,
            "optimizer.warmup_share": 0.0,
            "train.epochs": 1.0,
            **at(1e-6, 64),
            **within(512, 256),
        },
        ours=("data.max_prompt_tokens",),
    ),
    "discopop": Preset(
        "arXiv:2406.08414 app. B.1 and E, official "
        "`recipes/zephyr-7b-gemma/gpo/config_full.yaml`; the batch by TRL's index",
        {
            "loss.name": "discopop",
            "loss.beta": 0.05,
            "loss.discopop_tau": 0.05,
            "optimizer.name": "adamw",
            "optimizer.schedule": "cosine",
            "optimizer.warmup_share": 0.1,
            "train.epochs": 2.0,
            **at(5e-7, 64),
            **within(1024, 512),
        },
    ),
    "tulu3": Preset(
        "arXiv:2411.15124, official `tulu3_dpo_8b.yaml`: DPO on length-normalised "
        "log-ratios; prompts have no limit of their own",
        {
            **COMMON,
            "loss.name": "dpo",
            "loss.normalize": "mean",
            "loss.beta": 5.0,
            "optimizer.lr": 5e-7,
            "optimizer.schedule": "linear",
            "train.epochs": 1.0,
            **within(2048, 2047),
        },
    ),
    "sampo": Preset(
        "arXiv:2406.10957, official `dpo.sh`; learning rate and batch by the card of "
        "Llama-3-8B-Instruct-Iterative-SamPO",
        {
            **COMMON,
            "loss.name": "sampo",
            "loss.beta": 0.1,
            "optimizer.lr": 4e-7,
            "optimizer.schedule": "linear",
            "train.epochs": 3.0,
            "data.max_tokens": 8192,
        },
    ),
    "d2po": Preset(
        "arXiv:2502.14340, official `examples/exp/llama3_full_d2po.yaml`, a template; "
        "its code counts tokens from 1, so its β .1 is .098 here",
        {
            "loss.name": "d2po",
            "loss.beta": 0.1,
            "loss.decay": 0.98,
            "optimizer.lr": 5e-6,
            "optimizer.schedule": "cosine",
            "optimizer.warmup_share": 0.1,
            "train.epochs": 3.0,
            "data.max_tokens": 2048,
        },
    ),
    "wpo": Preset(
        "arXiv:2406.11827, official `training_configs/mistral.yaml`; "
        "the weight is cut at 1 as in that code",
        {
            **COMMON,
            **within(1024, 512),
            "loss.name": "dpo",
            "loss.beta": 0.01,
            "loss.weighting": "wpo_clamped",
            "optimizer.lr": 5e-7,
            "train.epochs": 1.0,
        },
    ),
    "tr_dpo": Preset(
        "arXiv:2404.09656 as TRL's defaults have it: mix .6 every 512 steps",
        {"loss.name": "dpo", "ref.sync_every_steps": 512, "ref.sync_mix": 0.6},
    ),
    "beta_dpo": Preset(
        "arXiv:2407.08639, HH with Pythia-2.8B, official `config/config.yaml` and "
        "README; momentum .9 acts on each of its 2 parts of a step: .81 a step is the "
        "same",
        {
            **REFERENCE_REPO,
            "loss.name": "beta_dpo",
            "loss.beta": 0.1,
            "loss.beta_scale": 0.6,
            "loss.keep_fraction": 0.8,
            "loss.momentum": 0.9,
        },
    ),
    "aot": Preset(
        "arXiv:2406.05882: the paper adds no hyper-parameter to DPO's",
        {"loss.name": "aot"},
    ),
}

RATIOS: dict[str, Preset] = {  # losses of both log-ratios
    "nca": Preset(
        "arXiv:2402.05369 app. C, official `yamls/preference_qlora.yaml`, which trains "
        "4-bit adapters: a rate for them",
        {
            **COMMON,
            "loss.name": "nca_pair",
            "loss.beta": 0.01,
            "train.epochs": 1.0,
            **at(5e-6, 32),
            **within(1024, 512),
        },
    ),
    "sppo": Preset(
        "arXiv:2405.00675 app. C, official `scripts/pipeline.sh` and "
        "`config_full.yaml`; 1/η = 1e-3. With the data's probabilities: `sppo`",
        {
            "loss.name": "sppo_hard",
            "loss.beta": 1e-3,
            "optimizer.name": "rmsprop",
            "optimizer.schedule": "linear",
            "optimizer.warmup_share": 0.1,
            "optimizer.clip": 1.0,
            "train.epochs": 1.0,
            **at(5e-7, 64),
            **within(1024, 512),
        },
    ),
    "apo_zero": Preset(
        "arXiv:2408.06266 §5.2 and app. B.1, by TRL's paper index",
        {**APO, "loss.name": "apo_zero"},
    ),
    "apo_down": Preset(
        "arXiv:2408.06266 §5.2 and app. B.1, by TRL's paper index",
        {**APO, "loss.name": "apo_down"},
    ),
    "bco_pair": Preset(
        "arXiv:2404.04656 app. C, by TRL's paper index; with the running baseline",
        {**BCO, "loss.name": "bco_pair", "loss.baseline": "running"},
    ),
    "smaug": Preset(
        "arXiv:2402.13228 (DPO-Positive)",
        {"loss.name": "dpop", "loss.beta": 0.3, "loss.dpop_lambda": 50.0},
    ),
    "r_dpo": Preset(
        "arXiv:2403.19159 as a baseline of arXiv:2405.14734: β one of .01, .05, .1; "
        "α one of .05, .1, .5, 1",
        {
            **ULTRAFEEDBACK,
            "loss.name": "r_dpo",
            "loss.beta": 0.1,
            "loss.length_alpha": 0.1,
        },
    ),
    "tdpo2": Preset(
        "arXiv:2404.11999, official `config/config.yaml` and README",
        {
            **REFERENCE_REPO,
            "loss.name": "tdpo2",
            "loss.beta": 0.1,
            "loss.tdpo_alpha": 0.5,
            "optimizer.lr": 5e-6,
        },
    ),
}
