"""Configurations that come from files: a run's config.json, a user's own FILE.py."""

from collections.abc import Mapping
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from dpo_jax import schema
from dpo_jax.config import fits, flat, unknown_keys
from dpo_jax.errors import ConfigError, collected
from dpo_jax.schema import Config, base


def from_json(saved: Mapping[str, Any]) -> Config:
    """Returns the configuration that a config.json holds, of this version or another.

    Keys that its version did not have get their defaults; keys that this version does
    not have are told and left out.

    Args:
      saved: what the file holds.

    Raises:
      ConfigError: if a value is of another type than the key's.
    """
    given = flat(saved)
    config = base()
    config.losses = str(given.get("losses", ""))
    schema.with_room(config, given).lock()
    for key in sorted(given.keys() - flat(config).keys()):
        logging.warning("config.json: %s=%r is not known here", key, given[key])
    with collected(ConfigError) as complaints:
        complaints += _misfits(config, given, "config.json")
    values = {key: given[key] for key in given.keys() & flat(config).keys()}
    lists = {key: tuple(v) for key, v in values.items() if isinstance(v, list)}
    config.update_from_flattened_dict(values | lists)
    return config


def check_whole(config: Config, whose: str) -> None:
    """Checks that a configuration of a user's making has every key and no other.

    Args:
      config: of whatever keys and values.
      whose: where it stands, for the message.

    Raises:
      ConfigError: naming what is missing, not known, or of another type.
    """
    given = flat(config)
    whole = schema.with_room(base(), given)
    missing = sorted(flat(whole).keys() - given.keys())
    others = [key for key in given if not key.startswith(schema.OWN_OPTIONS)]
    with collected(ConfigError) as complaints:
        complaints += _misfits(whole, given, whose) or [
            f"{whose}: {fault}" for fault in unknown_keys(whole, others)
        ]
        if missing and not complaints:
            complaints.append(
                f"{whose} lacks {', '.join(missing)[:200]}; change a configuration "
                "that has every key, such as dpo_jax.configs.dpo.get_config()"
            )


def _misfits(config: Config, given: Mapping[str, Any], whose: str) -> list[str]:
    """Complains of values that are of other types than the keys' own.

    Args:
      config: that has every key.
      given: `section.key` -> value.
      whose: where they stand, for the message.
    """
    known = flat(config)
    faults = [
        f"{whose}: {key} is a section, and cannot be {str(given[key])[:80]!r}"
        for key in config
        if isinstance(config[key], ConfigDict) and given.get(key, {}) != {}
    ]
    return faults + [
        f"{whose}: {key}={str(given[key])[:80]!r} is not of type "
        f"{type(known[key]).__name__}"
        for key in sorted(given.keys() & known.keys())
        if not fits(given[key], known[key])
    ]
