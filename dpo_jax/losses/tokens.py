"""Weights on the tokens of a response, shared by policy and reference."""

from collections.abc import Callable

from dpo_jax.types import Array

WEIGHTS: dict[str, Callable[..., Array]] = {}
