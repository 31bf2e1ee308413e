"""Sweeps: trials that are command lines, and who runs them. No jax."""

from dpo_jax.launch.trial import Trial

__all__ = ["Trial"]
