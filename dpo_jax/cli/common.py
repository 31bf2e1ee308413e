"""Flags, jax settings and logging that the verbs share."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from dpo_jax.errors import ConfigError, UserError, unknown
from dpo_jax.train import runfolder

Define = Callable[[flags.FlagValues], None]


def parse(
    arguments: Sequence[str], *, config: bool, define: Define
) -> flags.FlagValues:
    """Parses a verb's flags.

    Args:
      arguments: what follows the verb.
      config: whether the verb takes `--config=FILE[:ARG] --config.KEY=VALUE`.
      define: adds the verb's own flags.

    Raises:
      ConfigError: naming the flag or key, with the nearest known one.
    """
    values = flags.FlagValues()
    flags.DEFINE_bool(
        "debug", False, "print tracebacks; check for NaN", flag_values=values
    )
    define(values)
    argv = ["dpo_jax", *arguments]
    if config:
        config_flags.DEFINE_config_file(
            "config", lock_config=True, flag_values=values, sys_argv=argv
        )
    try:
        left = values(argv)
    except flags.UnrecognizedFlagError as error:
        raise ConfigError(
            unknown("flag", f"--{error.flagname}", _names(values))
        ) from error
    except UserError:
        raise
    except Exception as error:  # absl wraps what a config file raises
        raise ConfigError(_explain(error, arguments)) from error
    if len(left) > 1:
        raise ConfigError(f"{left[1]!r} is not a flag; flags are --name=value")
    if config and values["config"].value is None:
        raise ConfigError("--config is missing; give e.g. --config=configs/dpo.py")
    return values


def _names(values: flags.FlagValues) -> list[str]:
    return [f"--{name}" for name in values if not name.startswith("config.")]


def _explain(error: BaseException, arguments: Sequence[str]) -> str:
    """Turns absl's and ml_collections' errors into one line that names the key."""
    cause = error
    while not isinstance(cause, UserError) and cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, UserError):
        return str(cause)
    text = " ".join(str(error).split())
    key = re.search(r"\"?(\w+)\"? is not|Key \"?(\w+)\"?", text)
    given = [a.split("=")[0] for a in arguments if a.startswith("--config.")]
    named = [g for g in given if key and g.endswith(key[1] or key[2])] or given
    return f"{', '.join(named) or '--config'}: {text}"


def required(values: flags.FlagValues, name: str) -> str:
    """Returns a flag that must be given.

    Raises:
      ConfigError: if it is empty.
    """
    value = values[name].value
    if not value:
        raise ConfigError(f"--{name} is missing")
    return value


def setup_jax(config: ConfigDict, *, debug: bool) -> None:
    """Sets what jax needs before its first use: precision, compile cache, checks.

    Float32 models multiply in float32 everywhere, also on devices whose default is
    bfloat16. The compile cache is $DPO_JAX_COMPILE_CACHE, or under the user's cache.
    `DPO_JAX_CPU_DEVICES=8` makes that many fake devices of a CPU.
    """
    import jax

    if config.model.dtype == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")
    if debug:
        jax.config.update("jax_debug_nans", True)
    default = Path.home() / ".cache" / "dpo_jax" / "jax"
    cache = os.environ.get("DPO_JAX_COMPILE_CACHE", str(default))
    if cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    devices = os.environ.get("DPO_JAX_CPU_DEVICES")
    if devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", int(devices))
    if os.environ.get("DPO_JAX_DISTRIBUTED"):
        jax.distributed.initialize()


def setup_logging() -> None:
    """Sends our own log to stderr from info on, and that of libraries from warnings."""
    if not flags.FLAGS.is_parsed():  # absl and grain ask the global flags
        flags.FLAGS.mark_as_parsed()
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    logging.set_stderrthreshold(logging.INFO)
    logging.get_absl_handler().addFilter(runfolder.is_ours)
