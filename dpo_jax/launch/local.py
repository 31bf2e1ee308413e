"""The launcher of this machine: one worker in this process, or several beside it."""

import contextlib
import os
import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple

from dpo_jax.launch import devices, processes
from dpo_jax.launch.devices import Share
from dpo_jax.launch.job import Here, Job, Task, command
from dpo_jax.launch.worker import Walk

POLL = 0.2  # seconds between looks at the workers


class Options(NamedTuple):
    """Flags of this launcher."""

    cpus: Annotated[int, "CPUs of each worker; 0 = all, whatever the others do"] = 0


def render(job: Job, options: Options) -> str:
    """Says which devices each of several workers has."""
    found = devices.shares(job.variables, max(job.workers, 1), options.cpus)
    if len(found) == 1 and not options.cpus:
        return ""
    return "".join(f"worker {i}: {described(each)}\n" for i, each in enumerate(found))


def described(share: Share) -> str:
    """Writes the devices of a worker."""
    told = [f"{name}={shlex.quote(v)}" for name, v in share.variables.items()]
    told += [f"CPUs {', '.join(map(str, share.cpus))}"] if share.cpus else []
    return " ".join(told) or "all that there is"


def launch(job: Job, options: Options, here: Here) -> Walk:
    """Runs a sweep to its end.

    Several workers are processes of their own, each with devices of its own; this one
    waits for them, then walks the list itself on the devices of the first, for what
    those who were killed have left, and to tell how it ended.

    Args:
      job: the sweep.
      options: its flags.
      here: of this process.
    """
    shares = devices.shares(job.variables, max(job.workers, 1), options.cpus)
    worker = here.worker(shares[0].variables)
    worker.remember(job.trials)
    if len(shares) > 1:
        started = [_started(job, share) for share in shares]
        with here.stop.passed_on(*started):
            while any(process.poll() is None for process in started):
                time.sleep(POLL)
    with on_cpus(shares[0].cpus):
        return worker.walk(job.trials, here.stop)


def _started(job: Job, share: Share) -> subprocess.Popen:
    line = command(job, Task("", "", ()))
    with on_cpus(share.cpus):
        return processes.start(line, None, {**job.variables, **share.variables})


@contextlib.contextmanager
def on_cpus(numbers: Sequence[int]) -> Iterator[None]:
    """Lets what is started meanwhile run on these CPUs alone; () = on all."""
    if not numbers:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, numbers)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
