"""Losses of a user's file: every public function of it, by its name.

    def focal(delta, *, beta, focal_gamma: Annotated[float, NOT_NEGATIVE] = 2.0): …

A `Loss` says more than a bare function: what it is a function of, what it is divided
by. Options with a default belong to this loss alone: `loss.options.focal.focal_gamma`.
"""

import importlib.util
import inspect
from pathlib import Path

from dpo_jax.errors import ConfigError, UserError
from dpo_jax.losses import LOSSES, Loss, LossTable


def table_of(file: str) -> LossTable:
    """Returns the table of losses with those of a file, which may replace others.

    Args:
      file: a Python file; '' = none.

    Raises:
      ConfigError: if it cannot be loaded, or has none.
    """
    if not file:
        return LOSSES
    if not Path(file).is_file():
        raise ConfigError(f"--losses={file}: there is no such Python file")
    spec = importlib.util.spec_from_file_location("own_losses", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:  # whatever a user's file may raise
        what = f"{type(error).__name__}: {error}"
        raise ConfigError(f"--losses={file} cannot be loaded ({what})") from error
    own = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (
            isinstance(value, Loss)
            or (inspect.isfunction(value) and value.__module__ == module.__name__)
        )
    }
    if not own:
        raise ConfigError(f"--losses={file} has no public function")
    return {**LOSSES, **own}
