"""PPO, RLOO and AWR: what each makes of a rollout, and what it minimises."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from dpo_jax.losses import Loss
from dpo_jax.objectives import policy_gradient as pg
from dpo_jax.objectives import terms
from dpo_jax.objectives.on_policy import (
    Algorithm,
    Made,
    Rollout,
    mean_kl,
    scores_with_penalty,
    token_rewards,
)
from dpo_jax.types import Array, Columns, Counts, Hyper, Stats, Sums


def settle_ppo(
    rollout: Rollout,
    hyper: Hyper,
    *,
    estimator: str,
    whiten_scores: bool,
    whiten_rewards: bool,
    whiten_advantages: bool,
) -> Made:
    """Makes advantages and returns of the tokens of a rollout.

    The KL to the reference is a penalty in each token's reward; the score stands on the
    last token, with a penalty where that does not end the sample.
    """
    scores = scores_with_penalty(rollout, hyper)
    if whiten_scores:
        scores = pg.whiten(scores, rollout.present)
    kl = pg.kl_penalty(rollout.logps, rollout.ref_logps, estimator=estimator)
    rewards = token_rewards(scores, hyper["kl_coef"] * kl, rollout.mask)
    if whiten_rewards:
        rewards = pg.whiten(rewards, rollout.mask, shift=False)
    advantages = pg.gae(
        rewards,
        rollout.values,
        rollout.mask,
        gamma=hyper["gamma"],
        lam=hyper["lam"],
    )
    returns = advantages + jnp.where(rollout.mask, rollout.values, 0.0)
    if whiten_advantages:
        advantages = pg.whiten(advantages, rollout.mask)
    return {"advantages": advantages, "returns": returns}


def ppo_loss(columns: Columns, hyper: Hyper, counts: Counts) -> tuple[Array, Sums]:
    """Adds the clipped losses of policy and critic, means over the sampled tokens."""
    token = columns.token
    mask = token["sampled"] > 0
    moved = jnp.where(mask, token["logps"] - token["old_logps"], 0.0)
    policy, clipped = pg.clipped_policy_loss(
        moved, token["advantages"], clip=hyper["clip_range"]
    )
    known = (
        jnp.where(mask, token[n], 0.0) for n in ("values", "old_values", "returns")
    )
    value = pg.clipped_value_loss(*known, clip=hyper["value_clip"])
    losses = jnp.where(mask, policy + hyper["value_coef"] * value, 0.0)
    means = {
        "policy_loss": policy,
        "value_loss": value,
        "ratio": pg.bounded_exp(moved),
        "clip_ratio": clipped,
    }
    share = losses.sum() / jnp.maximum(counts["tokens"], 1.0)
    return share, terms.masked_means(means, mask)


def adapt_kl(stats: Stats, rollout: Rollout, hyper: Hyper) -> Stats:
    """Moves the coefficient of the KL after a turn."""
    coef = pg.adapted_kl_coef(
        stats["kl_coef"],
        mean_kl(rollout),
        target=hyper["kl_target"],
        horizon=hyper["kl_horizon"],
        samples=rollout.present.sum(),
    )
    return stats | {"kl_coef": coef}


def settle_rloo(rollout: Rollout, hyper: Hyper, *, normalize: str) -> Made:
    """Makes an advantage of each sample: its reward less the KL, against its siblings.

    Args:
      rollout: with n ≥ 2 samples of each prompt.
      hyper: `kl_coef`, `missing_eos_penalty`.
      normalize: `none` leaves each one out of its baseline; `std` is GRPO's.
    """
    scores = scores_with_penalty(rollout, hyper)
    rewards = scores - hyper["kl_coef"] * rollout.kls
    compare = pg.group_standardized if normalize == "std" else pg.leave_one_out
    return {"sample_advantages": compare(rewards, rollout.present)}


def rloo_loss(
    columns: Columns, hyper: Hyper, counts: Counts, *, ratio: str
) -> tuple[Array, Sums]:
    """Returns the clipped loss, of whole samples or of their tokens.

    Args:
      columns: of a microbatch.
      hyper: `clip_range`.
      counts: of the whole update.
      ratio: `sequence` weighs a sample by the ratio of its summed log-probs, a mean
        over samples (so a token's gradient does not depend on its sample's length);
        `token` weighs each token by its own, a mean over all tokens.
    """
    response, token = columns.response, columns.token
    if ratio == "sequence":
        mask, count = response["present"] > 0, counts["samples"]
        moved = jnp.where(mask, response["logps"] - response["old_logps"], 0.0)
        advantages = response["sample_advantages"]
    else:
        mask, count = token["sampled"] > 0, counts["tokens"]
        moved = jnp.where(mask, token["logps"] - token["old_logps"], 0.0)
        advantages = token["advantages"]
    loss, clipped = pg.clipped_policy_loss(moved, advantages, clip=hyper["clip_range"])
    means = {
        "policy_loss": loss,
        "ratio": pg.bounded_exp(moved),
        "clip_ratio": clipped,
    }
    share = jnp.where(mask, loss, 0.0).sum() / jnp.maximum(count, 1.0)
    return share, terms.masked_means(means, mask)


def settle_awr(rollout: Rollout, hyper: Hyper, *, baseline: str) -> Made:
    """Weighs each sample by exp of its advantage over the mean of its prompt.

    Without a baseline the weights are exp of the rewards: drawn from the reference,
    what maximises the weighted likelihood is then ref · exp(r/β) / Z to the digit.
    """
    advantages = scores_with_penalty(rollout, hyper)
    if baseline == "prompt":
        advantages = pg.centered(advantages, rollout.present, -1)
    weights = pg.advantage_weights(
        advantages, beta=hyper["awr_beta"], largest=hyper["weight_clip"]
    )
    return {"weights": jnp.where(rollout.present, weights, 0.0)}


def awr_loss(columns: Columns, hyper: Hyper, counts: Counts) -> tuple[Array, Sums]:
    """Returns the weighted negative log-likelihood, a mean over samples."""
    response = columns.response
    mask, weights = response["present"] > 0, response["weights"]
    losses = jnp.where(mask, -weights * response["logps"], 0.0)
    clipped = (weights >= hyper["weight_clip"]).astype(jnp.float32)
    means = {"policy_loss": losses, "weights": weights, "clip_ratio": clipped}
    share = losses.sum() / jnp.maximum(counts["samples"], 1.0)
    return share, terms.masked_means(means, mask)


class SampleKind(NamedTuple):
    """What is learned from samples of the policy, as `judged.Kind` says it of rows.

    Attributes:
      make: section of the configuration -> the algorithm.
      rows: of data.
      scalar: as in `Kind`.
      reference: as in `Kind`.
      record: as in `Kind`.
    """

    make: Callable[[Mapping[str, Any]], Algorithm]
    rows: str = "prompts"
    scalar: bool = False
    reference: bool = True
    record: str = "samples"

    def judges(self, loss: Loss) -> bool:
        """Says that no loss of the table is one of samples."""
        del loss
        return False


def make_ppo(given: Mapping[str, Any]) -> Algorithm:
    """Builds PPO; `given` is `config.ppo`."""
    settle = functools.partial(
        settle_ppo,
        estimator=given["kl_estimator"],
        whiten_scores=given["whiten_scores"],
        whiten_rewards=given["whiten_rewards"],
        whiten_advantages=given["whiten_advantages"],
    )
    close = adapt_kl if given["kl_target"] else None
    return Algorithm(settle, ppo_loss, critic=True, close=close)


def make_rloo(given: Mapping[str, Any]) -> Algorithm:
    """Builds RLOO; `given` is `config.rloo`."""
    settle = functools.partial(settle_rloo, normalize=given["normalize"])
    loss = functools.partial(rloo_loss, ratio=given["ratio"])
    if given["ratio"] == "token":
        settle = _of_tokens(settle)
    return Algorithm(settle, loss)


def _of_tokens(settle: Any) -> Any:
    def spread(rollout: Rollout, hyper: Hyper) -> Made:
        of_samples = settle(rollout, hyper)["sample_advantages"]
        return {"advantages": jnp.where(rollout.mask, of_samples[..., None], 0.0)}

    return spread


def make_awr(given: Mapping[str, Any]) -> Algorithm:
    """Builds AWR; `given` is `config.awr`."""
    return Algorithm(
        functools.partial(settle_awr, baseline=given["baseline"]), awr_loss
    )


PPO, RLOO, AWR = SampleKind(make_ppo), SampleKind(make_rloo), SampleKind(make_awr)
