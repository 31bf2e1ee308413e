"""Direct Preference Optimization, Rafailov et al. 2023 (arXiv:2305.18290).

    python -m dpo_jax train --config=configs/dpo.py --workdir=runs/dpo \
        --config.model.path=MODEL --config.data.train=PAIRS.jsonl

Presets, as in `--config=configs/dpo.py:preset=reference_repo`:

* `paper_default`: β .1, batch 64, RMSprop, lr 1e-6, 150 warm-up steps (appendix B).
* `paper_tldr`: the same with β .5, as the paper has it for TL;DR.
* `reference_repo`: the same with lr 5e-7, clip 10, 512 tokens of which 256 prompt, as
  eric-mitchell/direct-preference-optimization's `config.yaml` has it.
* `trl`: the defaults of TRL 1.16's `DPOConfig`: β .1, AdamW at 1e-6 falling along a
  line without warm-up, clip 1, 3 epochs, 8 pairs a step, 1024 tokens. TRL cuts prompt
  and response as one; here, where the two are too long, the prompt is first cut to 512.
* `nplus_tldr`: β .05, lr 3e-6 along a cosine, 1 epoch of TL;DR's 92,832 pairs, from
  arXiv:2403.17031 (The N+ Implementation Details). Posts of 512 tokens and 638 in all
  are those of its reward model. Batch, warm-up and optimizer are our choice.
* `zephyr`: β .01, AdamW at 5e-7 along a cosine after 10 % of the steps, batch 128, 1
  epoch, 1024 tokens of which 512 prompt, as the alignment-handbook's
  `zephyr-7b-beta/dpo/config_full.yaml` on 8 devices. Clip 1 is its trainer's default.

What other papers published stands in `configs/papers.py`. The first loss is ln 2 =
0.6931472, because policy and reference start equal. This project has not been timed on
an accelerator; hours will stand here once measured.
"""

from typing import Any

from dpo_jax import schema
from dpo_jax.config import parse_arg
from dpo_jax.errors import known
from dpo_jax.schema import Config

PRESETS: dict[str, dict[str, Any]] = {  # what differs from the defaults
    "paper_default": {},
    "paper_tldr": {"loss.beta": 0.5},
    "reference_repo": {
        "optimizer.lr": 5e-7,
        "optimizer.clip": 10.0,
        "data.max_tokens": 512,
        "data.max_prompt_tokens": 256,
        "data.truncate_response": "fixed",
    },
    "trl": {
        "optimizer.name": "adamw",
        "optimizer.lr": 1e-6,
        "optimizer.schedule": "linear",
        "optimizer.warmup_steps": 0,
        "optimizer.clip": 1.0,
        "train.epochs": 3.0,
        "batch.pairs": 8,
        "data.join": "joint",
        "data.max_tokens": 1024,
        "data.max_prompt_tokens": 512,
        "data.truncate_prompt": "keep_start",
    },
    "nplus_tldr": {
        "loss.beta": 0.05,
        "optimizer.name": "adamw",
        "optimizer.lr": 3e-6,
        "optimizer.schedule": "cosine",
        "optimizer.warmup_steps": 0,
        "data.max_tokens": 638,
        "data.max_prompt_tokens": 512,
    },
    "zephyr": {
        "loss.beta": 0.01,
        "optimizer.name": "adamw",
        "optimizer.lr": 5e-7,
        "optimizer.schedule": "cosine",
        "optimizer.warmup_steps": 0,
        "optimizer.warmup_share": 0.1,
        "optimizer.clip": 1.0,
        "batch.pairs": 128,
        "data.max_tokens": 1024,
        "data.max_prompt_tokens": 512,
    },
}


def get_config(arg: str | None = None) -> Config:
    """Returns the configuration of a preset; see the module's docstring."""
    preset = parse_arg(arg, preset="paper_default")["preset"]
    config = schema.base().lock()
    config.update_from_flattened_dict(PRESETS[known("preset", preset, PRESETS)])
    return config
