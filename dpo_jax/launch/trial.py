"""Trials: runs by name, some of which start from what others exported.

A sweep file has `get_sweep(arg=None) -> list[Trial]`. Each trial becomes a command line
of `train` whose state lies in a run folder, `OUT/NAME`.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from dpo_jax import config as config_lib
from dpo_jax import schema
from dpo_jax.config import Config
from dpo_jax.errors import ConfigError, UserError, collected, unknown
from dpo_jax.launch.identity import identity

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]{0,99}")
NAME_RULE = "1 to 100 of A-Z a-z 0-9 . _ = + -, the first a letter or digit"
SHARED = "_cache"  # ending of the folders that runs share, beside their own
PLACE = re.compile(r"\{([^{}]*)\}")
TEMPLATES = "data.columns."  # keys in whose values braces are a user's own
FILES = ("losses", "rewards")  # overrides that name the file of a flag

Load = Callable[[str, Mapping[str, str]], Config]


class Trial(NamedTuple):
    """A run of a sweep.

    Attributes:
      name: of the trial, and of its run folder.
      config: what `--config` takes: FILE.py[:ARG], or NAME[:ARG].
      overrides: `section.key` -> value. `{NAME}` in a text is the export of that trial;
        `losses` and `rewards` name the files that the flags of these names take.
      after: further trials that must be done before this one starts.
    """

    name: str
    config: str
    overrides: Mapping[str, Any]
    after: tuple[str, ...] = ()


class Planned(NamedTuple):
    """A trial whose configuration is resolved.

    Attributes:
      name: of the trial.
      id: 16 hex digits of the resolved configuration, its seed and its data; no path,
        host or time is among what they are made of.
      needs: names of the trials that it waits for.
      config: the whole configuration.
      usual: what `--config` names, flat, without the trial's overrides.
      folder: the run folder.
      arguments: of the command line, from `train` on.
    """

    name: str
    id: str
    needs: tuple[str, ...]
    config: Config
    usual: Mapping[str, Any]
    folder: str
    arguments: tuple[str, ...]


def plan(trials: Sequence[Trial], out: str, load: Load) -> list[Planned]:
    """Resolves the trials of a sweep, each behind those that it waits for.

    Args:
      trials: as `get_sweep` returns them.
      out: the folder of the sweep.
      load: (what `--config` takes, {flag: file}) -> configuration.

    Raises:
      ConfigError: naming all that is wrong with all trials.
    """
    check_names(trials)
    planned: dict[str, Planned] = {}
    with collected(ConfigError) as complaints:
        for trial in in_order(trials):
            if not planned.keys() >= set(needs_of(trial)):
                continue  # what it waits for is complained of
            try:
                planned[trial.name] = _resolve(trial, out, load, planned)
            except UserError as error:
                complaints.append(f"trial {trial.name}: {error}")
        complaints += twins(planned.values())
    return list(planned.values())


def check_names(trials: Sequence[Trial]) -> None:
    """Refuses names that are no name, stand twice, or are not those of a trial.

    Raises:
      ConfigError: naming all of them.
    """
    with collected(ConfigError) as complaints:
        if not trials:
            complaints.append("the sweep has no trials")
        names = [trial.name for trial in trials]
        for name in dict.fromkeys(names):
            if not isinstance(name, str) or not NAME.fullmatch(name):
                complaints.append(f"trial name {str(name)[:80]!r}: {NAME_RULE}")
            elif name.endswith(SHARED):
                complaints.append(f"trial name {name!r} is one of a folder they share")
            elif [n.casefold() for n in map(str, names)].count(name.casefold()) > 1:
                complaints.append(
                    f"trial name {name!r} stands twice (case does not count); names "
                    "are unique"
                )
        for trial in trials:
            for name in needs_of(trial):
                if name not in names:
                    what = unknown(f"trial {trial.name}: waits for", name, names)
                    complaints.append(what)


def needs_of(trial: Trial) -> tuple[str, ...]:
    """Names the trials that a trial waits for, each once."""
    named = [
        name
        for key, value in trial.overrides.items()
        if isinstance(value, str) and not key.startswith(TEMPLATES)
        for name in PLACE.findall(value)
    ]
    return tuple(dict.fromkeys([*named, *trial.after]))


def in_order(trials: Sequence[Trial]) -> list[Trial]:
    """Puts each trial behind those that it waits for; else they stay as they stand.

    Raises:
      ConfigError: if trials wait for each other.
    """
    placed: dict[str, Trial] = {}
    while len(placed) < len(trials):
        left = [trial for trial in trials if trial.name not in placed]
        ready = [trial for trial in left if placed.keys() >= set(needs_of(trial))]
        if not ready:
            names = ", ".join(trial.name for trial in left)
            raise ConfigError(f"trials wait for each other in a circle: {names}")
        placed[ready[0].name] = ready[0]
    return list(placed.values())


def _resolve(
    trial: Trial, out: str, load: Load, earlier: Mapping[str, Planned]
) -> Planned:
    """Resolves a trial whose needs are resolved.

    Raises:
      UserError: if its configuration is wrong.
    """
    given = {key: _frozen(value) for key, value in trial.overrides.items()}
    own = {name: str(given.pop(name)) for name in FILES if given.get(name)}
    exports = {name: f"{p.folder}/export" for name, p in earlier.items()}
    folder = f"{out}/{trial.name}"
    values = {key: _filled(key, value, exports) for key, value in given.items()}
    config = load(trial.config, own)
    usual = config_lib.flat(config)
    config = overridden(config, values)
    config_lib.check(config)
    ids = {f"{p.folder}/export": p.id for p in earlier.values()}
    arguments = [
        "train",
        f"--config={trial.config}",
        *(f"--{name}={file}" for name, file in own.items()),
        *(f"--config.{key}={value}" for key, value in values.items()),
        f"--workdir={folder}",
    ]
    return Planned(
        trial.name,
        identity(config, ids),
        needs_of(trial),
        config,
        usual,
        folder,
        tuple(arguments),
    )


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _filled(key: str, value: Any, exports: Mapping[str, str]) -> Any:
    """Puts the export of a trial in the place of `{NAME}`."""
    if not isinstance(value, str) or key.startswith(TEMPLATES):
        return value
    return PLACE.sub(lambda match: exports[match[1]], value)


def overridden(config: Config, values: Mapping[str, Any]) -> Config:
    """Returns a configuration with other values, as the command line would set them.

    Raises:
      ConfigError: if a key is not known, or a value of another type.
    """
    with collected(ConfigError) as complaints:
        schema.with_room(config, values)
        complaints += config_lib.unknown_keys(config, values)
    with collected(ConfigError) as complaints:
        known = config_lib.flat(config)
        complaints += [
            f"{key}={repr(value)[:80]} is not of type {type(kept).__name__}; it is "
            f"{kept!r} by default"
            for key, value in config_lib.flat(values).items()
            if not config_lib.fits(value, kept := known[key])
        ]
    return config_lib.stated(config, values)


def twins(planned: Iterable[Planned]) -> list[str]:
    """Complains of trials that are the same under two names."""
    first: dict[str, str] = {}
    faults = []
    for trial in planned:
        other = first.setdefault(trial.id, trial.name)
        if other != trial.name:
            faults.append(
                f"trials {other} and {trial.name} are the same: configuration, seed "
                "and data; leave one out"
            )
    return faults
