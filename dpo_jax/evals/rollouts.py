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
from dpo_jax.types import ApplyFn, Array, Batch, Params, Samples

Reward = Callable[[int, str], float]  # (index of the prompt, completion) -> reward


class Rollout(NamedTuple):
    """One continuation per prompt.

    Attributes:
      texts: completions, decoded.
      rewards: f64[N].
      kls: f64[N] nats, summed over tokens.
      lengths: f64[N] tokens.
    """

    texts: list[str]
    rewards: np.ndarray
    kls: np.ndarray
    lengths: np.ndarray


def mean_se(values: np.ndarray) -> tuple[float, float | None]:
    """Returns the mean and its standard error, which one value alone does not have."""
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
) -> Array:
    """Sums KL(policy‖ref) over the vocabulary and over the tokens of each response.

    Args:
      params: the policy's.
      ref_params: the reference's.
      batch: rows whose responses are scored.
      apply: the policy.
      ref_apply: the reference.
      chunk: scored tokens per row whose logits are held at a time.

    Returns:
      f32[B, R] nats.
    """
    hidden, head, _ = apply(params, batch)
    states = jnp.take_along_axis(hidden, batch.parents[..., None], axis=1)
    ref_hidden, ref_head, _ = ref_apply(ref_params, batch)
    # `kl` is that of the distribution given as `ref` against the one that is scored
    other = (states, head)
    kl = logps.list_stats(ref_hidden, ref_head, batch, chunk=chunk, ref=other).kl
    assert kl is not None
    ones, slots = jnp.ones(kl.shape), batch.ends.shape[-1]
    return logps.response_logps(kl, ones, batch.slots, slots)


def judged(
    samples: Samples,
    kls: np.ndarray,
    *,
    decode: Callable[[Sequence[int]], str],
    reward: Reward,
) -> Rollout:
    """Judges one continuation per prompt.

    Args:
      samples: [N, 1, G] of the host.
      kls: f32[N, 1] nats.
      decode: ids -> text, special tokens left out.
      reward: the true reward.
    """
    rows = zip(samples.tokens[:, 0], samples.mask[:, 0], strict=True)
    texts = [decode(tokens[mask].tolist()) for tokens, mask in rows]
    return Rollout(
        texts=texts,
        rewards=np.array([reward(i, text) for i, text in enumerate(texts)]),
        kls=kls[:, 0].astype(np.float64),
        lengths=samples.mask.sum((1, 2)).astype(np.float64),
    )
