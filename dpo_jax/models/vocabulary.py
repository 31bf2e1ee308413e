"""A table with more rows than there are ids, so that it divides over a mesh.

The rows behind the vocabulary start at 0 and are never read; their logits are as good
as −∞ (`heads`), so their gradient is 0, and what is exported has none of them. How many
there are is part of what a run is, the same on every mesh.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from dpo_jax.models.spec import DecoderSpec
from dpo_jax.types import Array

AXES = {"embed/tokens": 0, "head/kernel": 1, "head/bias": 0}  # where V stands


def unpadded(spec: DecoderSpec) -> DecoderSpec:
    """Returns what a folder holds of a spec: no row behind the vocabulary."""
    return dataclasses.replace(spec, vocab_multiple=1)


def grown(path: str, values: Array, spec: DecoderSpec) -> Array:
    """Puts zeros behind the vocabulary of a parameter that has its axis."""
    if path not in AXES or spec.rows == spec.vocab:
        return values
    ends = [(0, 0)] * values.ndim
    ends[AXES[path]] = (0, spec.rows - spec.vocab)
    return jnp.pad(values, ends)


def cut(path: str, values: np.ndarray, spec: DecoderSpec) -> np.ndarray:
    """Takes what lies behind the vocabulary off a parameter that has its axis."""
    if path not in AXES or values.shape[AXES[path]] == spec.vocab:
        return values
    return values[: spec.vocab] if AXES[path] == 0 else values[:, : spec.vocab]


def reading(
    read: Callable[[Any], np.ndarray], path: str, spec: DecoderSpec
) -> Callable[[Any], np.ndarray]:
    """Makes a reader of slices of a stored parameter give zeros behind its end.

    Args:
      read: index -> the slice.
      path: of the parameter.
      spec: of the model, padded.
    """
    if path not in AXES or spec.rows == spec.vocab:
        return read
    axis = AXES[path]

    def at(index: Any) -> np.ndarray:
        first, last = index[axis].indices(spec.rows)[:2]
        ends = [min(n, spec.vocab) for n in (first, last)]
        held = read((*index[:axis], slice(*ends), *index[axis + 1 :]))
        behind = [(0, 0)] * held.ndim
        behind[axis] = (0, last - first - held.shape[axis])
        return np.pad(held, behind)

    return at
