"""What every launcher is asked to do, and the one command that all of them start."""

import hashlib
import re
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dpo_jax.errors import ConfigError, SweepError
from dpo_jax.launch import attempts, states
from dpo_jax.launch.processes import Stop
from dpo_jax.launch.trial import Planned
from dpo_jax.launch.worker import FAILING, Walk, Worker

# Exit codes after which a task is to be started again, and costs nothing: a lost peer,
# preempted, lease lost, no progress, and the kills of those who preempt. After 8 and 76
# another process has the trial; the next start waits for it.
AGAIN = (8, 71, 75, 76, 124, 137, 143)
LONGEST = 28  # characters of a name that every engine takes


class Task(NamedTuple):
    """A task of an engine's queue.

    Attributes:
      name: of the task.
      only: the trial that it runs; '' = all that are left, as one of several workers.
      needs: names of the tasks that it waits for.
    """

    name: str
    only: str
    needs: tuple[str, ...]


class Job(NamedTuple):
    """A sweep that is to be launched.

    Attributes:
      name: of the sweep.
      file: of the sweep, FILE.py[:ARG].
      out: its folder.
      flags: that every worker is given.
      trials: all of the sweep, each behind those that it waits for.
      variables: the environment of the process that launches it.
      hosts: processes of a trial, one a host.
      workers: that walk the list; 0 = a task a trial.
    """

    name: str
    file: str
    out: str
    flags: tuple[str, ...]
    trials: Sequence[Planned]
    variables: Mapping[str, str]
    hosts: int = 1
    workers: int = 0


class Here(NamedTuple):
    """What a launcher has of the process that it works in.

    Attributes:
      stop: whether to stop.
      tell: takes lines for people.
      worker: (what its trials inherit) -> a worker of this process.
    """

    stop: Stop
    tell: Callable[[str], None]
    worker: Callable[[Mapping[str, str]], Worker]


class Launcher(NamedTuple):
    """A row of `launchers.LAUNCHERS`.

    Attributes:
      about: what it starts, in a few words.
      options: a NamedTuple of its flags, each with a default and a word of help.
      render: (job, options) -> what would be submitted, as text.
      launch: (job, options, here) -> how the sweep ended; None where it was handed to
        a queue, and goes on without this process.
    """

    about: str
    options: type[Any]
    render: Callable[[Job, Any], str]
    launch: Callable[[Job, Any, Here], Walk | None]


def tasks(job: Job) -> list[Task]:
    """Lists the tasks that are to be submitted: a worker each, or a trial each.

    A trial that is done, and is seen from here, needs no task.
    """
    if job.workers:
        workers = short_names(job, [f"worker {i}" for i in range(job.workers)])
        return [Task(name, "", ()) for name in workers.values()]
    left = {t.name: t for t in job.trials if states.state_of(t).word != "done"}
    names = short_names(job, list(left))
    return [
        Task(names[t.name], t.name, tuple(names[n] for n in t.needs if n in left))
        for t in left.values()
    ]


def command(job: Job, task: Task, index: str = "") -> list[str]:
    """Writes the arguments of `python -m dpo_jax` for one host of a task.

    Args:
      job: of the sweep.
      task: of it.
      index: of the host, as the engine's files name it, where a trial has several.
    """
    hosts = [f"--hosts={job.hosts}", f"--host_index={index}"]
    hosts += [] if task.only else [f"--group={task.name}"]
    return [
        *("sweep", job.file, f"--out={job.out}", "--worker"),
        *([f"--only={task.only}"] if task.only else []),
        *job.flags,
        *(hosts if job.hosts > 1 else []),
    ]


def short_names(job: Job, names: Sequence[str]) -> dict[str, str]:
    """Gives each trial a name of a-z, 0-9 and -, short, and no other's.

    The same trial of the same folder has the same name each time, so that what was
    submitted before is known again.

    Args:
      job: of the sweep.
      names: of its trials.
    """
    short = {}
    for name in names:
        digest = hashlib.sha256(f"{job.out}\n{name}".encode()).hexdigest()[:6]
        base = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
        base = base if base[:1].isalpha() else f"t{base}"
        short[name] = f"{base[: LONGEST - 7].rstrip('-')}-{digest}"
    return short


def ended(job: Job) -> Walk:
    """Says how a sweep stands, by its run folders and attempts alone."""
    failed: dict[str, str] = {}
    left: list[str] = []
    for trial in job.trials:
        if states.state_of(trial).word == "done":
            continue
        made = attempts.read_all(attempts.folder_of(job.out, trial.name))
        last = made[-1] if made else None
        if wrong := next((n for n in trial.needs if n in failed), ""):
            failed[trial.name] = f"{trial.name} waits for {wrong}, which failed"
        elif last is not None and last.id == trial.id and last.code in FAILING:
            failed[trial.name] = last.line
        else:
            left.append(trial.name)
    code = SweepError.code if failed else 75 if left else 0
    return Walk(code, failed, left)


def required(options: Any, launcher: str, *names: str) -> None:
    """Refuses options that must be given and are not.

    Raises:
      ConfigError: naming all of them.
    """
    given = options._asdict()
    missing = [f"--{launcher}_{name}" for name in names if not given[name]]
    if missing:
        raise ConfigError(
            f"--launcher={launcher} needs {', '.join(missing)}; see sweep --help"
        )


def call(line: Sequence[str], given: str = "") -> str:
    """Calls a command of an engine; returns what it printed.

    Args:
      line: the command.
      given: what it reads.

    Raises:
      ConfigError: if it is not there.
      SweepError: if it fails, with what it said.
    """
    done = started(line, given)
    if done.returncode:
        raise SweepError(said_of(done))
    return done.stdout


def started(line: Sequence[str], given: str = "") -> subprocess.CompletedProcess[str]:
    """Runs a command of an engine, whatever it ends with.

    Raises:
      ConfigError: if it is not there.
    """
    try:
        return subprocess.run(line, input=given, capture_output=True, text=True)
    except OSError as error:
        raise ConfigError(f"{line[0]} does not start: {error}; install it") from error


def said_of(done: subprocess.CompletedProcess[str]) -> str:
    """Says how a command that failed ended."""
    told = " ".join(done.stderr.split())[-500:]
    return f"{shlex.join(done.args)} ended with {done.returncode}: {told}"
