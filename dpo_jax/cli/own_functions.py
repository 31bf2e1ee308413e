"""Functions of a user's file, each by its name: losses, or rewards.

    def focal(logps, *, beta, focal_gamma: Annotated[float, NOT_NEGATIVE] = 2.0): …

    def polite(prompts, completions, **columns): …

A `Loss` says more than a bare function: what it is a function of, what it is divided
by. Options with a default belong to this loss alone: `loss.options.focal.focal_gamma`.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax

from dpo_jax.cli.common import module_of
from dpo_jax.errors import ConfigError, UserError
from dpo_jax.losses import LOSSES, Loss, LossTable
from dpo_jax.rewards import REWARDS, RewardTable


def losses_of(file: str) -> LossTable:
    """Returns the table of losses with those of a file, which may replace others.

    Args:
      file: a Python file: its public functions and `Loss`es; '' = none.

    Raises:
      ConfigError: if it cannot be loaded, or has none.
    """
    if not file:
        return LOSSES
    own = _public("losses", file, lambda value: isinstance(value, Loss))
    return {**LOSSES, **{name: _guarded(name, own[name], file) for name in own}}


def rewards_of(file: str) -> RewardTable:
    """Returns the table of rewards with those of a file, which may replace others.

    Args:
      file: a Python file: its public functions, and objects of its own or of a library
        that can be called; '' = none.

    Raises:
      ConfigError: if it cannot be loaded, or has none.
    """

    def called(value: Any) -> bool:
        return callable(value) and not (
            inspect.isclass(value) or inspect.isroutine(value)
        )

    if not file:
        return REWARDS
    return {**REWARDS, **_public("rewards", file, called)}


def _public(flag: str, file: str, more: Callable[[Any], bool]) -> dict[str, Any]:
    """Loads a file; returns its own public functions, and what else counts."""
    module = module_of(file, f"--{flag}")
    own = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (
            more(value)
            or (inspect.isfunction(value) and value.__module__ == module.__name__)
        )
    }
    if not own:
        raise ConfigError(f"--{flag}={file} has no public function")
    return own


def _guarded(name: str, loss: Any, file: str) -> Any:
    """Returns a loss whose faults name the file that it stands in."""
    if isinstance(loss, Loss):
        return loss._replace(fn=_guarded(name, loss.fn, file))

    @functools.wraps(loss)  # options are read off its signature
    def call(*records: Any, **options: Any) -> Any:
        try:
            value = loss(*records, **options)
        except UserError:
            raise
        except Exception as error:  # whatever a user's function may raise
            what = f"{type(error).__name__}: {error}"
            raise ConfigError(f"--losses={file}: {name} raises {what}") from error
        shape = value.shape if isinstance(value, jax.Array) else None
        if shape is None or len(shape) != 1:
            found = type(value).__name__ if shape is None else f"an array {shape}"
            raise ConfigError(
                f"--losses={file}: {name} returns {found}; f32[N] is due, one value "
                "for each pair of the batch"
            )
        return value

    return call
