"""Settings of the papers that followed DPO (arXiv:2305.18290), one preset each.

    python -m dpo_jax train --config=configs/papers.py:preset=simpo_llama3_base \
        --workdir=runs/simpo --config.model.path=MODEL --config.data.train=PAIRS.jsonl

`preset=NAME` takes a name of `PRESETS` below, where each stands with its source.
**What a preset sets is published** at that place, or is the method itself (its loss,
its objective). **What it does not set is not stated** there, or was not found, and is
our choice, `CHOSEN`: AdamW at 5e-7 along a cosine after 10 % of the steps, clip 1,
batch 128, 1 epoch, 1024 tokens of which 512 prompt; `open_keys(NAME)` lists those keys.
"One of" in a source names a published grid whose best is not known to us.

Here full weights are trained: a learning rate published for adapters (`cpo`) is too
high for them. Data come as for `configs/dpo.py`; `kto` and `bco` read labels,
`plackett_luce` rankings, `reward_model_margin` ratings. Losses with a reference start
where policy and reference are equal: DPO and its kin at ln 2 = 0.6931472, IPO and SPPO
at their squared targets. The scores that SimPO's setups and baselines should reach are
in table 4 of arXiv:2405.14734. This project has not been timed on an accelerator; hours
will stand here once measured.
"""

from typing import Any, NamedTuple

from dpo_jax import schema
from dpo_jax.config import parse_arg
from dpo_jax.errors import ConfigError, unknown
from dpo_jax.schema import Config

CHOSEN: dict[str, Any] = {  # where a paper is silent
    "optimizer.name": "adamw",
    "optimizer.lr": 5e-7,
    "optimizer.schedule": "cosine",
    "optimizer.warmup_steps": 0,
    "optimizer.warmup_share": 0.1,
    "optimizer.clip": 1.0,
    "batch.pairs": 128,
    "train.epochs": 1.0,
    "data.max_tokens": 1024,
    "data.max_prompt_tokens": 512,
}


class Preset(NamedTuple):
    """A published setting.

    Attributes:
      source: where it was published.
      keys: `section.key` -> value.
    """

    source: str
    keys: dict[str, Any]


def within(tokens: int, prompt: int) -> dict[str, int]:
    """Limits a prompt with one response, and the prompt."""
    return {"data.max_tokens": tokens, "data.max_prompt_tokens": prompt}


def at(lr: float, pairs: int) -> dict[str, float]:
    """Sets the learning rate and the pairs a step."""
    return {"optimizer.lr": lr, "batch.pairs": pairs}


WITHOUT = {"ref.mode": "none"}
COMMON = {  # what many runs on 7B and 8B models share
    "optimizer.name": "adamw",
    "optimizer.schedule": "cosine",
    "optimizer.warmup_share": 0.1,
    "batch.pairs": 128,
}
ULTRAFEEDBACK = {**COMMON, **within(2048, 1800), "train.epochs": 1.0}  # SimPO's runs
SIMPO = {**ULTRAFEEDBACK, **WITHOUT, "loss.name": "simpo"}
APO = {**at(2e-7, 64), **within(1024, 512), "loss.beta": 0.1}
BCO = {**at(5e-7, 128), **within(2048, 1536), "loss.beta": 0.01}

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
        "arXiv:2402.00856 app. B and its code: IMDb with prefixes of 10 tokens",
        {
            "loss.name": "exo_pair",
            "loss.beta": 0.1,
            "loss.label_smoothing": 1e-3,
            **at(1e-6, 64),
        },
    ),
    "discopop": Preset(
        "arXiv:2406.08414 app. B.1 and E, by TRL's paper index",
        {
            "loss.name": "discopop",
            "loss.beta": 0.05,
            "loss.discopop_tau": 0.05,
            **at(5e-7, 64),
        },
    ),
    "tulu3": Preset(
        "arXiv:2411.15124, Tülu 3 8B: DPO on length-normalised log-ratios",
        {
            **COMMON,
            "loss.name": "dpo",
            "loss.normalize": "mean",
            "loss.beta": 5.0,
            "optimizer.lr": 5e-7,
            "optimizer.schedule": "linear",
            "train.epochs": 1.0,
            "data.max_tokens": 2048,
        },
    ),
    "sampo": Preset(
        "arXiv:2406.10957, model card of Llama-3-8B-Instruct-Iterative-SamPO",
        {
            **COMMON,
            "loss.name": "sampo",
            "loss.beta": 0.1,
            "optimizer.lr": 4e-7,
            "optimizer.schedule": "linear",
        },
    ),
    "d2po": Preset(
        "arXiv:2502.14340: γ .98",
        {"loss.name": "d2po", "loss.decay": 0.98},
    ),
    "wpo": Preset(
        "arXiv:2406.11827, official `training_configs/mistral-base.yaml`; "
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
        "arXiv:2407.08639, HH with Pythia-2.8B, official `config/config.yaml`; "
        "the batch is given on its command line",
        {
            "loss.name": "beta_dpo",
            "loss.beta": 0.1,
            "loss.beta_scale": 0.6,
            "loss.keep_fraction": 0.8,
            "optimizer.name": "rmsprop",
            "optimizer.lr": 5e-7,
            "optimizer.schedule": "constant",
            "optimizer.warmup_steps": 150,
            "optimizer.warmup_share": 0.0,
            "optimizer.clip": 10.0,
            "train.epochs": 1.0,
            **within(512, 256),
            "data.truncate_response": "fixed",
        },
    ),
    "aot": Preset(
        "arXiv:2406.05882: the paper adds no hyper-parameter to DPO's",
        {"loss.name": "aot"},
    ),
}

RATIOS: dict[str, Preset] = {  # losses of both log-ratios
    "nca": Preset(
        "arXiv:2402.05369 app. C, by TRL's paper index",
        {"loss.name": "nca_pair", "loss.beta": 0.01, **at(5e-6, 32)},
    ),
    "sppo": Preset(
        "arXiv:2405.00675 app. C, by TRL's paper index; 1/η = 1e-3",
        {"loss.name": "sppo_hard", "loss.beta": 1e-3, **at(5e-7, 64)},
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
        "arXiv:2404.11999: α .5, β .1",
        {"loss.name": "tdpo2", "loss.beta": 0.1, "loss.tdpo_alpha": 0.5},
    ),
}

FREE: dict[str, Preset] = {  # without a reference
    "simpo_mistral_base": Preset(
        "arXiv:2405.14734 v3, Mistral-Base",
        {**SIMPO, "loss.beta": 2.0, "loss.gamma": 1.6, "optimizer.lr": 3e-7},
    ),
    "simpo_mistral_instruct": Preset(
        "arXiv:2405.14734 v3, Mistral-Instruct",
        {**SIMPO, "loss.beta": 2.5, "loss.gamma": 0.3, "optimizer.lr": 5e-7},
    ),
    "simpo_llama3_base": Preset(
        "arXiv:2405.14734 v3, Llama3-Base",
        {**SIMPO, "loss.beta": 2.0, "loss.gamma": 1.0, "optimizer.lr": 6e-7},
    ),
    "simpo_llama3_instruct": Preset(
        "arXiv:2405.14734 v3, Llama3-Instruct",
        {**SIMPO, "loss.beta": 2.5, "loss.gamma": 1.4, "optimizer.lr": 1e-6},
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
        "arXiv:2401.08417, official `runs/cpo_ft.sh`, which trains adapters; its "
        "schedule, 1/√step, is not among ours, nor its batch stated",
        {
            **WITHOUT,
            "loss.name": "cpo",
            "loss.beta": 0.1,
            "loss.nll_weight": 1.0,
            "optimizer.lr": 1e-4,
            "optimizer.weight_decay": 0.01,
            "optimizer.warmup_share": 0.01,
            "train.epochs": 1.0,
            **within(512, 256),
        },
    ),
    "orpo": Preset(
        "arXiv:2403.07691, official `scripts/run_mistral_orpo_beta.sh` on 4 "
        "devices; its schedule, 1/√step, is not among ours",
        {
            **WITHOUT,
            "loss.name": "orpo",
            "loss.beta": 0.1,
            "optimizer.lr": 5e-6,
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
        "arXiv:2411.10442: .8 DPO + .2 BCO + likelihood",
        {
            "loss.name": "dpo+bco_pair+sft",
            "loss.weights": (0.8, 0.2, 1.0),
            "loss.baseline": "running",
        },
    ),
    "irpo": Preset(
        "arXiv:2404.19733; its likelihood is averaged per response, ours not",
        {
            "loss.name": "dpo+sft",
            "loss.weights": (1.0, 1.0),
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
        "arXiv:2402.01306: λ_D n_D / (λ_U n_U) between 1 and 1.5",
        {
            "objective": "unpaired",
            "loss.name": "kto",
            "loss.beta": 0.1,
            "loss.desirable_weight": 1.0,
            "loss.undesirable_weight": 1.0,
            "optimizer.name": "adamw",
            "optimizer.lr": 5e-6,
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

PRESETS: dict[str, Preset] = {**MARGINS, **RATIOS, **FREE, **MIXTURES, **OTHERS}


def get_config(arg: str | None = None) -> Config:
    """Returns the configuration of a preset, by default SimPO's for Llama-3-Base."""
    preset = parse_arg(arg, preset="simpo_llama3_base")["preset"]
    if preset not in PRESETS:
        raise ConfigError(unknown("preset", preset, PRESETS))
    config = schema.base().lock()
    config.update_from_flattened_dict({**CHOSEN, **PRESETS[preset].keys})
    return config


def open_keys(preset: str) -> list[str]:
    """Names the keys of `CHOSEN` that a preset's source does not state."""
    return [key for key in CHOSEN if key not in PRESETS[preset].keys]
