"""What a policy does when it is sampled: true reward, and KL against the reference.

KL is the sum over time of the full-vocabulary KL between policy and reference at the
sampled contexts, as in footnote 3 of arXiv:2305.18290: the same expectation as that of
summed log-ratios, with less variance.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import heads
from dpo_jax.types import ApplyFn, Array, Batch, Params, Samples

Reward = Callable[[int, str], float]  # (index of the prompt, completion) -> reward
SampleFn = Callable[[Params, Array, Array, Array], Samples]  # prompts, lengths, key
RowsFn = Callable[[Array, Array], Batch]  # i32[B, T] tokens, i32[B] lengths
# (params, reference's params, prompts, lengths, key) -> samples, f32[B] KL in nats
PlayFn = Callable[[Params, Params, Array, Array, Array], tuple[Samples, Array]]


class Rollout(NamedTuple):
    """One continuation per prompt.

    Attributes:
      texts: completions, decoded.
      rewards: f64[B].
      kls: f64[B] nats, summed over tokens.
      lengths: f64[B] tokens.
    """

    texts: list[str]
    rewards: np.ndarray
    kls: np.ndarray
    lengths: np.ndarray


def mean_se(values: np.ndarray) -> tuple[float, float]:
    """Returns the mean and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def sequence_kl(
    params: Params,
    ref_params: Params,
    prompts: Array,
    lengths: Array,
    samples: Samples,
    *,
    apply: ApplyFn,
    ref_apply: ApplyFn,
    rows: RowsFn,
) -> Array:
    """Sums KL(policy‖ref) over the vocabulary and over generated tokens.

    Holds two [B, G, V] arrays of logits.

    Args:
      params: the policy's.
      ref_params: the reference's.
      prompts: i32[B, P] left-aligned.
      lengths: i32[B].
      samples: continuations of the prompts.
      apply: the policy.
      ref_apply: the reference.
      rows: makes one-document rows of left-aligned tokens.

    Returns:
      f32[B] nats.
    """
    size, steps = prompts.shape[0], samples.tokens.shape[1]
    at = lengths[:, None] + jnp.arange(steps)
    canvas = jnp.pad(prompts, ((0, 0), (0, steps)))
    canvas = canvas.at[jnp.arange(size)[:, None], at].set(samples.tokens)
    batch = rows(canvas, lengths + samples.mask.sum(1))

    def log_probs(apply: ApplyFn, params: Params) -> Array:
        hidden, head, _ = apply(params, batch)
        states = jnp.take_along_axis(hidden, (at - 1)[..., None], axis=1)
        return jax.nn.log_softmax(heads.logits(states, head), axis=-1)

    policy, reference = log_probs(apply, params), log_probs(ref_apply, ref_params)
    kl = (jnp.exp(policy) * (policy - reference)).sum(-1)
    return jnp.where(samples.mask, kl, 0.0).sum(1)


def pad_prompts(prompts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Left-aligns prompts: -> i32[B, P], i32[B] lengths."""
    lengths = np.array([len(p) for p in prompts], np.int32)
    out = np.zeros((len(prompts), max(lengths)), np.int32)
    for row, prompt in zip(out, prompts, strict=True):
        row[: len(prompt)] = prompt
    return out, lengths


def make_play(
    *, apply: ApplyFn, ref_apply: ApplyFn, sample: SampleFn, rows: RowsFn
) -> PlayFn:
    """Builds the compiled part of a rollout: once for all evaluations of a policy.

    Args:
      apply: the policy.
      ref_apply: the reference.
      sample: continues prompts under the policy.
      rows: makes one-document rows of left-aligned tokens.

    Returns:
      Samples, and f32[B] nats of `sequence_kl`.
    """

    def play(
        params: Params, ref_params: Params, padded: Array, lengths: Array, key: Array
    ) -> tuple[Samples, Array]:
        samples = sample(params, padded, lengths, key)
        kl = sequence_kl(
            params,
            ref_params,
            padded,
            lengths,
            samples,
            apply=apply,
            ref_apply=ref_apply,
            rows=rows,
        )
        return samples, kl

    return jax.jit(play)


def rollout(
    params: Params,
    ref_params: Params,
    prompts: Sequence[np.ndarray],
    key: Array,
    *,
    play: PlayFn,
    decode: Callable[[Sequence[int]], str],
    reward: Reward,
) -> Rollout:
    """Samples one continuation per prompt and judges it.

    Args:
      params: the policy's.
      ref_params: the reference's.
      prompts: i32[P] each.
      key: PRNG key; the same key gives policies common random numbers.
      play: of `make_play`.
      decode: ids -> text, special tokens left out.
      reward: the true reward.
    """
    padded, lengths = pad_prompts(prompts)
    samples, kls = jax.device_get(play(params, ref_params, padded, lengths, key))
    texts = [
        decode([int(t) for t, kept in zip(row, mask, strict=True) if kept])
        for row, mask in zip(samples.tokens, samples.mask, strict=True)
    ]
    return Rollout(
        texts=texts,
        rewards=np.array([reward(i, text) for i, text in enumerate(texts)]),
        kls=np.asarray(kls, np.float64),
        lengths=samples.mask.sum(1).astype(np.float64),
    )
