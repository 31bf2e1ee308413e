"""What a policy does when it is sampled: true reward, and KL against the reference.

KL is the sum over time of the full-vocabulary KL between policy and reference at the
sampled contexts, as in footnote 3 of arXiv:2305.18290: the same expectation as that of
summed log-ratios, with less variance.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from dpo_jax import logps
from dpo_jax.evals import best_of
from dpo_jax.types import ApplyFn, Array, Batch, Params, Samples


class Judged(NamedTuple):
    """What is said of n samples of N prompts; NaN = nothing.

    Attributes:
      rewards: f64[N, n], what they are worth.
      scores: f64[N, n], by which the best of several is chosen.
      by_name: f64[N, n] of each reward that was asked.
    """

    rewards: np.ndarray
    scores: np.ndarray
    by_name: dict[str, np.ndarray]


# texts and token ids of n samples of N prompts -> what is said of them
Judge = Callable[[list[list[str]], list[list[list[int]]]], Judged]


class Rollout(NamedTuple):
    """Samples of N prompts, as means over those of each; NaN = no verdict.

    Attributes:
      texts: the first sample of each, decoded.
      shown: f64[N] rewards of those.
      rewards: f64[N].
      kls: f64[N] nats, summed over tokens.
      lengths: f64[N] tokens.
      best: m -> f64[N], what the best of m samples is worth.
      by_name: f64[N] of each reward that was asked.
      absent: samples without a verdict.
    """

    texts: list[str]
    shown: np.ndarray
    rewards: np.ndarray
    kls: np.ndarray
    lengths: np.ndarray
    best: dict[int, np.ndarray]
    by_name: dict[str, np.ndarray]
    absent: int


def mean_se(values: np.ndarray) -> tuple[float, float | None]:
    """Returns the mean and its standard error, which one value alone does not have.

    Args:
      values: f[N]; NaN = there is none.
    """
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return float(values.mean()), None
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def sequence_kl(
    params: Params,
    ref_params: Params,
    batch: Batch,
    *,
    apply: ApplyFn,
    ref_apply: ApplyFn,
    chunk: int,
    temperature: float = 1.0,
) -> Array:
    """Sums KL(policy‖ref) over the vocabulary and over the tokens of each response.

    Args:
      params: the policy's.
      ref_params: the reference's.
      batch: rows whose responses are scored.
      apply: the policy.
      ref_apply: the reference.
      chunk: scored tokens per row whose logits are held at a time.
      temperature: of both distributions.

    Returns:
      f32[B, R] nats.
    """
    hidden, head, _ = apply(params, batch)
    states = jnp.take_along_axis(hidden, batch.parents[..., None], axis=1)
    ref_hidden, ref_head, _ = ref_apply(ref_params, batch)
    # `kl` is that of the distribution given as `ref` against the one that is scored
    kl = logps.list_stats(
        ref_hidden,
        ref_head,
        batch,
        chunk=chunk,
        ref=(states, head),
        temperature=temperature,
    ).kl
    assert kl is not None
    ones, slots = jnp.ones(kl.shape), batch.ends.shape[-1]
    return logps.response_logps(kl, ones, batch.slots, slots)


def judged(
    samples: Samples,
    kls: np.ndarray,
    *,
    decode: Callable[[Sequence[int]], str],
    judge: Judge,
) -> Rollout:
    """Judges n samples of each prompt.

    Args:
      samples: [N, n, G] of the host.
      kls: f32[N, n] nats.
      decode: ids -> text, special tokens left out.
      judge: of all samples together.
    """
    ids = samples.ids()
    texts = [[decode(sample) for sample in of_prompt] for of_prompt in ids]
    said = judge(texts, ids)
    scores, rewards = said.scores, said.rewards
    return Rollout(
        texts=[of_prompt[0] for of_prompt in texts],
        shown=rewards[:, 0],
        rewards=_means(rewards),
        kls=_means(kls),
        lengths=_means(samples.mask.sum(2)),
        best={
            m: best_of.expected_best(scores, rewards, m)
            for m in best_of.sizes(samples.mask.shape[1])
        },
        by_name={name: _means(values) for name, values in said.by_name.items()},
        absent=int(np.isnan(scores).sum()),
    )


def _means(values: np.ndarray) -> np.ndarray:
    """Averages f[N, n] over the samples of each prompt that have a value."""
    there = ~np.isnan(values)
    total = np.where(there, values, 0.0).sum(1, dtype=np.float64)
    return np.where(there.any(1), total / np.maximum(there.sum(1), 1), np.nan)
