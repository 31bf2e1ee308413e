"""The launcher of SLURM: arrays of trials by `sbatch`, several nodes a trial.

An element of an array is a trial; trials that wait for others are arrays of their own,
which depend on theirs. What ends a trial without a fault of its own puts it back in
the queue, once, after all of its ranks have ended: what SLURM itself requeues (after a
preemption, a lost node) it requeues alone, and what is cancelled stays so.
"""

import os
import shlex
from collections.abc import Sequence
from typing import Annotated, NamedTuple

from dpo_jax.errors import ConfigError, RunFolderError
from dpo_jax.launch import processes
from dpo_jax.launch.job import (
    AGAIN,
    Here,
    Job,
    Task,
    call,
    command,
    short_names,
    tasks,
)

SCRIPT = """\
#!/bin/bash
{directives}
set -u
names=({names})
trial=${{names[$SLURM_ARRAY_TASK_ID]}}
cause=
trap 'cause=time; kill -TERM "$step"' USR1 # the time of the job is nearly over
trap 'cause=slurm; kill -TERM "$step"' TERM # cancelled, requeued or preempted
srun --kill-on-bad-exit=0 --nodes={hosts} --ntasks={hosts} --ntasks-per-node=1 \\
  bash -c 'exec "$@"{index}' trial \\
  {command} &
step=$!
wait "$step"
code=$?
while kill -0 "$step" 2>/dev/null; do # a signal ends `wait`, and not the trial
  wait "$step"
  code=$?
done
wait "$step" # of a step that ended while a signal was handled
code=$?
echo "$trial ended with $code${{cause:+ after a signal ($cause)}}"
case $code in
{again})
  if [ "$cause" != slurm ]; then
    timeout {patience} scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
  fi
  ;;
esac
exit "$code"
"""
PATIENCE = 60  # seconds for scontrol
PLACE = ' --host_index="$SLURM_PROCID"'


class Options(NamedTuple):
    """Flags of this launcher."""

    args: Annotated[str, "further arguments of sbatch, as '--time=4:00:00 -p a'"] = ""
    at_once: Annotated[int, "trials of an array that run at once; 0 = all"] = 0
    grace: Annotated[int, "seconds before the end of the time when a trial stops"] = 120


class Array(NamedTuple):
    """Tasks that wait for the same ones.

    Attributes:
      tasks: its elements.
      needs: (number of an earlier array, element of it) of what they wait for.
    """

    tasks: tuple[Task, ...]
    needs: tuple[tuple[int, int], ...]


def arrays(found: Sequence[Task]) -> list[Array]:
    """Gathers tasks into arrays, each behind those that it depends on."""
    groups: dict[tuple[str, ...], list[Task]] = {}
    for task in found:
        groups.setdefault(tuple(sorted(task.needs)), []).append(task)
    placed: dict[str, tuple[int, int]] = {}
    made: list[Array] = []
    while groups:
        needs = next(needs for needs in groups if placed.keys() >= {*needs})
        members = groups.pop(needs)
        placed |= {task.name: (len(made), i) for i, task in enumerate(members)}
        made.append(Array(tuple(members), tuple(placed[name] for name in needs)))
    return made


def render(job: Job, options: Options) -> str:
    """Writes what a shell would be told to submit the same."""
    check(options)
    text = [f"mkdir -p {shlex.quote(logs_of(job))}\n"]
    for i, array in enumerate(arrays(tasks(job))):
        words = sbatch(array, [f"${{JOB{k}}}" for k in range(i)], options)
        line = " ".join(f'"{w}"' if "$" in w else shlex.quote(w) for w in words)
        body = script(job, array, options)
        text.append(f"JOB{i}=$({line} <<'SCRIPT'\n{body}SCRIPT\n)\n")
    return "".join(text)


def launch(job: Job, options: Options, here: Here) -> None:
    """Submits the arrays.

    Raises:
      RunFolderError: if some of this sweep are in the queue.
      SweepError: if SLURM takes one not.
    """
    check(options)
    queued = call(["squeue", "--noheader", f"--name={name_of(job)}", "--format=%F"])
    if queued.strip():
        raise RunFolderError(
            f"jobs of this sweep are in the queue: {', '.join({*queued.split()})}; "
            f"wait for them, or scancel --name={name_of(job)}"
        )
    os.makedirs(logs_of(job), exist_ok=True)
    ids: list[str] = []
    for array in arrays(tasks(job)):
        told = call(sbatch(array, ids, options), script(job, array, options))
        ids.append(told.strip().partition(";")[0])
        for i, task in enumerate(array.tasks):
            here.tell(f"{task.only or task.name}: submitted as {ids[-1]}_{i}")


def check(options: Options) -> None:
    """Refuses numbers out of range.

    Raises:
      ConfigError: naming them.
    """
    if options.at_once < 0 or options.grace < 1:
        raise ConfigError(
            f"--slurm_at_once={options.at_once} must be ≥ 0 and --slurm_grace="
            f"{options.grace} ≥ 1"
        )


def sbatch(array: Array, ids: Sequence[str], options: Options) -> list[str]:
    """Writes the command that submits an array, whose script comes on stdin."""
    needs = ":".join(f"{ids[number]}_{element}" for number, element in array.needs)
    waits = [f"--dependency=afterok:{needs}", "--kill-on-invalid-dep=yes"]
    return [
        "sbatch",
        "--parsable",
        *(waits if needs else []),
        *shlex.split(options.args),
    ]


def script(job: Job, array: Array, options: Options) -> str:
    """Writes the batch script of an array."""
    most = f"%{options.at_once}" if options.at_once else ""
    directives = [
        f"--job-name={name_of(job)}",
        f"--array=0-{len(array.tasks) - 1}{most}",
        f"--nodes={job.hosts}",
        "--ntasks-per-node=1",
        "--requeue",
        "--open-mode=append",
        f"--signal=B:USR1@{options.grace}",
        f"--output={logs_of(job)}/%A_%a.log",
    ]
    only = array.tasks[0].only and "$trial"
    line = command(job, Task("$trial", only, ()))
    line = [word for word in line if not word.startswith("--host_index")]
    words = [*processes.interpreter(), *processes.command(line)[1:]]
    quoted = [f'"{w}"' if w.endswith("=$trial") else shlex.quote(w) for w in words]
    return SCRIPT.format(
        directives="\n".join(f"#SBATCH {each}" for each in directives),
        names=" ".join(shlex.quote(t.only or t.name) for t in array.tasks),
        hosts=job.hosts,
        index=PLACE if job.hosts > 1 else "",
        command=" ".join(quoted),
        again="|".join(map(str, AGAIN)),
        patience=PATIENCE,
    )


def name_of(job: Job) -> str:
    """Names the jobs of a sweep; of another folder they have another name."""
    return short_names(job, [job.name])[job.name]


def logs_of(job: Job) -> str:
    """Names the folder of what the jobs print."""
    return os.path.abspath(os.path.join(job.out, ".sweep", "slurm"))
