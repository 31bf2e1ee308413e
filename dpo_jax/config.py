"""Configurations: the argument of `get_config`, checks, fingerprints, comparisons.

A configuration is an `ml_collections.ConfigDict` whose fields all have defaults. It is
read here and in `build.py` only; everything below takes plain arguments.
"""

import ast
import difflib
import hashlib
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from dpo_jax import schema, trl
from dpo_jax.errors import ConfigError, collected, unknown
from dpo_jax.schema import KEYS, RELAUNCH, UP_TO_ONE, Config, Range, base

LARGEST_WHOLE = 2**31 - 1  # steps and seeds travel as int32
LARGEST_REAL = 3.4e38  # float32 holds no more


def parse_arg(arg: str | None, **defaults: Any) -> dict[str, Any]:
    """Parses the text behind the colon of `--config=FILE:ARG`.

    Args:
      arg: `name=value,name=value`; a bare `name` means True. None = all defaults.
      **defaults: the names that may be given, with values whose types are kept.

    Raises:
      ConfigError: for a name that is not known, or a value of another type.

    Source: the calling convention of google-research/big_vision's configs.
    """
    values = dict(defaults)
    for part in filter(None, (arg or "").split(",")):
        name, _, text = part.partition("=")
        if name not in defaults:
            raise ConfigError(unknown("config argument", name, defaults))
        values[name] = _typed(name, text or "True", defaults[name])
    return values


def literal(text: str) -> Any:
    """Reads a Python literal; any other text is a string."""
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return text  # the last two: of thousands of brackets


def _typed(name: str, text: str, default: Any) -> Any:
    if isinstance(default, str):
        return text
    value = literal(text)
    if isinstance(default, float) and isinstance(value, int):
        value = float(value)
    if type(value) is not type(default):
        kind = type(default).__name__
        raise ConfigError(f"config argument {name}={text!r} is not of type {kind}")
    return value


def flat(config: Config | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens to {`section.key`: value}, tuples as lists, as JSON has them."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, (ConfigDict, Mapping)):
            out |= flat(value, name + ".")
        else:
            out[name] = list(value) if isinstance(value, tuple) else value
    return out


def unknown_keys(config: Config, given: Iterable[str]) -> list[str]:
    """Complains of keys that a configuration does not have.

    Args:
      config: with every key it may have.
      given: `section.key` as someone typed them.
    """
    given = list(given)
    keys = [*schema.own_options(given), *flat(config)]
    homes = {key.rpartition(".")[2]: key for key in keys} | {key: key for key in keys}
    faults = []
    for name in given:
        section = [key for key in keys if key.startswith(name + ".")]
        if section:
            faults.append(
                f"config.{name} is a section; set a key of it: {_list(section)}"
            )
        elif name not in keys:
            leaf = name.rpartition(".")[2]
            near = [trl.KEYS[leaf]] if leaf in trl.KEYS else []
            near += difflib.get_close_matches(name, homes, n=1)
            near += difflib.get_close_matches(leaf, homes, n=1)
            hint = f"; did you mean 'config.{homes[near[0]]}'?" if near else "."
            peers = [k for k in keys if k.rpartition(".")[0] == name.rpartition(".")[0]]
            tops = peers if "." in name and peers else list(config)
            faults.append(f"config.{name} is not known{hint} Known: {_list(tops)}")
    return faults


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def to_json(config: Config) -> str:
    """Writes a configuration as JSON text, keys sorted."""
    return json.dumps(config.to_dict(), indent=1, sort_keys=True) + "\n"


def at(config: Config, key: str) -> Any:
    """Returns the value of `section.key`."""
    section, _, name = key.partition(".")
    return config[section][name] if name else config[section]


def stated(config: Config, values: Mapping[str, Any]) -> Config:
    """Returns a copy in which some keys, as `section.key`, have other values."""
    copy = config.copy_and_resolve_references()
    copy.update_from_flattened_dict(dict(values))
    return copy


def fingerprint(config: Config) -> str:
    """Returns 16 hex digits that change with every key that `--fork` guards."""
    guarded = {k: v for k, v in flat(config).items() if not k.startswith(RELAUNCH)}
    text = json.dumps(guarded, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lists `key: old → new` for keys that a relaunch may not change.

    A key that one does not have, because its version did not, had its default.

    Args:
      old: nested or flat configuration, as read from config.json.
      new: likewise.
    """
    before, after = (flat(base()) | flat(config) for config in (old, new))
    return [
        f"{key}: {before.get(key)!r} → {after.get(key)!r}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key) and not key.startswith(RELAUNCH)
    ]


def fits(value: Any, kept: Any) -> bool:
    """Says whether a value may take the place of another in a configuration."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    real = whole and isinstance(kept, float) and abs(value) <= sys.float_info.max
    return type(value) is type(kept) or real


def unused_options(
    section: str, values: Mapping[str, Any], used: Iterable[str], by: str
) -> list[str]:
    """Complains of options that differ from their default although nothing reads them.

    Args:
      section: name of the config section.
      values: its fields.
      used: the fields that are read.
      by: who reads them, for the message.
    """
    used = set(used)
    return [
        f"{section}.{name}={values[name]!r} is not used by {by}; leave it at "
        f"{row.default!r} (used: {_list(used - {'name'}) or 'none'})"
        for name, row in schema.section(section).items()
        if name not in used and values[name] != row.default
    ]


def check_values(config: Config) -> list[str]:
    """Complains of numbers out of range and of names that are not known."""
    faults = []
    for key, value in flat(config).items():
        row = schema.row(key)
        if row is None:
            continue
        if isinstance(value, str) and "\0" in value:
            faults.append(f"{key}={value[:80]!r} holds a NUL character")
        if isinstance(row.default, tuple):
            faults += _item_faults(key, value, row.items)
        elif row.choices and value not in row.choices:
            faults.append(unknown(key, value, row.choices))
        elif row.range is not None and isinstance(value, int | float):
            faults += out_of_range(key, value, row.range)
        elif row.range is not None:
            faults.append(f"{key}={value!r} is not a number")
    return faults


def _item_faults(key: str, values: Sequence[Any], items: type) -> list[str]:
    """Complains of what a tuple may not hold."""
    if items is str:
        wrong = [value for value in values if not isinstance(value, str)]
        return [f"{key} holds {str(value)[:80]}, which is no word" for value in wrong]
    plain = [value for value in values if type(value) in (int, float)]
    if len(plain) < len(values):
        return [f"{key}={str(tuple(values))[:80]} must hold numbers alone"]
    return [fault for value in plain for fault in out_of_range(key, value, schema.ANY)]


def out_of_range(key: str, value: float, bounds: Range) -> list[str]:
    """Complains of a number that lies out of its range."""
    low, high, closed = bounds
    above = value >= low if closed else value > low
    most = LARGEST_WHOLE if isinstance(value, int) else LARGEST_REAL
    if above and (abs(value) <= most if high == math.inf else value < high):
        return []
    sign = "≤" if closed else "<"
    top = " ≤ 1" if high == UP_TO_ONE else f" < {high:g}"
    top = f" ≤ {most:.10g}, finite" if high == math.inf else top
    huge = isinstance(value, int) and abs(value) > 10**30
    given = f"about 1e{int(math.log10(abs(value)))}" if huge else repr(value)
    return [f"{key}={given} is out of range: {low:g} {sign} {key}{top}"]


def check_combinations(config: Config) -> list[str]:
    """Complains of keys that contradict each other."""
    faults = []
    if not config.train.steps and not config.train.epochs:
        faults.append("train.steps=0 and train.epochs=0: one must be > 0")
    if bool(config.model.path) == bool(config.model.preset):
        faults.append("give exactly one of model.path (a folder) and model.preset")
    if config.model.revision and not config.model.path:
        faults.append(
            f"model.revision={config.model.revision!r} is of a hub id; give model.path"
        )
    if not config.data.train:
        faults.append("data.train is empty: give a file or the name of a source")
    if config.data.max_prompt_tokens >= config.data.max_tokens:
        faults.append(
            f"data.max_prompt_tokens={config.data.max_prompt_tokens} leaves no room "
            f"for a response within data.max_tokens={config.data.max_tokens}"
        )
    usual = KEYS["optimizer.warmup_steps"].default  # says nothing beside a share
    if config.optimizer.warmup_share and config.optimizer.warmup_steps not in (
        0,
        usual,
    ):
        faults.append(
            f"optimizer.warmup_steps={config.optimizer.warmup_steps} and "
            f"optimizer.warmup_share={config.optimizer.warmup_share} both say how long "
            "the warm-up is; set one to 0"
        )
    if config.checkpoint.keep_best:
        faults += best_faults(config)
    return faults + reference_combinations(config.ref)


BEST = {  # metrics of an evaluation -> which value is best; '' = the user says it
    "loss": "lowest",
    "mean_token_accuracy": "highest",
    "rewards/margins": "highest",
    "rewards/accuracies": "highest",
    "scores/margins": "highest",
    "scores/accuracies": "highest",
    "scores/brier": "lowest",
    "scores/calibration_error": "lowest",
    "rollouts/reward": "highest",
    "rollouts/kl": "lowest",
    "displacement/chosen_falling": "lowest",
    **dict.fromkeys(("entropy", "mismatched_kl", "rollouts/length"), ""),
    **{
        f"{what}/{which}": ""
        for what in ("logps", "lengths", "rewards", "scores", "displacement")
        for which in ("chosen", "rejected")
    },
}


def best_of(keep_best: str) -> tuple[str, str]:
    """Splits `highest:NAME`, `lowest:NAME` or NAME into (name, which value is best)."""
    way, colon, name = keep_best.rpartition(":")
    return (name, way) if colon else (name, BEST.get(owner_of(name)[1], ""))


def owner_of(name: str) -> tuple[str, str]:
    """Splits `SOURCE/METRIC`, of one source of data.eval; a METRIC of all has ''."""
    source, slash, metric = name.partition("/")
    own = slash and name not in BEST and not metric.startswith("rollouts/")
    return (source, metric) if own and metric in BEST else ("", name)


def best_faults(config: Config) -> list[str]:
    """Complains of a `checkpoint.keep_best` that no evaluation could serve."""
    given, every = config.checkpoint.keep_best, config.eval.every_steps
    (name, way), field = best_of(given), f"checkpoint.keep_best={given!r}"
    faults = []
    if owner_of(name)[1] not in BEST:
        faults.append(unknown("checkpoint.keep_best", name, BEST))
    elif way not in ("highest", "lowest"):
        faults.append(
            f"{field} leaves open which value is best; write 'highest:{name}' or "
            f"'lowest:{name}'"
        )
    if name.startswith("rollouts/") and not config.eval.rollouts:
        faults.append(f"{field} needs prompts to sample; set eval.rollouts > 0")
    elif not (config.data.eval or config.eval.rollouts):
        faults.append(f"{field} compares evaluated states; set data.eval")
    saved = config.checkpoint.every_steps
    if not (every and saved) or saved % every:
        faults.append(
            f"{field} compares evaluated states; make checkpoint.every_steps={saved} a "
            f"multiple of eval.every_steps={every}, both > 0"
        )
    return faults


def reference_combinations(ref: Config) -> list[str]:
    """Complains of keys of the reference that nothing reads."""
    faults = []
    if ref.mode == "none" and (ref.path or ref.dtype or ref.sync_every_steps):
        faults.append(
            "ref.path, ref.dtype and ref.sync_every_steps are not used by "
            "ref.mode='none'"
        )
    if ref.revision and not ref.path:
        faults.append(f"ref.revision={ref.revision!r} is of a hub id; give ref.path")
    if ref.sync_every_steps and ref.dtype:
        faults.append(
            f"ref.dtype={ref.dtype!r} is not used by a reference that follows the "
            "policy (ref.sync_every_steps > 0): its weights are float32 masters"
        )
    usual = KEYS["ref.sync_mix"].default
    if not ref.sync_every_steps and ref.sync_mix != usual:
        faults.append(
            f"ref.sync_mix={ref.sync_mix} is not used by ref.sync_every_steps=0; leave "
            f"it at {usual}"
        )
    return faults + cache_combinations(ref)


def cache_combinations(ref: Config) -> list[str]:
    """Complains of what the cache of the reference does not go with."""
    faults = []
    if ref.cache_dir and ref.mode != "cached":
        faults.append(
            f"ref.cache_dir={ref.cache_dir!r} is not used by ref.mode={ref.mode!r}; "
            "set ref.mode='cached'"
        )
    if ref.sync_every_steps and ref.mode == "cached":
        faults.append(
            f"ref.mode='cached' keeps what a frozen reference says, but ref."
            f"sync_every_steps={ref.sync_every_steps} moves it; set ref.mode='live'"
        )
    return faults


def check(config: Config) -> None:
    """Checks a configuration on its own, before any file or device is looked at.

    Raises:
      ConfigError: naming all faults together.
    """
    with collected(ConfigError) as complaints:
        complaints += check_values(config) or check_combinations(config)
