"""Every key of a configuration: default, range, choices and meaning, one row each.

Units stand in the names (`_steps`, `_tokens`) or in the meanings. 0 or '' means "off"
or "chosen for you" where a row says so. An option that the chosen loss or optimizer
does not use is an error. No jax, so that a configuration is read in a blink.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

Config = Any  # an `ml_collections.ConfigDict`: its attributes are its keys
Range = tuple[float, float, bool]  # lowest, highest, whether the lowest is allowed
UP_TO_ONE = math.nextafter(1.0, 2.0)  # the highest, never allowed, where 1 is

ANY: Range = (-math.inf, math.inf, False)
POSITIVE: Range = (0.0, math.inf, False)
NOT_NEGATIVE: Range = (0.0, math.inf, True)
SAMPLED: Range = (0, 1_000_000, True)  # prompts
COUNT: Range = (1, math.inf, True)
SHARE: Range = (0.0, UP_TO_ONE, True)
POSITIVE_SHARE: Range = (0.0, UP_TO_ONE, False)
BELOW_ONE: Range = (0.0, 1.0, True)
FLOATS = ("float32", "bfloat16", "float16")


class Key(NamedTuple):
    """A key of a configuration.

    Attributes:
      default: its value where nothing is said; off where that makes sense.
      meaning: what it does.
      range: of a number; None = not looked at.
      choices: of a word; () = not looked at here.
      items: what a tuple holds: words (`str`) or finite numbers (`float`).
    """

    default: Any
    meaning: str
    range: Range | None = None
    choices: Sequence[str] = ()
    items: type = str


KEYS: dict[str, Key] = {
    "seed": Key(
        0,
        "of a model from scratch, of draws, and of the order of the data",
        (0, 2**32, True),
    ),
    "losses": Key("", "digest of the file of --losses, which sets it"),
    "rewards": Key("", "digest of the file of --rewards, which sets it"),
    "objective": Key(
        "preference",
        "what is trained",
        choices=(
            *("preference", "sft", "unpaired", "ranking", "reward"),
            *("ppo", "rloo", "awr", "online"),
        ),
    ),
    "train.steps": Key(0, "optimizer steps; > 0 overrides epochs", NOT_NEGATIVE),
    "train.epochs": Key(
        1.0, "passes over data.train; of a mixture, all its rows' number", NOT_NEGATIVE
    ),
    "train.on_nonfinite": Key(
        "halt", "or 'skip', at most 3 in a row", choices=("halt", "skip")
    ),
    "train.watchdog_seconds": Key(
        1800.0, "without a beat of the loop, then exit 124; 0 = off", NOT_NEGATIVE
    ),
    "distributed.timeout_seconds": Key(
        300.0, "for the processes of a run to meet", POSITIVE
    ),
    "model.path": Key("", "an HF folder or hub id: the policy"),
    "model.revision": Key("", "of a hub id"),
    "model.ignore_attributes": Key(
        (),
        "names in config.json of the policy (and of ref.path and reward.path) that are "
        "not known here and that transformers computes nothing with",
    ),
    "model.adapter": Key(
        "",
        "a peft folder of model.path: its adapter is trained on, with its rank, alpha "
        "and targets",
    ),
    "model.preset": Key("", "instead of path: train from scratch"),
    "model.dtype": Key(
        "float32", "of the computation; masters are float32", choices=FLOATS
    ),
    "model.remat": Key(
        "elementwise",
        "or 'none', 'block': what is computed again for the gradient",
        choices=("none", "elementwise", "block"),
    ),
    "model.attention": Key(
        "auto",
        "or 'xla', 'cudnn' (GPU), 'splash' (TPU), 'dense'",
        choices=("auto", "xla", "cudnn", "splash", "dense"),
    ),
    "model.score_start": Key(
        "normal",
        "objective=reward: of a new scalar head, variance 1/(D + 1); or 'zero': its "
        "loss starts at ln 2",
        choices=("normal", "zero"),
    ),
    "model.vocab_multiple": Key(
        1,
        "rows of the embedding table are a multiple of it, so that they divide over "
        "mesh.tensor; those behind the vocabulary are never read nor exported; 1 = off",
        COUNT,
    ),
    "model.logits_chunk": Key(
        128, "scored tokens per row whose logits are held at once", COUNT
    ),
    "ref.path": Key("", "the reference; '' = the initial policy"),
    "ref.revision": Key("", "of a hub id"),
    "ref.mode": Key(
        "live",
        "or 'cached' (its log-probs, from disk), 'none'",
        choices=("live", "cached", "none"),
    ),
    "ref.cache_dir": Key("", "of 'cached'; '' = ref_cache beside the run folder"),
    "ref.dtype": Key(
        "", "of its weights and computation; '' = model.dtype", choices=("", *FLOATS)
    ),
    "ref.sync_every_steps": Key(
        0, "> 0: it follows the policy (TR-DPO); 0 = frozen", NOT_NEGATIVE
    ),
    "ref.sync_mix": Key(
        0.6,
        "ref ← (1 − mix)·ref + mix·policy, arXiv:2404.09656; 1 = copy",
        POSITIVE_SHARE,
    ),
    "ref.adapter": Key(
        "",
        "of a LoRA run: 'base' (no adapter), or the peft folder of an adapter on "
        "model.path; '' = the initial policy's",
    ),
    "lora.rank": Key(
        0,
        "> 0: adapters of this rank are trained, and no weights; 0 = all weights",
        (0, 2**14, True),
    ),
    "lora.alpha": Key(0, "they act by alpha / rank; 0 = 2 · rank", (0, 2**24, True)),
    "lora.rslora": Key(False, "by alpha / √rank instead, arXiv:2312.03732"),
    "lora.targets": Key(
        (),
        "which linear maps have one: 'attention', 'mlp', 'all_linear', or names of "
        "modules in the HF model ('q_proj', '*_proj'); () = all of the layers",
    ),
    "lora.init": Key(
        "b_zero",
        "which factor starts at 0; the other is drawn",
        choices=("b_zero", "a_zero"),
    ),
    "tokenizer.path": Key("", "'' = model.path, or the source's own"),
    "data.train": Key(
        "",
        "SOURCE[:SPLIT][:WEIGHT], joined by +: a file (.jsonl, .json, .csv, .tsv, "
        ".parquet, .gz, .zst), a glob, a folder, a hub id, or a name; [:200] behind it "
        "takes the first 200 rows, [:10%] a share",
    ),
    "data.eval": Key("", "likewise; '' = none"),
    "data.path": Key("", "a local copy of a published set, or a folder of several"),
    "data.columns.prompt": Key(
        "",
        "the column of the prompt, a path in it (info.post), a template "
        "('Q: {question}'), or 'implicit' (all but the last message); '' = prompt",
    ),
    "data.columns.chosen": Key("", "likewise a column, a path or a template"),
    "data.columns.rejected": Key("", "likewise"),
    "data.columns.completion": Key("", "likewise"),
    "data.columns.label": Key("", "likewise"),
    "data.columns.messages": Key("", "likewise"),
    "data.columns.text": Key("", "likewise"),
    "data.columns.responses": Key(
        "", "likewise, of all responses: 'a,b' or 'answers[].answer'"
    ),
    "data.columns.ranking": Key("", "likewise"),
    "data.columns.scores": Key("", "likewise, of responses"),
    "data.columns.score_chosen": Key("", "likewise"),
    "data.columns.score_rejected": Key("", "likewise"),
    "data.columns.margin": Key("", "likewise"),
    "data.columns.system": Key("", "likewise"),
    "data.columns.tools": Key("", "likewise"),
    "data.columns.pair": Key(
        "",
        "how responses pair: 'sign:COLUMN' (< 0 prefers the first), 'index:COLUMN' (of "
        "the best, from 0), 'rank:COLUMN' (1 = best), 'each' (of two lists)",
    ),
    "data.columns.chat": Key("", "or 'wrap': strings become messages"),
    "data.columns.keep": Key("", "conditions on rows: 'status!=tie,score>=8'"),
    "data.columns.drop": Key(
        "", "faults to drop and count: tie, identical, null, empty, mismatched, …"
    ),
    "data.columns.pairs_per_prompt": Key(
        0, "the first so many of each prompt; 0 = all", NOT_NEGATIVE
    ),
    "data.limit": Key(
        0, "rows of each source to read, from the first; 0 = all", NOT_NEGATIVE
    ),
    "data.format": Key("", "or 'hh': transcripts", choices=("", "hh")),
    "data.chat_template": Key(
        "", "a file, or a name of the tokenizer's; '' = its default"
    ),
    "data.now": Key(
        "",
        "the date and time for a chat template that asks, as 2026-07-26T08:00:00; '' = "
        "those of the first launch, kept in config.json",
    ),
    "data.scored": Key(
        "",
        "which tokens count: 'completion' (all behind the prompt, other turns too; of "
        "{messages} the last turn), 'assistant' (its turns alone, with what ends them) "
        "or 'all' (sft); '' = 'assistant' of {messages}, 'all' of {text}, else "
        "'completion'",
        choices=("", "completion", "assistant", "all"),
    ),
    "data.join": Key("separate", "or 'joint'", choices=("separate", "joint")),
    "data.max_tokens": Key(512, "of a prompt with one response", (2, 2**22, True)),
    "data.max_prompt_tokens": Key(256, "of a prompt that is too long", COUNT),
    "data.truncate_prompt": Key(
        "keep_end", "or 'keep_start'", choices=("keep_end", "keep_start")
    ),
    "data.truncate_response": Key(
        "rest",
        "or 'fixed': max_tokens − max_prompt_tokens",
        choices=("rest", "fixed"),
    ),
    "data.cache_dir": Key("", "where tokens are kept; '' = beside the run folder"),
    "data.seed": Key(
        -1, "of the order and making of data.train; -1 = seed", (-1, 2**32, True)
    ),
    "data.labels": Key(
        "", "of 'sentiment': 'deterministic' (default), 'bradley_terry'"
    ),
    "data.on_bad_row": Key("error", "or 'drop'", choices=("error", "drop")),
    "data.disjoint": Key(
        False,
        "True: rows of data.train whose prompt stands in data.eval are left out; with "
        "data.eval=FILE[:10%] of the same file, a split by prompts",
    ),
    "data.shuffle": Key(True, "in another order each epoch; False = as they stand"),
    "data.layout": Key(
        "prefix_shared",
        "or 'packed', 'padded'",
        choices=("padded", "packed", "prefix_shared"),
    ),
    "data.row_tokens": Key(
        0, "tokens of a row; 0 = chosen from the lengths", (0, 2**22, True)
    ),
    "data.row_shapes": Key(
        0, "numbers of rows to compile; 0 = those worth it, up to 6", NOT_NEGATIVE
    ),
    "batch.pairs": Key(64, "of an optimizer step, over the whole mesh", COUNT),
    "batch.microbatches": Key(
        0,
        "parts of a step, one after the other; 0 = chosen so that activations stay "
        "small, and kept in config.json",
        NOT_NEGATIVE,
    ),
    "loss.name": Key("dpo", "or several: 'dpo+sft'"),
    "loss.weights": Key(
        (), "of a sum of losses, one number each; () = 1.0", items=float
    ),
    "loss.beta": Key(
        0.1, "β, strength of the KL penalty; also of `rewards/*`", POSITIVE
    ),
    "loss.label_smoothing": Key(
        0.0, "ε, share of flipped labels, 0 ≤ ε < ½", (0.0, 0.5, True)
    ),
    "loss.normalize": Key(
        "sum", "or 'mean' over a response's tokens", choices=("sum", "mean")
    ),
    "loss.divergence": Key(
        "reverse_kl",
        "or 'forward_kl', 'js', 'alpha'",
        choices=("reverse_kl", "forward_kl", "js", "alpha"),
    ),
    "loss.divergence_alpha": Key(1.0, "of 'alpha'", ANY),
    "loss.ld_alpha": Key(
        1.0, "weight of tokens past the shorter response; 1 = off", SHARE
    ),
    "loss.weighting": Key(
        "none",
        "of pairs: or 'wpo', 'wpo_clamped'",
        choices=("none", "wpo", "wpo_clamped"),
    ),
    "loss.likelihood": Key(
        "",
        "of sft, cpo, arpo, orpo: mean over the chosen 'tokens' of the batch, those of "
        "their prompts too ('whole'), or over 'responses', each a mean or a 'sum'; "
        "'' = 'responses' of orpo, 'tokens' of others",
        choices=("", "sum", "responses", "tokens", "whole"),
    ),
    "loss.baseline": Key(
        "none",
        "bco_pair: or 'running', the mean of rewards so far",
        choices=("none", "running"),
    ),
    "loss.discopop_tau": Key(0.05, "discopop: temperature of the modulation", POSITIVE),
    "loss.dpop_lambda": Key(
        50.0, "dpop: weight of a chosen response that fell", NOT_NEGATIVE
    ),
    "loss.length_alpha": Key(0.1, "r_dpo: nats a token", NOT_NEGATIVE),
    "loss.tdpo_alpha": Key(0.5, "tdpo2: weight of the difference of KLs", NOT_NEGATIVE),
    "loss.beta_scale": Key(
        0.6, "beta_dpo: how far β follows the batch; 0 = off", NOT_NEGATIVE
    ),
    "loss.keep_fraction": Key(0.8, "beta_dpo: of the pairs of a batch", POSITIVE_SHARE),
    "loss.filter": Key(
        "draw",
        "beta_dpo: which pairs are kept; or 'nearest'",
        choices=("draw", "nearest"),
    ),
    "loss.momentum": Key(
        0.9,
        "beta_dpo, alpha_dpo: of the running statistics, a step; the authors' "
        "runs move them at .9 a part of a step, which is .81 and .185 a step",
        (0.0, 1.0, True),
    ),
    "loss.odpo_alpha": Key(
        1.0, "odpo: weight of the log of the ratings' difference", NOT_NEGATIVE
    ),
    "loss.mmpo_gamma": Key(1.0, "mmpo: scale of the ratings' difference", NOT_NEGATIVE),
    "loss.rating_scale": Key(
        1.0, "rpo, rebel: of the ratings' difference", NOT_NEGATIVE
    ),
    "loss.rpo_distance": Key(
        "backward",
        "rpo: KL to the ratings' preference, or 'forward', 'squared'",
        choices=("backward", "forward", "squared"),
    ),
    "loss.temperature": Key(
        1.0, "infonca, nca: of the ratings, in their units", POSITIVE
    ),
    "loss.chi_clip": Key(10.0, "chi_po: half of the largest logit", POSITIVE),
    "loss.shift_lambda": Key(0.75, "dpo_shift: weight of the rejected response", SHARE),
    "loss.shift_end": Key(
        -1.0,
        "dpo_shift: the weight that is reached along a line after the last step; < 0 = "
        "it stays",
        (-1.0, UP_TO_ONE, True),
    ),
    "loss.decay": Key(
        0.98, "d2po: weight of a token relative to the one before", POSITIVE_SHARE
    ),
    "loss.alpha": Key(
        0.1, "alpha_dpo: weight of the reference in the margin", NOT_NEGATIVE
    ),
    "loss.gamma": Key(
        1.0, "simpo, alpha_po, alpha_dpo: margin of the logit", NOT_NEGATIVE
    ),
    "loss.dr_beta": Key(1.0, "dr_dpo: robustness over pairs; ∞ = dpo", POSITIVE),
    "loss.alpha_po_alpha": Key(0.25, "alpha_po: shape of the reward; 0 = simpo", ANY),
    "loss.nll_weight": Key(
        1.0, "cpo, arpo, slic_hf: of the chosen response's likelihood", NOT_NEGATIVE
    ),
    "loss.arpo_scale": Key(0.9, "arpo: η₁, growth of the penalty", NOT_NEGATIVE),
    "loss.arpo_rate": Key(0.4, "arpo: η₂, a nat of difference a token", NOT_NEGATIVE),
    "loss.slic_margin": Key(1.0, "slic_hf: nats", NOT_NEGATIVE),
    "loss.unlikelihood_alpha": Key(
        0.5, "unlikelihood: weight of the rejected response", NOT_NEGATIVE
    ),
    "loss.desirable_weight": Key(1.0, "kto", NOT_NEGATIVE),
    "loss.undesirable_weight": Key(1.0, "kto", NOT_NEGATIVE),
    "loss.centering": Key(
        0.01, "bradley_terry: of the squared sum of scores; 0 = off", NOT_NEGATIVE
    ),
    "loss.margin": Key(
        "none",
        "bradley_terry: or 'data', the ratings' difference",
        choices=("none", "data"),
    ),
    "reward.name": Key(
        "",
        "who judges samples: a row of rewards/, or several: 'length+model'; '' = "
        "'model' where reward.path is given",
    ),
    "reward.path": Key(
        "",
        "the reward model, a row 'model' of rewards/: an export of objective=reward, "
        "or an HF …ForSequenceClassification of one label",
    ),
    "reward.dtype": Key(
        "", "of its weights and computation; '' = model.dtype", choices=("", *FLOATS)
    ),
    "reward.standardize": Key(
        0,
        "> 0: the reward model's scores move to mean 0 and deviation 1 on so many "
        "samples of the reference after prompts of data.train, arXiv:1909.08593 §2.1; "
        "on-policy runs; kept in standard.json",
        SAMPLED,
    ),
    "reward.weights": Key(
        (), "of a sum of rewards, one number each; () = 1.0", items=float
    ),
    "reward.timeout_seconds": Key(
        600.0, "for all rewards together, each time they are asked", POSITIVE
    ),
    "value.path": Key(
        "",
        "ppo: the critic starts as this reward model, or as this language model with "
        "a head that says 0; '' = such a head on the policy's own trunk",
    ),
    "rollout.prompts": Key(64, "of a turn, over the whole mesh", COUNT),
    "rollout.samples": Key(4, "of each prompt", COUNT),
    "rollout.max_new_tokens": Key(64, "of a sample; longer ones are cut", COUNT),
    "rollout.temperature": Key(
        1.0,
        "that samples are drawn and scored at, those of evaluation likewise; > 0",
        POSITIVE,
    ),
    "rollout.batch": Key(
        128, "samples of a data shard that are drawn together, at most", COUNT
    ),
    "rollout.cache_dtype": Key(
        "",
        "of the keys and values kept while sampling, 'bfloat16' halves them; '' = "
        "model.dtype. What is trained on is scored again",
        choices=("", *FLOATS),
    ),
    "ppo.epochs": Key(4, "passes over a rollout (TRL)", COUNT),
    "ppo.minibatches": Key(1, "updates of a pass (TRL)", COUNT),
    "ppo.kl_coef": Key(
        0.05,
        "of the KL in the tokens' rewards (TRL); its start, if it adapts",
        NOT_NEGATIVE,
    ),
    "ppo.kl_estimator": Key(
        "k1",
        "or 'k3' (TRL), biased: detached, its gradient is not that of the KL",
        choices=("k1", "k3"),
    ),
    "ppo.kl_target": Key(
        0.0,
        "> 0: nats a sample that kl_coef adapts to, arXiv:1909.08593 §2.2; 0 = fixed",
        NOT_NEGATIVE,
    ),
    "ppo.kl_horizon": Key(10_000.0, "samples over which kl_coef adapts", POSITIVE),
    "ppo.clip": Key(0.2, "ε of the ratio, arXiv:1707.06347 eq. 7", POSITIVE),
    "ppo.value_clip": Key(0.2, "how far a value moves in a turn (TRL)", POSITIVE),
    "ppo.value_coef": Key(0.1, "of the critic's loss (TRL)", NOT_NEGATIVE),
    "ppo.gamma": Key(1.0, "discount", SHARE),
    "ppo.lam": Key(0.95, "λ of GAE, arXiv:1506.02438", SHARE),
    "ppo.missing_eos_penalty": Key(
        0.0, "off the score of a sample that was cut (TRL)", NOT_NEGATIVE
    ),
    "ppo.whiten_scores": Key(False, "scores of a rollout to mean 0, deviation 1"),
    "ppo.whiten_rewards": Key(False, "tokens' rewards to deviation 1 (TRL)"),
    "ppo.whiten_advantages": Key(True, "to mean 0, deviation 1 over the rollout (TRL)"),
    "rloo.epochs": Key(1, "passes over a rollout", COUNT),
    "rloo.minibatches": Key(1, "updates of a pass", COUNT),
    "rloo.kl_coef": Key(0.05, "of the KL in a sample's reward (TRL)", NOT_NEGATIVE),
    "rloo.clip": Key(0.2, "ε of the ratio (TRL)", POSITIVE),
    "rloo.ratio": Key(
        "sequence",
        "weighs whole samples, a mean over them; or 'token', a mean over tokens",
        choices=("sequence", "token"),
    ),
    "rloo.normalize": Key(
        "none",
        "or 'std': by the prompt's deviation, not leaving one out, as GRPO does "
        "(arXiv:2402.03300)",
        choices=("none", "std"),
    ),
    "rloo.missing_eos_penalty": Key(
        0.0, "off the score of a sample that was cut", NOT_NEGATIVE
    ),
    "awr.epochs": Key(1, "passes over a rollout", COUNT),
    "awr.minibatches": Key(1, "updates of a pass", COUNT),
    "awr.beta": Key(1.0, "temperature of exp(A/β), arXiv:1910.00177", POSITIVE),
    "awr.weight_clip": Key(20.0, "the largest weight", POSITIVE),
    "awr.baseline": Key(
        "prompt", "mean of a prompt's samples; or 'none'", choices=("prompt", "none")
    ),
    "awr.sampler": Key(
        "policy",
        "or 'ref': who draws; samples of the reference lead to the optimum of reward "
        "and KL",
        choices=("policy", "ref"),
    ),
    "awr.missing_eos_penalty": Key(
        0.0, "off the score of a sample that was cut", NOT_NEGATIVE
    ),
    "online.rank": Key(
        "best_worst",
        "which samples of a prompt are compared; or 'all_pairs', 'random'",
        choices=("best_worst", "all_pairs", "random"),
    ),
    "online.labels": Key(
        "order",
        "of rewards; or 'bradley_terry': drawn with probability σ(difference); or "
        "'soft': the loss of both orders, weighed by it",
        choices=("order", "bradley_terry", "soft"),
    ),
    "online.ref": Key(
        "fixed",
        "or 'each_round': the policy at the start of each turn; 'following': see "
        "ref.sync_every_steps",
        choices=("fixed", "each_round", "following"),
    ),
    "online.epochs": Key(1, "passes over a rollout", COUNT),
    "optimizer.name": Key("rmsprop", "or 'adamw', …: see train/optimizer.py"),
    "optimizer.lr": Key(1e-6, "learning rate at its highest", NOT_NEGATIVE),
    "optimizer.warmup_steps": Key(150, "steps of rising lr", NOT_NEGATIVE),
    "optimizer.warmup_share": Key(
        0.0, "> 0: of the run's steps, instead of warmup_steps", BELOW_ONE
    ),
    "optimizer.schedule": Key(
        "constant", "or 'linear', 'cosine', to 0 at the last step, 'inverse_sqrt'"
    ),
    "optimizer.weight_decay": Key(0.0, "decoupled", NOT_NEGATIVE),
    "optimizer.clip": Key(0.0, "global gradient norm; 0 = off", NOT_NEGATIVE),
    "optimizer.b1": Key(0.9, "of the mean of gradients", BELOW_ONE),
    "optimizer.b2": Key(0.999, "of the mean of their squares", BELOW_ONE),
    "optimizer.decay": Key(0.99, "rmsprop's", BELOW_ONE),
    "optimizer.eps": Key(1e-8, "beside the root of the squares", NOT_NEGATIVE),
    "mesh.data": Key(-1, "copies of the model; -1 = the rest of the devices"),
    "mesh.fsdp": Key(1, "devices that share the weights of a copy"),
    "mesh.tensor": Key(1, "devices that share a product"),
    "eval.every_steps": Key(
        0, "0 = before the first step and after the last", NOT_NEGATIVE
    ),
    "eval.limit": Key(
        0, "rows of each source of data.eval, from the first; 0 = all", NOT_NEGATIVE
    ),
    "eval.at_start": Key(True, "or False: not before the first step"),
    "eval.rollouts": Key(
        0,
        "prompts of data.eval to sample; needs a source with a true reward, or "
        "reward.name",
        SAMPLED,
    ),
    "eval.best_of": Key(
        1,
        "samples of each of these prompts; > 1: also what the best of 2, 4, … is worth",
        COUNT,
    ),
    "eval.frontier": Key(
        0,
        "samples of the reference for each of these prompts: where every policy must "
        "lie beneath, and best-of-N, in frontier.json; 0 = off, else at least 32",
        NOT_NEGATIVE,
    ),
    "eval.true_reward": Key(
        "",
        "which of reward.name is the true reward of samples; '' = that of data.eval, "
        "or all together",
    ),
    "eval.rollouts_every_steps": Key(
        0, "steps between two samplings; 0 = eval.every_steps", NOT_NEGATIVE
    ),
    "checkpoint.every_steps": Key(500, "0 = after the last step only", NOT_NEGATIVE),
    "checkpoint.keep": Key(2, "newest steps that stay", COUNT),
    "checkpoint.keep_best": Key(
        "",
        "eval metric whose best step stays too; highest:NAME, lowest:NAME, or NAME; "
        "of a mixture also SOURCE/NAME",
    ),
    "checkpoint.after": Key(
        "all",
        "what a finished run keeps beside its export; or 'params', 'none'",
        choices=("all", "params", "none"),
    ),
    "log.every_steps": Key(1, "lines of metrics.jsonl", COUNT),
    "log.to": Key(
        "tensorboard",
        "trackers that mirror metrics.jsonl, joined by +: also 'wandb', 'trackio'; "
        "'' = none",
    ),
    "log.project": Key("dpo_jax", "of wandb and trackio"),
}
OWN_OPTIONS = "loss.options."  # NAME.OPTION: an option of one loss of several
RELAUNCH = (
    "mesh.",
    "batch.microbatches",
    "log.",
    "eval.",
    "checkpoint.",
    "data.cache_dir",
    "distributed.",
    "train.watchdog_seconds",
    "ref.cache_dir",
    "model.remat",
    "model.attention",
    "data.row_shapes",
)  # what a relaunched run may change without --fork


def base() -> Config:
    """Returns every key with its default; not yet locked."""
    config: Config = ConfigDict()
    for name, key in KEYS.items():
        *sections, last = name.split(".")
        place = config
        for section in sections:
            if section not in place:
                place[section] = ConfigDict()
            place = place[section]
        place[last] = key.default
    config.loss.options = ConfigDict()
    return config


def row(key: str) -> Key | None:
    """Returns the row of a key; `loss.options.NAME.OPTION` has that of `loss.OPTION`.

    None where there is none.
    """
    if key.startswith(OWN_OPTIONS):
        _, dot, option = key.removeprefix(OWN_OPTIONS).partition(".")
        key = f"loss{dot}{option}"
    return KEYS.get(key)


def own_options(keys: Iterable[str]) -> list[str]:
    """Lists all `loss.options.NAME.OPTION` of each NAME among the keys."""
    own = [key.split(".")[2] for key in keys if key.startswith(OWN_OPTIONS)]
    return [f"{OWN_OPTIONS}{n}.{option}" for n in own for option in section("loss")]


def with_room(config: Config, given: Mapping[str, Any]) -> Config:
    """Adds the options of one loss of several that are among the keys.

    Args:
      config: with a section `loss.options`; changed in place.
      given: `section.key` -> value; keys other than `loss.options.NAME.OPTION` are
        passed over, and those without a row, but of a run with losses of its own.

    Returns:
      The configuration, each added option at its default, or as given without one.
    """
    for key, value in given.items():
        name, dot, option = key.removeprefix(OWN_OPTIONS).partition(".")
        known = row(key)
        if not (key.startswith(OWN_OPTIONS) and dot and (known or config.losses)):
            continue
        own = config.loss.options
        with config.unlocked():
            if name not in own:
                own[name] = ConfigDict()
            if option not in own[name]:
                own[name][option] = value if known is None else known.default
    return config


def section(name: str) -> dict[str, Key]:
    """Returns the rows of a section, by the names of its keys."""
    prefix = f"{name}."
    return {k.removeprefix(prefix): r for k, r in KEYS.items() if k.startswith(prefix)}
