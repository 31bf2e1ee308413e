"""`plan`: what a run's step takes of a topology, compiled before it is booked."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags, logging

from dpo_jax.cli import common
from dpo_jax.config import Config
from dpo_jax.files import write_whole
from dpo_jax.sharding import chips

COMPILER = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")  # variables that change what is compiled


def main(arguments: Sequence[str]) -> int:
    """Runs the verb; returns the exit code."""
    values = common.parse(arguments, config=True, define=define)
    topology, config = common.required(values, "topology"), values["config"].value
    common.setup_logging()
    setup_devices(topology, config)
    from dpo_jax import booking
    from dpo_jax.cli.own_functions import losses_of, rewards_of

    booking.check_flags(topology, values["smallest"].value)
    planned = booking.Planned(
        config,
        losses_of(values["losses"].value),
        rewards_of(values["rewards"].value),
        values["rows"].value,
    )
    tell = lambda what: logging.info("compiling: %s", what)  # noqa: E731
    made = booking.plan(planned, topology, tell)
    sys.stdout.write(booking.as_text(made, config.data) + "\n")
    sys.stdout.flush()
    text = booking.as_json(made, compiler_flags(os.environ))
    for file in files_of(values["workdir"].value, values["out"].value):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, text.encode())
    if values["smallest"].value:
        found = booking.smallest(planned, made, True, tell)
        sys.stdout.write(booking.smallest_text(found) + "\n")
    return 0


def define(values: flags.FlagValues) -> None:
    """Adds the verb's flags."""
    text, switch = flags.DEFINE_string, flags.DEFINE_bool
    text("topology", "", "v4:2x2x4, v5p:…, v5e:…, v6e:… or cpu:8", flag_values=values)
    text("out", "", "a JSON file to write", flag_values=values)
    what = "a run folder: plan.json is kept there, and train compares itself with it"
    text("workdir", "", what, flag_values=values)
    what = "read data.train; else rows are as long as the configuration allows"
    switch("rows", False, what, flag_values=values)
    what = "look for the smallest topology of this kind that fits, by compiling"
    switch("smallest", False, what, flag_values=values)
    common.define_own(values, "losses", "rewards")


def setup_devices(topology: str, config: Config) -> None:
    """Sets jax up for a topology: nothing is asked of a TPU, a network or a lock.

    `--debug` prints tracebacks; a step that looks for NaN would be another program.
    """
    from importlib.util import find_spec

    name, sides = chips.parse(topology)
    if name == "cpu" or find_spec("libtpu") is None:
        os.environ["DPO_JAX_CPU_DEVICES"] = str(chips.count(sides))
    else:
        os.environ |= {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }
    import jax

    jax.config.update("jax_platforms", "cpu")
    common.setup_jax(config, debug=False)


def compiler_flags(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that change what is compiled, where they are set."""
    return {name: environment[name] for name in COMPILER if environment.get(name)}


def files_of(workdir: str, out: str) -> list[Path]:
    """Lists the files that a plan is written to."""
    return [Path(workdir, "plan.json")] * bool(workdir) + [Path(out)] * bool(out)
