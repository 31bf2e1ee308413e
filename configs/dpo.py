"""Direct Preference Optimization, Rafailov et al. 2023 (arXiv:2305.18290).

    python -m dpo_jax train --config=configs/dpo.py --workdir=runs/dpo \
        --config.model.path=MODEL --config.data.train=PAIRS.jsonl

Presets, as in `--config=configs/dpo.py:preset=reference_repo`:

* `paper_default`: β .1, batch 64, RMSprop, lr 1e-6, 150 warm-up steps (appendix B).
* `reference_repo`: the same with lr 5e-7, clip 10, 512 tokens of which 256 prompt, as
  eric-mitchell/direct-preference-optimization's `config.yaml` has it.

The first loss is ln 2 = 0.6931472, because policy and reference start equal. This
project has not been timed on an accelerator; hours will stand here once measured.
"""

from configs import parts
from dpo_jax.config import Config, parse_arg
from dpo_jax.errors import ConfigError, unknown

PRESETS = ("paper_default", "reference_repo")


def get_config(arg: str | None = None) -> Config:
    """Returns the configuration of a preset; see the module's docstring."""
    preset = parse_arg(arg, preset="paper_default")["preset"]
    if preset not in PRESETS:
        raise ConfigError(unknown("preset", preset, PRESETS))
    config = parts.base()
    if preset == "reference_repo":
        config.optimizer.lr = 5e-7
        config.optimizer.clip = 10.0
        config.data.max_tokens = 512
        config.data.max_prompt_tokens = 256
        config.data.truncate_response = "fixed"
    return config.lock()
