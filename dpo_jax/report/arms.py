"""What is compared in a sweep: method, learning rate, strength and seed of its trials.

All of it is read from what the trials' configurations differ in:

* `seed` and `data.seed` are the seed; `optimizer.lr` is the learning rate.
* Real numbers of `loss.…`, `ppo.…`, `rloo.…`, `awr.…` and `online.…` that differ within
  a method are its own strength (β, α, λ, a KL).
* Every other key tells methods apart. Where none differs, the strengths are what is
  compared; where none of these does, the learning rates.

A trial that others start from is a stage, and not compared. What a relaunch may change
tells nothing apart.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dpo_jax import schema

LR = "optimizer.lr"
SEEDS = ("seed", "data.seed")
OWN = ("loss", "ppo", "rloo", "awr", "online")  # sections whose numbers are strengths
NAMING = ("loss.name", "objective")  # keys that name a method by their value alone
TRAINING = ("train.steps", "train.epochs", "batch.pairs", "rollout.samples")

Flat = Mapping[str, Any]


class Entry(NamedTuple):
    """A trial, as the sweep file and its run folder have it.

    Attributes:
      name: of the trial.
      folder: of the run.
      config: its configuration, flat.
      usual: the configuration that `--config` names, flat, without overrides.
      needs: names of trials that it waits for.
      state: where it stands, and what more is to be said; '' = done.
      code: exit code of its last launch; None where a worker knows of none.
      versions: of this program that it was launched by.
    """

    name: str
    folder: str
    config: Flat
    usual: Flat
    needs: tuple[str, ...] = ()
    state: str = ""
    code: int | None = None
    versions: tuple[str, ...] = ()


class Place(NamedTuple):
    """Where a trial stands in the comparison.

    Attributes:
      method: its name.
      setting: what is tuned, key -> value: `optimizer.lr` where it differs within the
        method, and the method's own strength.
      seed: the seeds.
      usual: whether the setting is that of the trial's `--config`; of an option that
        this does not have, the first value that the sweep lists.
    """

    method: str
    setting: tuple[tuple[str, Any], ...]
    seed: tuple[int, int]
    usual: bool


class Arms(NamedTuple):
    """The trials that are compared, each with its place, in the sweep's order.

    Attributes:
      places: name of a trial -> its place.
      base: the method that others are compared with: the one that the first trial's
        `--config` names, else the first.
      stages: names of trials that others start from.
      same_pairs: whether all methods see the same data in steps of the same size.
    """

    places: dict[str, Place]
    base: str
    stages: list[str]
    same_pairs: bool


def arms_of(entries: Sequence[Entry]) -> Arms:
    """Reads from the configurations of trials what is compared.

    Args:
      entries: all trials of the sweep; at least one.
    """
    needed = {name for entry in entries for name in entry.needs}
    compared = [entry for entry in entries if entry.name not in needed]
    stages = [entry for entry in entries if entry.name in needed]
    exports = {f"{entry.folder}/export": like(entry, stages) for entry in stages}
    configs = [_of_run(entry.config, exports) for entry in compared]
    usual = [_of_run(entry.usual, exports) for entry in compared]
    differing = varying(configs)
    free = [key for key in differing if _is_strength(key, configs)]
    keys = [key for key in differing if key not in (LR, *SEEDS, *free)]
    keys = keys or free or [key for key in differing if key == LR]
    methods = [tuple(config.get(key) for key in keys) for config in configs]
    names = named(methods, keys)
    tuned = tuned_keys(names, configs, [LR, *free])
    places = {
        entry.name: place_of(name, tuned[name], config, before)
        for entry, name, config, before in zip(
            compared, names, configs, usual, strict=True
        )
    }
    first = tuple(usual[0].get(key) for key in keys)
    base = names[methods.index(first)] if first in methods else names[0]
    data = [key for key in differing if key.startswith("data.") and key not in SEEDS]
    same = not data and "batch.pairs" not in differing
    return Arms(places, base, [entry.name for entry in stages], same)


def tuned_keys(
    names: Sequence[str], configs: Sequence[Flat], free: Sequence[str]
) -> dict[str, list[tuple[str, Any]]]:
    """Lists what is tuned of each method: those of `free` that differ within it.

    Args:
      names: of each trial's method.
      configs: of each trial.
      free: keys.

    Returns:
      Name of a method -> its keys, each with the value of its first trial.
    """
    groups: dict[str, list[Flat]] = {}
    for name, config in zip(names, configs, strict=True):
        groups.setdefault(name, []).append(config)
    return {
        name: [(key, peers[0].get(key)) for key in varying(peers) if key in free]
        for name, peers in groups.items()
    }


def place_of(
    name: str, tuned: Sequence[tuple[str, Any]], config: Flat, usual: Flat
) -> Place:
    """Says where a trial of a method stands."""
    setting = tuple((key, config.get(key)) for key, _ in tuned)
    default = tuple((key, usual.get(key, first)) for key, first in tuned)
    seed = (config["seed"], config["data.seed"])
    return Place(name, setting, seed, setting == default)


def varying(configs: Sequence[Flat]) -> list[str]:
    """Lists the keys that configurations differ in, in their order."""
    keys = dict.fromkeys(key for config in configs for key in config)
    first = configs[0]
    return [k for k in keys if any(c.get(k) != first.get(k) for c in configs)]


def named(methods: Sequence[tuple[Any, ...]], keys: Sequence[str]) -> list[str]:
    """Names methods by as few of their keys as tell them apart.

    Args:
      methods: of each trial, the values of the keys.
      keys: in which methods differ; () = there is one.
    """
    if not keys:
        return ["all"] * len(methods)
    ordered = sorted(keys, key=lambda key: key not in NAMING)
    distinct = {json.dumps(method, default=str) for method in methods}
    shown = ordered
    for count in range(1, len(ordered)):
        places = [keys.index(key) for key in ordered[:count]]
        told = {json.dumps([m[i] for i in places], default=str) for m in methods}
        if len(told) == len(distinct):
            shown = ordered[:count]
            break
    return [
        ", ".join(_said(key, method[keys.index(key)]) for key in shown)
        for method in methods
    ]


def said_setting(setting: Sequence[tuple[str, Any]]) -> str:
    """Writes a setting: `lr=0.0003, beta=0.1`."""
    return ", ".join(_said(key, value) for key, value in setting)


def _said(key: str, value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if key in NAMING else f"{key.rpartition('.')[2]}={text}"


def _of_run(config: Flat, exports: Mapping[str, str]) -> Flat:
    """Keeps what tells runs apart, and puts names of stages for their exports."""
    return {
        key: exports.get(value, value) if isinstance(value, str) else value
        for key, value in config.items()
        if not key.startswith(schema.RELAUNCH)
    }


def like(stage: Entry, stages: Sequence[Entry]) -> str:
    """Names a stage by the first that differs from it in its seed at most."""
    differing = [varying([stage.config, other.config]) for other in stages]
    same = [set(keys) <= set(SEEDS) for keys in differing]
    return stages[same.index(True)].name


def _is_strength(key: str, configs: Sequence[Flat]) -> bool:
    """Says whether a key is a real number of a method's own."""
    values = [config[key] for config in configs if key in config]
    own = key.partition(".")[0] in OWN
    return own and all(isinstance(value, float) for value in values)
