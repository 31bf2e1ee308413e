"""Keys of what is trained and how long, of the optimizer, the mesh and what is kept."""

from dpo_jax.schema.key import BELOW_ONE, COUNT, NOT_NEGATIVE, POSITIVE, SAMPLED, Key

RUN: dict[str, Key] = {
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
}

TRAINING: dict[str, Key] = {
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
