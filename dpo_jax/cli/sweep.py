"""`sweep`: runs the trials of a sweep file, each in a run folder of its own."""

import os
import re
import shlex
import socket
import sys
from collections import Counter
from collections.abc import Mapping, Sequence

from absl import flags

from dpo_jax.cli import common
from dpo_jax.config import Config
from dpo_jax.errors import (
    EXIT_PREEMPTED,
    ConfigError,
    SweepError,
    collected,
    unknown,
)
from dpo_jax.files import is_local
from dpo_jax.launch import attempts, local, processes, states, trial
from dpo_jax.launch.hosts import Follower, Group, Hosts, Leader, own_address
from dpo_jax.launch.trial import Planned, Trial
from dpo_jax.launch.worker import FAILING, Rules, Walk, Worker

LAUNCHERS = ("local",)
SHORTEST = 5.0  # seconds of a lease
STORES_SHORTEST = 60.0  # on gs://, where it is beaten every ten seconds
INDEXES = (  # of engines, that say which of several hosts this is
    "TPU_WORKER_ID",
    "JOB_COMPLETION_INDEX",
    "SLURM_NODEID",
    "SKYPILOT_NODE_RANK",
)


def main(arguments: Sequence[str]) -> int:
    """Runs the verb; returns the exit code."""
    files = [a for a in arguments if not a.startswith("-")]
    switches = [a for a in arguments if a.startswith("-")]
    values = common.parse(switches, config=False, define=define)
    if len(files) != 1:
        raise ConfigError("sweep needs one file: sweep FILE.py[:ARG] --out=FOLDER")
    out, only = common.required(values, "out"), values["only"].value
    check_flags(values)
    planned = trial.plan(load_sweep(files[0]), out, load)
    if only and only not in [each.name for each in planned]:
        raise ConfigError(unknown("--only", only, [each.name for each in planned]))
    if values["dry_run"].value:
        sys.stdout.write(plan_text(planned, out))
        return 0
    hosts, environment = hosts_of(values), dict(os.environ)
    group = Group(out, hosts)
    if hosts.index:
        with processes.stopping() as stop:
            return Follower(group, hosts, environment, tell).follow(planned, stop)
    alone = values["worker"].value or only or values["workers"].value == 1
    rules = Rules(
        failures=values["failures"].value,
        lease_seconds=values["lease_seconds"].value,
        first=os.getpid() if values["worker"].value else 0,
        only=only,
        silent_seconds=values["silent_seconds"].value,
    )
    name = f"pid {os.getpid()} on {socket.gethostname()}"
    leader = Leader(group, hosts) if hosts.count > 1 else None
    worker = Worker(out, name, rules, environment, tell, leader=leader)
    with processes.stopping() as stop:
        walk = local.run(
            worker,
            planned,
            stop,
            command=["sweep", *arguments, "--worker"],
            workers=1 if alone else values["workers"].value,
            environment=environment,
        )
    if leader is not None:
        leader.leave(walk.code)
    return ended(walk, planned)


def define(values: flags.FlagValues) -> None:
    """Adds the verb's flags."""
    text, switch, count = flags.DEFINE_string, flags.DEFINE_bool, flags.DEFINE_integer
    text("out", "", "the folder of the sweep", flag_values=values)
    text("launcher", "local", "who runs the trials: local", flag_values=values)
    switch("dry_run", False, "print the plan and run nothing", flag_values=values)
    text("only", "", "run this trial alone", flag_values=values)
    what = "be one of several workers that walk the same list"
    switch("worker", False, what, flag_values=values)
    count("workers", 1, "workers to start on this machine", flag_values=values)
    what = "launches of a trial that may fail by a fault of its own, in all"
    count("failures", Rules().failures, what, flag_values=values)
    what = "after which a trial whose worker is silent is another's"
    flags.DEFINE_float("lease_seconds", Rules().lease_seconds, what, flag_values=values)
    what = "end a trial whose process prints nothing for so long; 0 = never"
    flags.DEFINE_float("silent_seconds", 0.0, what, flag_values=values)
    count("hosts", 1, "hosts that run each trial together", flag_values=values)
    what = f"which of them this is; −1 = as one of {', '.join(INDEXES)} says"
    count("host_index", -1, what, flag_values=values)
    what = "names the hosts that belong together; '' = as --only"
    text("group", "", what, flag_values=values)
    what = "of this host, as the others reach it; '' = as its system has it"
    text("host_address", "", what, flag_values=values)
    what = "to wait for the other hosts"
    seconds = Hosts().seconds
    flags.DEFINE_float("host_seconds", seconds, what, flag_values=values)


def check_flags(values: common.Flags) -> None:
    """Refuses flags that contradict each other, and numbers out of range.

    Raises:
      ConfigError: naming all of them.
    """
    with collected(ConfigError) as complaints:
        if values["launcher"].value not in LAUNCHERS:
            complaints.append(
                unknown("--launcher", values["launcher"].value, LAUNCHERS)
            )
        for name, least in (("workers", 1), ("failures", 1), ("hosts", 1)):
            if values[name].value < least:
                complaints.append(f"--{name}={values[name].value} must be ≥ {least}")
        shortest = SHORTEST if is_local(values["out"].value) else STORES_SHORTEST
        for name, least in (
            ("lease_seconds", shortest),
            ("host_seconds", 1.0),
            ("silent_seconds", 0.0),
        ):
            if not values[name].value >= least:
                complaints.append(f"--{name}={values[name].value} must be ≥ {least}")
        complaints += hosts_faults(values)
        if os.environ.get("DPO_JAX_DISTRIBUTED"):
            complaints.append(
                "DPO_JAX_DISTRIBUTED is set: a sweep sets it for each trial; unset it "
                "(trials of several hosts: --hosts)"
            )


def hosts_faults(values: common.Flags) -> list[str]:
    """Complains of the flags of several hosts."""
    count, index = values["hosts"].value, values["host_index"].value
    group = values["group"].value or values["only"].value
    if count <= 1:
        names = ("host_index", "group", "host_address")
        given = [f"--{name}" for name in names if values[name].present]
        return [f"{flag} is used with --hosts=2 or more" for flag in given]
    faults = [] if -1 <= index < count else [f"--host_index={index}: 0 … {count - 1}"]
    if not re.fullmatch(trial.NAME, group):
        faults.append(f"--group={group[:80]!r}: {trial.NAME_RULE}")
    if not (values["worker"].value or values["only"].value):
        faults.append(f"--hosts={count} needs --worker, or --only=NAME, on each host")
    told = {name: os.environ[name] for name in INDEXES if name in os.environ}
    if index == -1 and len(set(told.values())) != 1:
        what = ", ".join(f"{name}={value}" for name, value in told.items())
        faults.append(f"--host_index is not given, and {what or 'nothing'} says it")
    elif index == -1 and not 0 <= int(next(iter(told.values())) or -1) < count:
        faults.append(f"{told} does not fit --hosts={count}")
    return faults


def hosts_of(values: common.Flags) -> Hosts:
    """Reads which of how many hosts this is."""
    count, index = values["hosts"].value, values["host_index"].value
    if count == 1:
        return Hosts()
    if index == -1:
        index = int(next(os.environ[name] for name in INDEXES if name in os.environ))
    return Hosts(
        count,
        index,
        values["group"].value or values["only"].value,
        values["host_address"].value or own_address(),
        values["host_seconds"].value,
    )


def load_sweep(named: str) -> list[Trial]:
    """Runs `get_sweep` of a Python file.

    Args:
      named: `FILE.py`; `:ARG` may follow.

    Raises:
      ConfigError: if there is no such file, or it gives no list of trials.
    """
    file, _, argument = named.partition(":")
    module = common.module_of(file, "sweep")
    with common.loading(f"sweep {named}"):
        trials = module.get_sweep(argument) if argument else module.get_sweep()
    if not isinstance(trials, list) or not all(isinstance(t, Trial) for t in trials):
        raise ConfigError(f"sweep {named}: get_sweep must return a list of Trial")
    return trials


def load(named: str, own: Mapping[str, str]) -> Config:
    """Loads what `--config` names, with the digests of files of a user's own.

    Args:
      named: FILE.py[:ARG], or NAME[:ARG].
      own: `losses` and `rewards` -> the file of that flag.

    Raises:
      ConfigError: as `load_config` and `digest_of`.
    """
    config = common.load_config(named)
    for flag, file in own.items():
        config[flag] = common.digest_of(flag, file)
    return config


def plan_text(planned: Sequence[Planned], out: str) -> str:
    """Renders what would be done: each trial's state and command line."""
    found = states.states_of(planned)
    counts = Counter(state.word for state in found.values())
    told = ", ".join(f"{counts[word]} {word}" for word in states.WORDS if counts[word])
    width = max(len(each.name) for each in planned)
    lines = [f"{len(planned)} trials in {out}: {told}"]
    for each in planned:
        state = found[each.name]
        made = attempts.read_all(attempts.folder_of(out, each.name))
        failed = [a for a in made if a.id == each.id and a.code in FAILING]
        more = [state.detail] if state.detail else []
        more += [f"failed {len(failed)}×: {failed[-1].line}"] if failed else []
        lines.append(f"{state.word:<8} {each.name:<{width}}  {'; '.join(more)}".strip())
        lines.append(f"    {each.id}  {shlex.join(processes.command(each.arguments))}")
    return "\n".join(lines) + "\n"


def tell(line: str) -> None:
    """Prints a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def ended(walk: Walk, planned: Sequence[Planned]) -> int:
    """Says how the sweep ended; returns the exit code.

    Raises:
      SweepError: if trials failed.
    """
    for name, line in walk.failed.items():
        sys.stderr.write(f"{name}: {line}\n")
    if walk.code == EXIT_PREEMPTED:
        left = ", ".join(walk.left)
        sys.stderr.write(f"preempted; left: {left}; relaunch to go on\n")
    elif walk.code == SweepError.code:
        raise SweepError(
            f"{len(walk.failed)} of {len(planned)} trials failed: "
            f"{', '.join(walk.failed)}; the rest is done; mend them and relaunch"
        )
    return walk.code
