"""Settings of the papers that followed DPO (arXiv:2305.18290), one preset each.

    python -m dpo_jax train --config=configs/papers.py:preset=simpo_llama3_base \
        --workdir=runs/simpo --config.model.path=MODEL --config.data.train=PAIRS.jsonl

`preset=NAME` takes a name of `PRESETS` below, where each stands with its source.
**What a preset sets is published** at that place, or is the method itself (its loss,
its objective), but for its keys in `ours`; where paper and released code differ, it is
the code. **What it does not set is not stated** there, or was not found, and is our
choice, `CHOSEN`: AdamW at 5e-7 along a cosine after 10 % of the steps, clip 1,
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

from typing import Any

from dpo_jax import schema
from dpo_jax.config import parse_arg
from dpo_jax.configs._others import FREE, MIXTURES, OTHERS
from dpo_jax.configs._pairs import MARGINS, RATIOS
from dpo_jax.configs._preset import Preset
from dpo_jax.configs._released import RELEASED
from dpo_jax.errors import known
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


PRESETS: dict[str, Preset] = {
    **MARGINS,
    **RATIOS,
    **FREE,
    **MIXTURES,
    **OTHERS,
    **RELEASED,
}


def get_config(arg: str | None = None) -> Config:
    """Returns the configuration of a preset, by default SimPO's for Llama-3-Base."""
    given = parse_arg(arg, preset="simpo_llama3_base")
    preset = PRESETS[known("preset", given["preset"], PRESETS)]
    config = schema.base().lock()
    config.update_from_flattened_dict({**CHOSEN, **preset.keys})
    return config


def open_keys(preset: str) -> list[str]:
    """Names the keys of `CHOSEN` that a preset's source does not state."""
    source, keys, ours = PRESETS[preset]
    del source
    return [key for key in CHOSEN if key not in keys or key in ours]
