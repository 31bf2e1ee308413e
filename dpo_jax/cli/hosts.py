"""Flags of `sweep` for trials that several hosts run together."""

import re
from collections.abc import Mapping

from absl import flags

from dpo_jax.cli import common
from dpo_jax.launch import trial
from dpo_jax.launch.hosts import Hosts, own_address

INDEXES = (  # variables of engines that say which of several hosts this is
    "TPU_WORKER_ID",
    "JOB_COMPLETION_INDEX",
    "SLURM_NODEID",
    "SKYPILOT_NODE_RANK",
)


def define(values: flags.FlagValues) -> None:
    """Adds the flags."""
    text, count = flags.DEFINE_string, flags.DEFINE_integer
    count("hosts", 1, "hosts that run each trial together", flag_values=values)
    what = f"which of them this is; −1 = as {', '.join(INDEXES)} say"
    count("host_index", -1, what, flag_values=values)
    what = "names the hosts that belong together; '' = as --only"
    text("group", "", what, flag_values=values)
    what = "of this host, as the others reach it; '' = as its system has it"
    text("host_address", "", what, flag_values=values)
    what, seconds = "to wait for the other hosts of a group", Hosts().seconds
    flags.DEFINE_float("host_seconds", seconds, what, flag_values=values)


def faults(values: common.Flags, variables: Mapping[str, str]) -> list[str]:
    """Complains of flags that make no sense."""
    count, index = values["hosts"].value, values["host_index"].value
    group = values["group"].value or values["only"].value
    wrong = [f"--hosts={count} must be ≥ 1"] if count < 1 else []
    if count <= 1 or values["launcher"].value != "local":
        names = ("host_index", "group", "host_address", "host_seconds")
        given = [f"--{name}" for name in names if values[name].present]
        why = "is of a worker of --hosts=2 or more; leave it out"
        return wrong + [f"{flag} {why}" for flag in given]
    if not -1 <= index < count:
        wrong.append(f"--host_index={index} must be in 0 … {count - 1}")
    if not trial.NAME.fullmatch(group):
        wrong.append(f"--group={group[:80]!r}: {trial.NAME_RULE}")
    if not (values["worker"].value or values["only"].value):
        wrong.append(f"--hosts={count} needs --worker, or --only, on each host")
    if not values["host_seconds"].value >= 1:
        wrong.append(f"--host_seconds={values['host_seconds'].value} must be ≥ 1")
    told = {name: variables[name] for name in INDEXES if variables.get(name)}
    if index == -1 and len(set(told.values())) != 1:
        what = ", ".join(f"{name}={value[:20]}" for name, value in told.items())
        wrong.append(f"give --host_index: {what or 'no variable of an engine says it'}")
    elif index == -1:
        (said,) = set(told.values())
        if not re.fullmatch(r"\d{1,6}", said) or int(said) >= count:
            wrong.append(
                f"{next(iter(told))}={said[:20]} is no index of --hosts={count}"
            )
    return wrong


def read(values: common.Flags, variables: Mapping[str, str]) -> Hosts:
    """Reads which of how many hosts this is."""
    count, index = values["hosts"].value, values["host_index"].value
    if count == 1 or values["launcher"].value != "local":
        return Hosts()
    if index == -1:
        index = int(next(v for n in INDEXES if (v := variables.get(n))))
    return Hosts(
        count,
        index,
        values["group"].value or values["only"].value,
        values["host_address"].value or own_address(),
        values["host_seconds"].value,
    )
