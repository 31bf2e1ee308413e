"""Every key of a configuration: default, range, choices and meaning, one row each.

Units stand in the names (`_steps`, `_tokens`) or in the meanings. 0 or '' means "off"
or "chosen for you" where a row says so. An option that the chosen loss or optimizer
does not use is an error. No jax, so that a configuration is read in a blink.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from dpo_jax.schema.data import DATA
from dpo_jax.schema.key import (
    ANY,
    BELOW_ONE,
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    POSITIVE_SHARE,
    SHARE,
    UP_TO_ONE,
    Key,
    Range,
)
from dpo_jax.schema.losses import LOSSES
from dpo_jax.schema.models import MODELS
from dpo_jax.schema.samples import SAMPLES
from dpo_jax.schema.training import RUN, TRAINING

__all__ = [
    "KEYS",
    "OWN_OPTIONS",
    "RELAUNCH",
    "Config",
    "base",
    "own_options",
    "row",
    "section",
    "with_room",
    "ANY",
    "BELOW_ONE",
    "COUNT",
    "NOT_NEGATIVE",
    "POSITIVE",
    "POSITIVE_SHARE",
    "SHARE",
    "UP_TO_ONE",
    "Key",
    "Range",
]
Config = Any  # an `ml_collections.ConfigDict`: its attributes are its keys
Section = Mapping[str, Any]  # values of a section of one
KEYS: dict[str, Key] = RUN | MODELS | DATA | LOSSES | SAMPLES | TRAINING
OWN_OPTIONS = "loss.options."  # NAME.OPTION: an option of one loss of several
RELAUNCH = (
    "mesh.",
    "batch.microbatches",
    "log.",
    "eval.",
    "checkpoint.",
    "data.cache_dir",
    "distributed.",
    "train.watchdog_seconds",
    "ref.cache_dir",
    "model.remat",
    "model.attention",
    "data.row_shapes",
)  # what a relaunched run may change without --fork


def base() -> Config:
    """Returns every key with its default; not yet locked."""
    config: Config = ConfigDict()
    for name, key in KEYS.items():
        *sections, last = name.split(".")
        place = config
        for section in sections:
            if section not in place:
                place[section] = ConfigDict()
            place = place[section]
        place[last] = key.default
    config.loss.options = ConfigDict()
    return config


def row(key: str) -> Key | None:
    """Returns the row of a key; `loss.options.NAME.OPTION` has that of `loss.OPTION`.

    None where there is none.
    """
    if key.startswith(OWN_OPTIONS):
        _, dot, option = key.removeprefix(OWN_OPTIONS).partition(".")
        key = f"loss{dot}{option}"
    return KEYS.get(key)


def own_options(keys: Iterable[str]) -> list[str]:
    """Lists all `loss.options.NAME.OPTION` of each NAME among the keys."""
    own = [key.split(".")[2] for key in keys if key.startswith(OWN_OPTIONS)]
    return [f"{OWN_OPTIONS}{n}.{option}" for n in own for option in section("loss")]


def with_room(config: Config, given: Mapping[str, Any]) -> Config:
    """Adds the options of one loss of several that are among the keys.

    Args:
      config: with a section `loss.options`; changed in place.
      given: `section.key` -> value; keys other than `loss.options.NAME.OPTION` are
        passed over, and those without a row, but of a run with losses of its own.

    Returns:
      The configuration, each added option at its default, or as given without one.
    """
    for key, value in given.items():
        name, dot, option = key.removeprefix(OWN_OPTIONS).partition(".")
        known = row(key)
        if not (key.startswith(OWN_OPTIONS) and dot and (known or config.losses)):
            continue
        own = config.loss.options
        with config.unlocked():
            if name not in own:
                own[name] = ConfigDict()
            if option not in own[name]:
                own[name][option] = value if known is None else known.default
    return config


def section(name: str) -> dict[str, Key]:
    """Returns the rows of a section, by the names of its keys."""
    prefix = f"{name}."
    return {k.removeprefix(prefix): r for k, r in KEYS.items() if k.startswith(prefix)}
