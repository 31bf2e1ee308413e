"""What was sampled: as metrics, and as the JSON files of a run folder have it."""

import hashlib
import json
from typing import Any, NamedTuple

import numpy as np

from dpo_jax import exact
from dpo_jax.data.columns import Text
from dpo_jax.evals import rollouts
from dpo_jax.evals.rollouts import Rollout


class Sampled(NamedTuple):
    """Prompts and what the policy and the reference made of them.

    Attributes:
      prompts: texts or chats.
      policy: its rollout.
      reference: its rollout.
      measure: what rewards are called.
    """

    prompts: list[Text]
    policy: Rollout
    reference: Rollout
    measure: str = "true reward"


def rollout_metrics(sampled: Sampled) -> dict[str, float]:
    """Means and standard errors of a policy's rollouts, as metrics.

    What has no verdict at all is left out.
    """
    policy, means = sampled.policy, {}
    columns = {"reward": policy.rewards, "kl": policy.kls}
    columns |= {f"best_of_{m}": values for m, values in policy.best.items()}
    for name, values in columns.items():
        if not _known(values):
            continue
        mean, error = rollouts.mean_se(values)
        means[f"rollouts/{name}"] = mean
        if error is not None:
            means[f"rollouts/{name}_se"] = error
    for name, values in policy.by_name.items():
        if _known(values):
            means[f"rollouts/rewards/{name}/mean"] = rollouts.mean_se(values)[0]
    if policy.by_name:
        means["rollouts/absent_rewards"] = float(policy.absent)
    return means | {"rollouts/length": float(policy.lengths.mean())}


def before_and_after(sampled: Sampled) -> dict[str, Any]:
    """Lays reference and policy side by side, as results.json has them.

    The row `difference` pairs the prompts, so its error is that of the mean difference.
    Of the best of m samples of the reference only a bound of its KL is known.
    """
    reward, before = sampled.measure, sampled.reference
    both = {"before (reference)": before, "after (policy)": sampled.policy}
    rows = [
        (
            name,
            {
                reward: rollout.rewards,
                "KL to reference (nats)": rollout.kls,
                "length (tokens)": rollout.lengths,
            },
        )
        for name, rollout in both.items()
    ]
    gain = sampled.policy.rewards - before.rewards
    rows.append(("difference", {reward: gain}))
    for m, values in before.best.items():
        bound = np.array([float(exact.best_of_n_kl_bound(m))])
        name = f"best of {m} of the reference"
        rows.append((name, {reward: values, "KL to reference at most (nats)": bound}))
    count = len(sampled.prompts)
    return {
        "title": f"{reward.capitalize()} of {count} sampled continuations",
        "rows": [
            {
                "name": name,
                "values": {n: _cell(v) for n, v in cells.items() if _known(v)},
            }
            for name, cells in rows
        ],
    }


def _known(values: np.ndarray) -> bool:
    return not np.isnan(values).all()


def _cell(values: np.ndarray) -> float | tuple[float, float]:
    """Gives a mean with its standard error, where there is one."""
    mean, error = rollouts.mean_se(values)
    return mean if error is None else (mean, error)


def side_by_side(sampled: Sampled, count: int) -> list[dict[str, Any]]:
    """Picks the first few prompts with both continuations, as samples.json has them."""
    before, after = sampled.reference, sampled.policy
    return [
        {
            "prompt": _shown(sampled.prompts[i]),
            "before": before.texts[i],
            "after": after.texts[i],
            "reward_before": _number(before.shown[i]),
            "reward_after": _number(after.shown[i]),
        }
        for i in range(min(count, len(sampled.prompts)))
    ]


def by_prompt(sampled: Sampled) -> dict[str, Any]:
    """Lists what was measured of each prompt, as rollouts.json has it.

    Each list has a number a prompt, its samples' mean, in the order in which they were
    sampled; null where there is no verdict. `prompts` is a digest of their texts: where
    it is the same, the numbers of two runs can be paired.
    """
    text = json.dumps(sampled.prompts, ensure_ascii=False)
    both = {"policy": sampled.policy, "reference": sampled.reference}
    return {
        "measure": sampled.measure,
        "prompts": hashlib.sha256(text.encode()).hexdigest()[:16],
        **{
            name: {
                "reward": list(map(_number, rollout.rewards)),
                "kl": list(map(_number, rollout.kls)),
                "length": list(map(_number, rollout.lengths)),
            }
            for name, rollout in both.items()
        },
    }


def _shown(prompt: Text) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def _number(value: float) -> float | None:
    """Gives a number to JSON, which has no NaN."""
    return None if np.isnan(value) else float(value)
