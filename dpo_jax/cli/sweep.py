"""`sweep`: runs the trials of a sweep file, each in a run folder of its own."""

import functools
import os
import shlex
import socket
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from absl import flags

from dpo_jax import config as config_lib
from dpo_jax.cli import common, hosts
from dpo_jax.config import Config
from dpo_jax.errors import (
    EXIT_PREEMPTED,
    ConfigError,
    SweepError,
    collected,
    unknown,
)
from dpo_jax.files import is_local
from dpo_jax.launch import attempts, environment, processes, states, trial
from dpo_jax.launch.hosts import Follower, Group, Hosts, Leader
from dpo_jax.launch.job import Here, Job
from dpo_jax.launch.launchers import LAUNCHERS
from dpo_jax.launch.trial import Planned, Trial
from dpo_jax.launch.worker import FAILING, Rules, Walk, Worker
from dpo_jax.report.arms import Entry
from dpo_jax.train import runfolder

PASSED = ("failures", "lease_seconds", "silent_seconds")  # flags that workers are given
PAUSE = 30.0  # seconds; see `Rules.pause`
SHORTEST = 5.0  # seconds of a lease
STORES_SHORTEST = 60.0  # on gs://, where it is beaten every ten seconds


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
    if values["table"].value:
        from dpo_jax.report import sweep_table  # matplotlib, which others need not have

        sys.stdout.write(sweep_table.write(entries_of(planned, out), out))
        sys.stdout.write(f"\n{out}/table.csv, .md, .tex, .png, .html\n")
        return 0
    if values["plan"].value:
        sys.stdout.write(hours_text(values, planned))
        return 0
    named = values["launcher"].value
    job, launcher = job_of(values, files[0], planned), LAUNCHERS[named]
    options = options_of(values, named)
    if values["dry_run"].value:
        told = plan_text(planned, out)
        if named != "local":  # so that what follows can be piped to its engine
            told = "".join(f"# {line}\n" for line in told.splitlines())
        sys.stdout.write(told + launcher.render(job, options))
        return 0
    group = hosts.read(values, os.environ)
    with processes.stopping() as stop:
        if group.index:
            inherited = environment.of_trials(os.environ, values["pass_env"].value)
            follower = Follower(Group(out, group), group, inherited, tell)
            return follower.follow(planned, stop)
        worker = functools.partial(worker_of, values, group)
        walk = launcher.launch(job, options, Here(stop, tell, worker))
        if walk is not None and group.count > 1:
            Leader(Group(out, group), group).leave(walk.code)
        return 0 if walk is None else ended(walk, planned)


def hours_text(values: common.Flags, planned: Sequence[Planned]) -> str:
    """Says what the trials take of a topology together."""
    from dpo_jax.cli.own_functions import losses_of, rewards_of
    from dpo_jax.cli.plan import setup_devices

    topology = common.required(values, "topology")
    common.setup_logging()
    setup_devices(topology, planned[0].config)
    from dpo_jax import booking, hours

    exports = {f"{each.folder}/export": each.name for each in planned}
    configs = hours.rooted({each.name: each.config for each in planned}, exports)
    runs = {
        each.name: booking.Planned(
            configs[each.name],
            losses_of(common.value_of(each.arguments, "--losses")),
            rewards_of(common.value_of(each.arguments, "--rewards")),
            values["rows"].value,
        )
        for each in planned
    }
    found = hours.shares(runs, topology, tell)
    return hours.as_text(found, topology)


def entries_of(planned: Sequence[Planned], out: str) -> list[Entry]:
    """Says of each trial what its table is made from."""
    found = states.states_of(planned)
    entries = []
    for each in planned:
        word, detail = found[each.name]
        every = attempts.read_all(attempts.folder_of(out, each.name))
        made = [attempt for attempt in every if attempt.id == each.id]
        code = made[-1].code if made else None
        state = " ".join(filter(None, (word, detail)))
        if word != "done" and code in FAILING:
            state = f"failed: {made[-1].line}"
        entries.append(
            Entry(
                each.name,
                each.folder,
                config_lib.flat(each.config),
                each.usual,
                each.needs,
                "" if word == "done" else state,
                code,
                tuple(runfolder.codes(each.folder)),
            )
        )
    return entries


def job_of(values: common.Flags, file: str, planned: Sequence[Planned]) -> Job:
    """Says what the launcher is asked for."""
    path = Path(file.partition(":")[0]).absolute()
    alone = values["worker"].value or values["only"].value
    given = values["workers"].value or 0
    return Job(
        name=path.parent.name if path.stem == "sweep" else path.stem,
        file=file,
        out=values["out"].value,
        flags=passed(values),
        trials=planned,
        variables=dict(os.environ),
        hosts=values["hosts"].value,
        workers=0 if alone else given,
    )


def passed(values: common.Flags) -> tuple[str, ...]:
    """Writes the flags that every worker is given, those that were set."""
    given = [
        f"--{name}={values[name].value}" for name in PASSED if values[name].present
    ]
    if values["pass_env"].value:
        given.append(f"--pass_env={','.join(values['pass_env'].value)}")
    return tuple(given)


def options_of(values: common.Flags, launcher: str) -> Any:
    """Reads the flags of a launcher."""
    options = LAUNCHERS[launcher].options
    return options(**{n: values[f"{launcher}_{n}"].value for n in options._fields})


def worker_of(
    values: common.Flags, group: Hosts, variables: Mapping[str, str]
) -> Worker:
    """Makes a worker of this process.

    Args:
      values: the flags.
      group: the hosts that run each trial together; this is their first.
      variables: that its trials have beside those that they inherit.
    """
    rules = Rules(
        failures=values["failures"].value,
        lease_seconds=values["lease_seconds"].value,
        first=os.getpid() if values["worker"].value else 0,
        only=values["only"].value,
        pause=PAUSE,
        silent_seconds=values["silent_seconds"].value,
    )
    name = f"pid {os.getpid()} on {socket.gethostname()}"
    inherited = environment.of_trials(os.environ, values["pass_env"].value)
    out = values["out"].value
    leader = Leader(Group(out, group), group) if group.count > 1 else None
    inherited = {**inherited, **variables}
    return Worker(out, name, rules, inherited, tell, leader=leader)


def define(values: flags.FlagValues) -> None:
    """Adds the verb's flags."""
    text, switch, count = flags.DEFINE_string, flags.DEFINE_bool, flags.DEFINE_integer
    text("out", "", "the folder of the sweep", flag_values=values)
    told = "; ".join(f"{name}: {row.about}" for name, row in LAUNCHERS.items())
    text("launcher", "local", f"who runs the trials. {told}", flag_values=values)
    what = "print the plan and what would be submitted; run nothing"
    switch("dry_run", False, what, flag_values=values)
    what = "compare what is done: OUT/table.{csv,md,tex,png,html}; runs nothing"
    switch("table", False, what, flag_values=values)
    what = "add up what all trials take of --topology, at best; runs nothing"
    switch("plan", False, what, flag_values=values)
    text("topology", "", "of --plan: v4:2x2x4, …, cpu:8", flag_values=values)
    what = "of --plan: read data.train; else rows are as long as configurations allow"
    switch("rows", False, what, flag_values=values)
    text("only", "", "run this trial alone", flag_values=values)
    what = "be one of several workers that walk the same list"
    switch("worker", False, what, flag_values=values)
    what = "workers to start; where the launcher has a queue, instead of a task a trial"
    count("workers", None, what, flag_values=values)
    what = "launches of a trial that may fail by a fault of its own, in all"
    count("failures", Rules().failures, what, flag_values=values)
    what = "after which a trial whose worker is silent is another's"
    flags.DEFINE_float("lease_seconds", Rules().lease_seconds, what, flag_values=values)
    what = "end a trial whose process prints nothing for so long; 0 = never"
    flags.DEFINE_float("silent_seconds", 0.0, what, flag_values=values)
    hosts.define(values)
    what = "further variables of the environment that trials inherit, by name"
    flags.DEFINE_list("pass_env", [], what, flag_values=values)
    for launcher, row in LAUNCHERS.items():
        define_options(launcher, row.options, values)


def define_options(launcher: str, options: Any, values: flags.FlagValues) -> None:
    """Adds the flags of a launcher, `--LAUNCHER_OPTION`."""
    hints = get_type_hints(options, include_extras=True)
    for name, default in options._field_defaults.items():
        (what,) = get_args(hints[name])[1:]
        flag = f"{launcher}_{name}"
        if isinstance(default, int):
            flags.DEFINE_integer(flag, default, what, flag_values=values)
        else:
            flags.DEFINE_string(flag, default, what, flag_values=values)


def check_flags(values: common.Flags) -> None:
    """Refuses flags that contradict each other, and numbers out of range.

    Raises:
      ConfigError: naming all of them.
    """
    named = values["launcher"].value
    with collected(ConfigError) as complaints:
        if named not in LAUNCHERS:
            complaints.append(unknown("--launcher", named, LAUNCHERS))
        elif named != "local" and (values["worker"].value or values["only"].value):
            complaints.append(
                f"--launcher={named} starts workers: leave --worker and --only out"
            )
        for launcher, row in LAUNCHERS.items():
            for name in row.options._fields:
                if launcher != named and values[f"{launcher}_{name}"].present:
                    complaints.append(
                        f"--{launcher}_{name} is of --launcher={launcher}; leave it out"
                    )
        workers = values["workers"].value
        for name, least in (("workers", 1), ("failures", 1)):
            if (value := values[name].value) is not None and value < least:
                complaints.append(f"--{name}={value} must be ≥ {least}")
        if workers is not None and (values["worker"].value or values["only"].value):
            complaints.append("--workers beside --worker or --only: leave it out")
        shortest = SHORTEST if is_local(values["out"].value) else STORES_SHORTEST
        for name, least in (("lease_seconds", shortest), ("silent_seconds", 0.0)):
            if not values[name].value >= least:
                complaints.append(f"--{name}={values[name].value} must be ≥ {least}")
        complaints += hosts.faults(values, os.environ)
        if os.environ.get("DPO_JAX_DISTRIBUTED"):
            complaints.append(
                "DPO_JAX_DISTRIBUTED is set: a sweep sets it for each trial; unset it "
                "(trials of several hosts: --hosts)"
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
        if made and made[-1].code is None and state.word in ("begun", "new"):
            more.append(f"attempt {made[-1].token} by {made[-1].worker} runs, or died")
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
