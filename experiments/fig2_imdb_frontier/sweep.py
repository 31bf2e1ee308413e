"""The trials of figure 2 (left) of arXiv:2305.18290: every method, every strength.

    python -m dpo_jax sweep \
        experiments/fig2_imdb_frontier/sweep.py:tier=quick,data=DATA \
        --out=runs/fig2/quick --launcher=local

Trials that learn from pairs read them in the folder DATA. `run.py` fills it with
samples of the reference between `part=start`, which trains the reference, and the rest.
"""

from collections.abc import Iterator

from dpo_jax.config import parse_arg
from dpo_jax.errors import ConfigError, known
from dpo_jax.launch import Trial
from experiments.fig2_imdb_frontier.tiers import TIERS, Keys, Tier

PARTS = ("all", "start")
PAIRS, SOFT_PAIRS = "deterministic", "bradley_terry"  # labels, and their files
REWARD: Keys = {
    "objective": "reward",
    "loss.name": "bradley_terry",
    "ref.mode": "none",
}
EXPORT_ALONE: Keys = {"checkpoint.after": "none"}  # what a finished trial keeps
LEARNED: Keys = {"reward.path": "{reward_model}"}


def get_sweep(arg: str | None = None) -> list[Trial]:
    """Returns the trials of a tier.

    Args:
      arg: `tier=quick|miniature|real|full`, `data=FOLDER` of the pairs, `part=start`
        for the reference alone, `reference=FOLDER` for another than the tier's,
        `imdb=FOLDER` for a local copy of the reviews.
    """
    given = parse_arg(arg, tier="quick", data="", part="all", reference="", imdb="")
    for name, names in {"tier": TIERS, "part": PARTS}.items():
        known(name, given[name], names)
    tier, data = TIERS[given["tier"]], given["data"]
    if given["reference"]:
        tier = tier._replace(reference=given["reference"], sft={})
    start = [first(tier, given["imdb"])] if tier.sft else []
    if given["part"] == "start":
        return start
    if not data:
        raise ConfigError("data= names no folder of pairs; run.py makes one")
    return [*start, *offline(tier, data), *on_policy(tier, data)]


def first(tier: Tier, imdb: str) -> Trial:
    """Makes the trial whose export all others start from."""
    keys = {k: v for k, v in tier.keys.items() if not k.startswith("eval.")}
    local = {"data.path": imdb} if imdb else {}
    return Trial("sft", "sft", {**EXPORT_ALONE, **keys, **tier.sft, **local})


def offline(tier: Tier, data: str) -> Iterator[Trial]:
    """Yields the trials that learn from pairs."""
    for beta in tier.betas:
        keys = {"loss.beta": beta}
        yield method(tier, data, f"dpo.beta={beta:g}", "dpo", PAIRS, keys)
    for beta in tier.soft_betas:
        keys = {"loss.beta": beta}
        yield method(tier, data, f"dpo_bt.beta={beta:g}", "dpo", SOFT_PAIRS, keys)
    for alpha in tier.alphas:
        keys = {"loss.name": "unlikelihood", "loss.unlikelihood_alpha": alpha}
        yield method(tier, data, f"unlikelihood.alpha={alpha:g}", "dpo", PAIRS, keys)
    for seed in tier.seeds:
        keys = {"seed": seed, "ref.mode": "live"}
        yield method(tier, data, f"preferred_ft.seed={seed}", "sft", PAIRS, keys)


def on_policy(tier: Tier, data: str) -> Iterator[Trial]:
    """Yields the reward model, best-of-N by it, and PPO by it and by the truth."""
    if tier.targets:
        yield reward_model(tier, data)
        yield best_of(tier, data)
    for target in tier.targets:
        yield ppo(tier, data, f"ppo.kl={target:g}", target, LEARNED)
    for target in tier.true_targets:
        yield ppo(tier, data, f"ppo_gt.kl={target:g}", target, {})


def method(
    tier: Tier, data: str, name: str, config: str, labels: str, keys: Keys
) -> Trial:
    """Makes a trial that learns from pairs, and is sampled as it goes."""
    given = {**tier.keys, **judged(tier, data), **tier.offline, **keys}
    given["data.train"] = f"{data}/{labels}.jsonl"
    return started(tier, name, config, {**given, **often(tier, given)})


def reward_model(tier: Tier, data: str) -> Trial:
    """Makes the trial that learns the reward; held-out pairs are of other prompts."""
    files = {"data.train": f"{data}/{PAIRS}.jsonl"}
    files |= {"data.eval": f"{data}/held_out.jsonl"}
    keys = {k: v for k, v in tier.keys.items() if not k.startswith("eval.")}
    return started(
        tier, "reward_model", "dpo", {**keys, **REWARD, **tier.reward_model, **files}
    )


def best_of(tier: Tier, data: str) -> Trial:
    """Makes a trial that stays at the reference, and says what its best samples are."""
    still = {"train.steps": 1, "optimizer.lr": 0.0, "eval.best_of": tier.best_of}
    given = {**tier.keys, **judged(tier, data, LEARNED), **tier.offline, **still}
    given["data.train"] = f"{data}/{PAIRS}.jsonl"
    return started(tier, "best_of", "dpo", given)


def ppo(tier: Tier, data: str, name: str, target: float, learned: Keys) -> Trial:
    """Makes a trial of PPO whose coefficient adapts to a KL."""
    by = {} if learned else {"reward.name": tier.truth}
    given = {**tier.keys, **by, **judged(tier, data, learned), **tier.on_policy}
    given |= {"data.train": f"{data}/prompts.jsonl", "ppo.kl_target": target}
    return started(tier, name, "ppo", {**given, **often(tier, given)})


def started(tier: Tier, name: str, config: str, keys: Keys) -> Trial:
    """Makes a trial that starts from the reference and keeps its export alone."""
    start = {"model.path": tier.reference, **EXPORT_ALONE}
    return Trial(name, config, {**start, **keys})


def often(tier: Tier, keys: Keys) -> Keys:
    """Returns the keys by which a trial is evaluated evenly over its steps."""
    return {"eval.rollouts_every_steps": keys["train.steps"] // tier.evals}


def judged(tier: Tier, data: str, learned: Keys | None = None) -> Keys:
    """Returns the keys by which samples are judged, beside the learned reward if any.

    The truth weighs nothing where a learned reward is what is trained on.
    """
    keys = {**(learned or {}), "eval.frontier": tier.ref_samples}
    if not tier.rewards:
        return keys
    named = {"reward.name": tier.truth}
    if learned:
        named = {"reward.name": f"model+{tier.truth}", "reward.weights": (1.0, 0.0)}
    own = {"rewards": tier.rewards, "eval.true_reward": tier.truth}
    return {**keys, **named, **own, "data.eval": f"{data}/eval.jsonl"}
