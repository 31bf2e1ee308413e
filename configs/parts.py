"""Sections that the configurations share: every key, with its default.

Units stand in the names (`_steps`, `_tokens`) or in the comments. 0 or '' means "off"
or "chosen for you" where a comment says so.
"""

from ml_collections import ConfigDict

from dpo_jax.config import Config


def base() -> Config:
    """Returns every key with its default; not yet locked."""
    config: Config = ConfigDict()
    config.seed = 0
    config.objective = "preference"  # or 'sft': likelihood of every response
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
            "remat": "none",  # or 'block': recompute each layer in the backward pass
            "attention": "xla",
            "logits_chunk": 128,  # scored tokens per row whose logits are held at once
        }
    )


def ref() -> Config:
    """The reference."""
    return ConfigDict(
        {
            "path": "",  # '' = the initial policy
            "revision": "",
            "mode": "live",  # or 'none'
            "dtype": "",  # of its weights and computation; '' = model.dtype
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
        }
    )


def loss() -> Config:
    """Options of the losses; one that the chosen loss does not use is an error."""
    return ConfigDict(
        {
            "name": "dpo",  # or several: 'dpo+sft'
            "weights": (),  # of several, one number each; () = 1.0 each
            "beta": 0.1,
            "label_smoothing": 0.0,  # 0 ≤ ε < ½
            "normalize": "sum",  # or 'mean' over a response's tokens
            "divergence": "reverse_kl",  # or 'forward_kl', 'js', 'alpha'
            "divergence_alpha": 1.0,  # of 'alpha'
            "ld_alpha": 1.0,  # weight of tokens past the shorter response; 1 = off
            "weighting": "none",  # of pairs: or 'wpo', 'wpo_clamped'
            "baseline": "none",  # bco_pair: or 'running', the mean of rewards so far
            "discopop_tau": 0.05,  # discopop: temperature of the modulation
            "dpop_lambda": 50.0,  # dpop: weight of a chosen response that fell
            "length_alpha": 0.1,  # r_dpo: nats a token
            "tdpo_alpha": 0.5,  # tdpo2: weight of the difference of KLs
            "beta_scale": 0.6,  # beta_dpo: how far β follows the batch; 0 = off
            "keep_fraction": 0.8,  # beta_dpo: of the pairs of a batch
            "momentum": 0.9,  # beta_dpo, alpha_dpo: of the running statistics
            "odpo_alpha": 1.0,  # odpo: weight of the log of the ratings' difference
            "mmpo_gamma": 1.0,  # mmpo: scale of the ratings' difference
            "chi_clip": 10.0,  # chi_po: half of the largest logit
            "shift_lambda": 0.75,  # dpo_shift: weight of the rejected response
            "decay": 0.98,  # d2po: weight of a token relative to the one before
            "alpha": 0.1,  # alpha_dpo: weight of the reference in the margin
            "gamma": 1.0,  # simpo, alpha_po, alpha_dpo: margin of the logit
            "dr_beta": 1.0,  # dr_dpo: robustness over pairs; ∞ = dpo
            "alpha_po_alpha": 0.25,  # alpha_po: shape of the reward; 0 = simpo
            "nll_weight": 1.0,  # cpo, slic_hf: of the chosen response's likelihood
            "slic_margin": 1.0,  # slic_hf: nats
            "unlikelihood_alpha": 0.5,  # unlikelihood: weight of the rejected response
            "desirable_weight": 1.0,  # kto
            "undesirable_weight": 1.0,  # kto
            "centering": 0.01,  # bradley_terry: of the squared sum of scores; 0 = off
            "margin": "none",  # bradley_terry: or 'data', the ratings' difference
        }
    )


def optimizer() -> Config:
    """Options of the optimizers, under the same rule."""
    return ConfigDict(
        {
            "name": "rmsprop",
            "lr": 1e-6,
            "warmup_steps": 150,
            "schedule": "constant",  # or 'linear', 'cosine', to 0 at the last step
            "weight_decay": 0.0,
            "clip": 0.0,  # global gradient norm; 0 = off
            "b1": 0.9,
            "b2": 0.999,
            "decay": 0.99,  # rmsprop's
            "eps": 1e-8,
        }
    )
