"""The sizes of each tier: what trials are given, and how many there are."""

from typing import Any, NamedTuple

Keys = dict[str, Any]
HERE = "experiments/fig2_imdb_frontier"
SMOLLM2 = ".cache/smollm2/smollm2-135m-instruct"


class Tier(NamedTuple):
    """What the trials of a tier share, and how many there are.

    Attributes:
      reference: what every method starts from: a folder, a hub id, or a trial.
      truth: row of rewards/, or function of `rewards`, that is the truth.
      rewards: file of that function; '' = the truth is the embedded source's own.
      train: prompts to train on, K samples of each.
      held_out: further prompts, whose pairs judge the reward model.
      samples: K.
      new_tokens: of a sample, at most.
      imdb: whether prompts are prefixes of IMDb's reviews.
      keys: of all trials.
      offline: of those that learn from pairs.
      reward_model: of the reward model.
      on_policy: of PPO.
      sft: of the trial `sft`; {} = there is none.
      evals: evaluations of a trial, evenly over its steps, and one before.
      betas: β of DPO.
      soft_betas: β of DPO with Bradley-Terry labels.
      alphas: α of unlikelihood.
      seeds: of preferred-FT.
      targets: nats, KL that PPO's coefficient adapts to, by the learned reward.
      true_targets: likewise by the truth.
      ref_samples: of each evaluation prompt, from which the frontier is estimated.
      best_of: the largest N of best-of-N by the learned reward.
    """

    reference: str
    truth: str
    rewards: str
    train: int
    held_out: int
    samples: int
    new_tokens: int
    imdb: bool
    keys: Keys
    offline: Keys
    reward_model: Keys
    on_policy: Keys
    sft: Keys
    evals: int
    betas: tuple[float, ...]
    soft_betas: tuple[float, ...]
    alphas: tuple[float, ...]
    seeds: tuple[int, ...]
    targets: tuple[float, ...]
    true_targets: tuple[float, ...]
    ref_samples: int
    best_of: int


LITTLE: Keys = {  # of the embedded reviews
    "data.eval": "sentiment",
    "data.max_tokens": 32,
    "data.max_prompt_tokens": 12,
    "eval.limit": 64,
    "eval.rollouts": 512,
}
MINIATURE = Tier(
    reference="{sft}",
    truth="sentiment",
    rewards="",
    train=4_000,
    held_out=256,
    samples=4,
    new_tokens=20,
    imdb=False,
    keys=LITTLE,
    offline={
        "data.row_shapes": 1,
        "train.steps": 150,
        "batch.pairs": 64,
        "optimizer.name": "rmsprop",
        "optimizer.lr": 3e-4,
        "optimizer.warmup_steps": 25,
        "optimizer.clip": 1.0,
    },
    reward_model={
        "data.row_shapes": 1,
        "train.steps": 350,
        "batch.pairs": 64,
        "model.score_start": "zero",
        "optimizer.name": "adamw",
        "optimizer.lr": 1e-3,
        "optimizer.schedule": "cosine",
        "optimizer.warmup_steps": 10,
        "optimizer.clip": 1.0,
    },
    on_policy={
        "train.steps": 240,
        "rollout.prompts": 256,
        "rollout.samples": 1,
        "rollout.max_new_tokens": 20,
        "rollout.batch": 256,
        "ppo.epochs": 2,
        "ppo.minibatches": 2,
        "ppo.kl_coef": 0.2,
        "ppo.kl_horizon": 512.0,
        "ppo.whiten_scores": True,
        "optimizer.lr": 5e-4,
        "optimizer.schedule": "linear",
    },
    sft={
        "model.preset": "tiny",
        "data.train": "sentiment",
        "data.row_shapes": 1,
        "train.steps": 400,
        "batch.pairs": 128,
        "optimizer.lr": 3e-3,
        "optimizer.warmup_steps": 10,
    },
    evals=10,
    betas=(0.05, 0.1, 1.0, 5.0),
    soft_betas=(0.1, 1.0, 5.0),
    alphas=(0.05, 0.1, 0.5, 1.0),
    seeds=(0, 1),
    targets=(0.5, 1.0, 2.0, 4.0),
    true_targets=(0.5, 1.0, 2.0, 4.0),
    ref_samples=256,
    best_of=16,
)
QUICK = MINIATURE._replace(
    train=2_000,
    offline={**MINIATURE.offline, "train.steps": 60},
    reward_model={**MINIATURE.reward_model, "train.steps": 100},
    on_policy={**MINIATURE.on_policy, "train.steps": 80},
    evals=5,
    betas=(0.1, 1.0),
    soft_betas=(),
    alphas=(1.0,),
    seeds=(0,),
    targets=(),
    true_targets=(2.0,),
    ref_samples=256,
    best_of=4,
)

REAL = Tier(
    reference=SMOLLM2,
    truth="vader",
    rewards=f"{HERE}/vader.py",
    train=176,
    held_out=72,
    samples=8,
    new_tokens=24,
    imdb=False,
    keys={
        "data.max_tokens": 48,
        "data.max_prompt_tokens": 24,
        "eval.limit": 64,
        "eval.rollouts": 64,
    },
    offline={
        "data.row_shapes": 1,
        "train.steps": 32,
        "checkpoint.every_steps": 16,
        "batch.pairs": 16,
        "optimizer.name": "adamw",
        "optimizer.lr": 5e-5,
        "optimizer.warmup_steps": 5,
        "optimizer.clip": 1.0,
    },
    reward_model={
        "data.row_shapes": 1,
        "train.steps": 60,
        "batch.pairs": 32,
        "optimizer.name": "adamw",
        "optimizer.lr": 5e-5,
        "optimizer.schedule": "cosine",
        "optimizer.warmup_steps": 5,
        "optimizer.clip": 1.0,
        "model.score_start": "zero",
    },
    on_policy={
        "train.steps": 80,
        "checkpoint.every_steps": 40,
        "rollout.prompts": 64,
        "rollout.samples": 1,
        "rollout.max_new_tokens": 24,
        "rollout.batch": 64,
        "ppo.epochs": 2,
        "ppo.minibatches": 2,
        "ppo.kl_coef": 0.1,
        "ppo.kl_horizon": 512.0,
        "ppo.whiten_scores": True,
        "optimizer.lr": 2e-5,
    },
    sft={},
    evals=4,
    betas=(0.05, 0.1, 1.0, 5.0),
    soft_betas=(0.1, 1.0),
    alphas=(0.05, 0.1, 0.5, 1.0),
    seeds=(0, 1),
    targets=(1.0, 4.0),
    true_targets=(1.0, 4.0),
    ref_samples=128,
    best_of=16,
)
FULL = Tier(
    reference="{sft}",
    truth="siebert",
    rewards=f"{HERE}/siebert.py",
    train=25_000,
    held_out=1_000,
    samples=4,
    new_tokens=48,
    imdb=True,
    keys={
        "data.max_tokens": 64,
        "data.max_prompt_tokens": 16,
        "eval.limit": 512,
        "eval.rollouts": 512,
        "model.dtype": "bfloat16",
    },
    offline={
        "train.steps": 2_344,
        "batch.pairs": 64,
        "optimizer.name": "rmsprop",
        "optimizer.lr": 1e-6,
        "optimizer.warmup_steps": 150,
    },
    reward_model={
        "train.epochs": 3.0,
        "batch.pairs": 64,
        "optimizer.name": "adamw",
        "optimizer.lr": 1e-5,
        "optimizer.schedule": "cosine",
        "optimizer.clip": 1.0,
        "model.score_start": "zero",
    },
    on_policy={
        "train.steps": 9_600,
        "rollout.prompts": 1_024,
        "rollout.samples": 1,
        "rollout.max_new_tokens": 48,
        "ppo.epochs": 4,
        "ppo.minibatches": 16,
        "ppo.kl_coef": 0.2,
        "ppo.kl_horizon": 10_000.0,
        "ppo.whiten_scores": True,
        "optimizer.lr": 1e-5,
    },
    sft={
        "model.path": "openai-community/gpt2-large",
        "data.train": "imdb",
        "data.max_tokens": 128,
        "train.epochs": 1.0,
        "batch.pairs": 64,
        "optimizer.lr": 1e-5,
    },
    evals=23,
    betas=(0.05, 0.1, 1.0, 5.0),
    soft_betas=(),
    alphas=(0.05, 0.1, 0.5, 1.0),
    seeds=(0, 1),
    targets=(3.0, 6.0, 9.0, 12.0),
    true_targets=(3.0, 6.0, 9.0, 12.0),
    ref_samples=256,
    best_of=128,
)
TIERS = {"quick": QUICK, "miniature": MINIATURE, "real": REAL, "full": FULL}
