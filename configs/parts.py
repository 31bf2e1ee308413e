"""Sections that the configurations share: every key, with its default.

Units stand in the names (`_steps`, `_tokens`) or in the comments. 0 or '' means "off"
or "chosen for you" where a comment says so.
"""

from ml_collections import ConfigDict

from dpo_jax.config import Config
from dpo_jax.options import LOSS_OPTIONS


def base() -> Config:
    """Returns every key with its default; not yet locked."""
    config: Config = ConfigDict()
    config.seed = 0
    config.objective = "preference"  # or 'sft', 'unpaired', 'ranking', 'reward'
    config.train = train()
    config.model = model()
    config.ref = ref()
    config.tokenizer = ConfigDict({"path": ""})  # '' = model.path, or the source's own
    config.data = data()
    config.batch = ConfigDict({"pairs": 64, "microbatches": 1})  # of the whole mesh
    config.loss = loss()
    config.optimizer = optimizer()
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})  # -1 = the rest
    config.eval = ConfigDict(
        {
            "every_steps": 0,  # 0 = before the first step and after the last
            "rollouts": 0,  # prompts to sample; needs a source with a true reward
        }
    )
    config.checkpoint = ConfigDict(
        {
            "every_steps": 500,  # 0 = after the last step only
            "keep": 2,
            "keep_best": "",  # an eval metric whose best step is kept as well
        }
    )
    config.log = ConfigDict({"every_steps": 1})
    return config


def train() -> Config:
    """Length of the run."""
    return ConfigDict(
        {
            "steps": 0,  # > 0 overrides epochs
            "epochs": 1.0,
            "on_nonfinite": "halt",  # or 'skip', at most 3 in a row
        }
    )


def model() -> Config:
    """The policy."""
    return ConfigDict(
        {
            "path": "",  # an HF folder or hub id
            "revision": "",  # of a hub id
            "preset": "",  # instead of path: train from scratch
            "dtype": "float32",  # of the computation; masters are float32
            "remat": "none",  # or 'elementwise', 'block': what is computed again
            "attention": "auto",  # or xla, cudnn (GPU), splash (TPU), dense
            "logits_chunk": 128,  # scored tokens per row whose logits are held at once
        }
    )


def ref() -> Config:
    """The reference."""
    return ConfigDict(
        {
            "path": "",  # '' = the initial policy
            "revision": "",
            "mode": "live",  # or 'cached' (its log-probs, from disk), 'none'
            "cache_dir": "",  # of 'cached'; '' = ref_cache beside the run folder
            "dtype": "",  # of its weights and computation; '' = model.dtype
            "sync_every_steps": 0,  # > 0: it follows the policy (TR-DPO); 0 = frozen
            "sync_mix": 0.6,  # ref ← (1 − mix)·ref + mix·policy; 1 = copy
        }
    )


def data() -> Config:
    """Where rows come from and how they become tokens."""
    return ConfigDict(
        {
            "train": "",  # .jsonl, .jsonl.gz, .parquet, a folder, or a source's name
            "eval": "",  # likewise; '' = none
            "path": "",  # a local copy of a source
            "limit": 0,  # rows to read, from the first; 0 = all
            "format": "",  # or 'hh': transcripts
            "chat_template": "",  # a file; '' = the tokenizer's
            "join": "separate",  # or 'joint'
            "max_tokens": 512,  # of a prompt with one response
            "max_prompt_tokens": 256,
            "truncate_prompt": "keep_end",  # or 'keep_start'
            "truncate_response": "rest",  # or 'fixed': max_tokens − max_prompt_tokens
            "labels": "",  # of 'sentiment': 'deterministic' (default), 'bradley_terry'
            "on_bad_row": "error",  # or 'drop'
            "shuffle": True,
            "layout": "prefix_shared",  # or 'packed', 'padded'
            "row_tokens": 0,  # 0 = chosen from the lengths
            "row_shapes": 0,  # numbers of rows to compile; 0 = those worth it, up to 6
        }
    )


def loss() -> Config:
    """Options of the losses; their meaning and ranges stand in `dpo_jax/options.py`."""
    defaults = {name: option.default for name, option in LOSS_OPTIONS.items()}
    return ConfigDict({"name": "dpo", **defaults})  # or several: 'dpo+sft'


def optimizer() -> Config:
    """Options of the optimizers, under the same rule."""
    return ConfigDict(
        {
            "name": "rmsprop",
            "lr": 1e-6,
            "warmup_steps": 150,
            "warmup_share": 0.0,  # instead of warmup_steps: of the run's steps
            "schedule": "constant",  # or 'linear', 'cosine', to 0 at the last step
            "weight_decay": 0.0,
            "clip": 0.0,  # global gradient norm; 0 = off
            "b1": 0.9,
            "b2": 0.999,
            "decay": 0.99,  # rmsprop's
            "eps": 1e-8,
        }
    )
