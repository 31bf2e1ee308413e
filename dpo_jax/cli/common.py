"""Flags, jax settings and logging that the verbs share."""

import contextlib
import hashlib
import importlib.util
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from dpo_jax import configs, schema, trl
from dpo_jax.cli import HELP, parent, value_of
from dpo_jax.cli.peers import Place, free_port, place_of
from dpo_jax.config import Config, flat, literal, unknown_keys
from dpo_jax.config_files import check_whole, from_json
from dpo_jax.errors import ConfigError, DeviceError, UserError, collected, unknown
from dpo_jax.files import read_small
from dpo_jax.train import runfolder

Flags = Any  # absl FlagValues: `values[name].value`
Define = Callable[[flags.FlagValues], None]

CONFIG_HELP = (
    "  --config: FILE.py[:ARG], or NAME[:ARG] of a shipped configuration; may be left\n"
    "    out where --workdir is a run folder, which has its own\n"
    "  --config.KEY=VALUE: overrides a key of it\n"
)


def parse(arguments: Sequence[str], *, config: bool, define: Define) -> Flags:
    """Parses a verb's flags.

    Args:
      arguments: what follows the verb.
      config: whether the verb takes `--config=FILE[:ARG] --config.KEY=VALUE`.
      define: adds the verb's own flags.

    Raises:
      ConfigError: naming the flag or key, with the nearest known one.
      SystemExit: after printing the flags, where `--help` is among the arguments.
    """
    values = flags.FlagValues()
    flags.DEFINE_bool(
        "debug", False, "print tracebacks; check for NaN", flag_values=values
    )
    define(values)
    if HELP.intersection(arguments):
        own = values.get_help().partition("\nabsl.flags:")[0]
        sys.stdout.write(f"flags:\n{CONFIG_HELP * config}{own}\n")
        sys.stdout.write(keys_help() * config)
        raise SystemExit(0)
    argv = ["dpo_jax", *arguments]
    if config:
        named, argv = _split_config(argv)
        loaded = load_config(named) if named else saved_config(argv)
        for own in ("losses", "rewards"):
            if own in values and (file := value_of(argv, f"--{own}")):
                loaded[own] = digest_of(own, file)
        _check_keys(loaded, argv)
    try:
        if config:  # reads the flags as well: a --flagfile, for one
            config_flags.DEFINE_config_dict(
                "config", loaded, lock_config=True, flag_values=values, sys_argv=argv
            )
        left = values(argv)
    except flags.UnrecognizedFlagError as error:
        raise ConfigError(_unknown_flag(error.flagname, values)) from error
    except flags.Error as error:
        raise ConfigError(_explain(error, values)) from error
    if len(left) > 1:
        raise ConfigError(f"{left[1]!r} is not a flag; flags are --name=value")
    return values


def keys_help() -> str:
    """Lists the keys of a configuration."""
    lines = [
        f"  {name}={row.default!r}: {row.meaning}" for name, row in schema.KEYS.items()
    ]
    return "\nkeys, with their defaults:\n" + "\n".join(lines) + "\n"


def _unknown_flag(name: str, values: flags.FlagValues) -> str:
    """Says what a flag that does not exist may have meant."""
    names = [name for name in values if not name.startswith("config.")]
    key = trl.KEYS.get(name, name)
    if "config" in names and key in schema.KEYS:
        return f"flag '--{name}' is not known; did you mean '--config.{key}'?"
    return unknown("flag", f"--{name}", [f"--{known}" for known in names])


def _split_config(argv: Sequence[str]) -> tuple[str, list[str]]:
    """Takes `--config=FILE[:ARG]` out of the arguments."""
    named, rest, words = "", [], iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag in ("--config", "-config"):
            named = value if equals else next(words, "")
        else:
            rest.append(word)
    return named, rest


def names_config(arguments: Sequence[str]) -> bool:
    """Tells whether `--config` is among the arguments."""
    return bool(_split_config(arguments)[0])


@contextlib.contextmanager
def loading(named: str) -> Iterator[None]:
    """Says of whatever a user's file may raise that it cannot be loaded.

    Args:
      named: the flag and its value.

    Raises:
      ConfigError: if the body raises anything but a `UserError`.
    """
    try:
        yield
    except UserError:
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, and whatever they derive from it
        what = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{named} cannot be loaded ({what})") from error


def module_of(file: str, flag: str) -> ModuleType:
    """Runs a Python file of the user's.

    Args:
      file: its path.
      flag: that names it.

    Raises:
      ConfigError: if there is no such file, or it raises something.
    """
    if not Path(file).is_file():
        raise ConfigError(f"{flag}={file}: there is no such Python file")
    spec = importlib.util.spec_from_file_location(f"file_of_{flag.strip('-')}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with loading(f"{flag}={file}"):
        spec.loader.exec_module(module)
    return module


def load_config(named: str) -> Config:
    """Runs `get_config` of a Python file.

    Args:
      named: `FILE.py`, or the name of a shipped configuration; `:ARG` may follow.

    Raises:
      ConfigError: if there is no such file or name, or it gives no ConfigDict.
    """
    file, _, argument = named.partition(":")
    if not file.endswith(".py"):
        file = shipped_config(file)
    module = module_of(file, "--config")
    with loading(f"--config={named}"):
        loaded = module.get_config(argument) if argument else module.get_config()
    if not isinstance(loaded, ConfigDict):
        kind = type(loaded).__name__
        raise ConfigError(f"--config={named} gives a {kind}; return a ConfigDict")
    with loading(f"--config={named}"):  # a dict within itself has no bottom
        check_whole(loaded, f"--config={named}")
    return loaded


def saved_config(argv: Sequence[str]) -> Config:
    """Reads the configuration of the run folder that the arguments name first.

    Raises:
      ConfigError: if they name none, or it holds no run.
    """
    workdir = value_of(argv, "--workdir").partition(",")[0]
    saved = runfolder.read_json(workdir, "config.json") if workdir else None
    if saved is None:
        none = f"; {workdir} holds none" if workdir else ""
        raise ConfigError(
            "--config is missing; give e.g. --config=dpo, a FILE.py, or --workdir=RUN "
            f"of a run{none}"
        )
    return from_json(saved)


def shipped_config(name: str) -> str:
    """Returns the file of a configuration that comes with the package.

    Raises:
      ConfigError: if none has this name.
    """
    shipped = {path.stem: path for path in Path(configs.__path__[0]).glob("[a-z]*.py")}
    if name not in shipped:
        raise ConfigError(unknown("--config", name, shipped) + "; or give a FILE.py")
    return str(shipped[name])


def _check_keys(config: Config, argv: Sequence[str]) -> None:
    """Refuses overrides of keys that the configuration does not have.

    Options of one loss of several, which no configuration lists, are added to it.

    Raises:
      ConfigError: naming all of them, each with the nearest key.
    """
    words = [a.lstrip("-").partition("=") for a in argv if a.startswith("-")]
    given = {name.removeprefix("no"): value for name, _, value in words}
    keys = {
        key.partition(".")[2]: literal(text)
        for key, text in given.items()
        if key.startswith("config.")
    }
    schema.with_room(config, keys)
    with collected(ConfigError) as complaints:
        complaints += unknown_keys(config, keys)


def digest_of(flag: str, file: str) -> str:
    """Returns 16 hex digits that change with the file of a flag.

    Raises:
      ConfigError: if it cannot be read.
    """
    try:
        return hashlib.sha256(read_small(file)).hexdigest()[:16]
    except OSError as error:
        raise ConfigError(f"--{flag}={file} cannot be read: {error}") from error


def define_own(values: flags.FlagValues, *own: str) -> None:
    """Adds `--losses` and `--rewards`, or one of them, to the flags of a verb."""
    for name in own:
        what = f"a Python file: its public functions are {name}, by their names"
        flags.DEFINE_string(name, "", what, flag_values=values)


def _explain(error: flags.Error, values: flags.FlagValues) -> str:
    """Turns absl's complaint of a value into one that names key, value and type."""
    match = re.match(r"flag --([\w.]+)=(.*): ", str(error), re.DOTALL)
    if match is None:
        return " ".join(str(error).split())
    name, text = match.groups()
    kind = values[name].flag_type()
    if name.startswith("config."):
        kept = flat(values["config"].value)[name.partition(".")[2]]
        kind = f"{type(kept).__name__}; it is {kept!r} by default"
    return f"--{name}={text.split(': ')[0]!r} is not of type {kind}"


def required(values: Flags, name: str) -> str:
    """Returns a flag that must be given.

    Raises:
      ConfigError: if it is empty.
    """
    value = values[name].value
    if not value:
        raise ConfigError(f"--{name} is missing: {values[name].help}")
    return value


def setup_jax(config: Config, *, debug: bool) -> None:
    """Sets what jax needs before its first use: devices, compile cache, checks.

    Compiled programs lie below $DPO_JAX_COMPILE_CACHE ('' = nowhere).
    `DPO_JAX_CPU_DEVICES=8` makes that many fake devices of a CPU;
    `DPO_JAX_DISTRIBUTED` is for several processes, see `join_processes`.
    """
    import jax

    from dpo_jax.train import compile_cache

    if debug:
        jax.config.update("jax_debug_nans", True)
    devices = os.environ.get("DPO_JAX_CPU_DEVICES")
    if devices:
        if not re.fullmatch("[1-9][0-9]{0,3}", devices):
            raise ConfigError(
                f"DPO_JAX_CPU_DEVICES={devices[:80]!r} must be an integer in 1 … 9999"
            )
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", int(devices))
    seconds = config.distributed.timeout_seconds
    join_processes(seconds, watchdog=config.train.watchdog_seconds)
    cache = os.environ.get("DPO_JAX_COMPILE_CACHE")
    jax.config.update("jax_enable_compilation_cache", cache != "")
    compile_cache.use(cache or None)


def join_processes(seconds: float, *, watchdog: float) -> None:
    """Joins the processes of a run; see `peers.place_of`.

    Args:
      seconds: to wait for all.
      watchdog: seconds of silence after which a parent kills its child; 0 = never.

    Raises:
      ConfigError: if it says nothing known.
      DeviceError: if jax counts other processes.
    """
    import jax

    named, link = os.environ.get("DPO_JAX_DISTRIBUTED", ""), parent.link()
    place = place_of(named)
    if link is None:
        return
    if place is None:
        jax.distributed.initialize(initialization_timeout=math.ceil(seconds))
        place = found_place(seconds)
        if place.count > 1:
            link.join(place, seconds)
    else:
        port = link.join(place, seconds)
        jax.distributed.initialize(
            f"{place.host}:{port}",
            place.count,
            place.rank,
            cluster_detection_method="deactivate",  # of local devices, too
            initialization_timeout=math.ceil(seconds),
        )
    if watchdog:
        link.keep_beating(watchdog)
    if jax.process_count() != place.count:
        raise DeviceError(
            f"DPO_JAX_DISTRIBUTED={named!r} names {place.count} processes, the devices "
            f"belong to {jax.process_count()}; give each process its own devices"
        )


def found_place(seconds: float) -> Place:
    """Says where this process stands among those that jax found."""
    from jax._src import distributed  # jax has no other door to its store

    state = distributed.global_state
    assert state.client is not None and state.coordinator_address is not None
    key = "dpo_jax/parents"
    if state.process_id == 0:
        state.client.key_value_set(key, str(free_port()))
    port = int(state.client.blocking_key_value_get(key, int(seconds * 1000)))
    host = state.coordinator_address.rpartition(":")[0]
    return Place(host, port, state.num_processes, state.process_id)


def is_first() -> bool:
    """Tells whether this process prints and writes for all."""
    import jax

    return jax.process_index() == 0


def setup_logging() -> None:
    """Sends our own log to stderr from info on, and that of libraries from warnings."""
    if not flags.FLAGS.is_parsed():  # absl and grain ask the global flags
        flags.FLAGS.mark_as_parsed()
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    logging.set_stderrthreshold(logging.INFO)
    logging.get_absl_handler().addFilter(runfolder.is_ours)
