"""The launcher of Ray: a task a trial, on a slice of TPUs or a group of hosts.

The task of a trial takes the results of those that it waits for, which is how Ray keeps
them in order. It reserves its hosts and starts the worker on each as a process of its
own: Ray uses its processes again, and libtpu belongs to one for as long as it lives.
Ray itself retries nothing, so that nothing runs twice unseen; what is no fault of the
trial is started again here, on hosts that are reserved afresh.
"""

import importlib
import os
import re
import shlex
import signal
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

from dpo_jax.errors import EXIT_PREEMPTED, ConfigError
from dpo_jax.launch import processes
from dpo_jax.launch.job import AGAIN, Here, Job, command, ended, tasks
from dpo_jax.launch.worker import Walk

INDEX = "{index}"  # stands for a host's in its command
KILLED = 128 + signal.SIGKILL  # of a host whose process or node is gone
GRACE = 120.0  # seconds for trials to commit when the sweep is stopped
POLL = 0.5  # seconds between looks
REST = 5.0  # seconds before a trial is started again


class Options(NamedTuple):
    """Flags of this launcher."""

    address: Annotated[str, "of the cluster; auto = the one of this host"] = "auto"
    topology: Annotated[str, "of a TPU slice, as 2x2x2; '' = hosts without TPUs"] = ""
    version: Annotated[str, "of its TPUs, as v4 or v6e"] = ""
    resources: Annotated[str, "of a host without TPUs, NAME=NUMBER,…"] = "CPU=1"


class Place(NamedTuple):
    """What the hosts of a trial are.

    Attributes:
      topology: of a TPU slice; '' = a group of hosts.
      version: of its TPUs.
      hosts: how many.
      resources: of each host of a group.
    """

    topology: str
    version: str
    hosts: int
    resources: dict[str, float]


def render(job: Job, options: Options) -> str:
    """Says what each task runs, where, and behind which others."""
    place, job = check(job, options), absolute(job)
    where = f"{place.version} {place.topology}" if place.topology else options.resources
    lines = []
    for task in tasks(job):
        waits = f" after {', '.join(task.needs)}" if task.needs else ""
        lines.append(f"{task.name}: {job.hosts} × ({where}){waits}")
        line = processes.command(command(job, task, INDEX))
        lines.append(f"    {shlex.join(line)}")
    return "\n".join(lines) + "\n"


def check(job: Job, options: Options) -> Place:
    """Reads what the hosts are.

    Raises:
      ConfigError: if an option is missing, or makes no sense.
    """
    if bool(options.topology) != bool(options.version):
        raise ConfigError("--ray_topology and --ray_version are given together")
    parts = [p.partition("=") for p in options.resources.split(",") if p]
    if not all(re.fullmatch(r"\d+(\.\d+)?", number) for _, _, number in parts):
        raise ConfigError(
            f"--ray_resources={options.resources!r} is not NAME=NUMBER,NAME=NUMBER,…"
        )
    resources = {name: float(number) for name, _, number in parts}
    return Place(options.topology, options.version, job.hosts, resources)


def absolute(job: Job) -> Job:
    """Names files as they are named from anywhere: a task of Ray starts elsewhere."""
    file, sign, argument = job.file.partition(":")
    out = job.out if "://" in job.out else os.path.abspath(job.out)
    return job._replace(file=os.path.abspath(file) + sign + argument, out=out)


def launch(job: Job, options: Options, here: Here) -> Walk:
    """Submits all tasks, waits for them, and says how the sweep ended.

    Raises:
      ConfigError: if there is no Ray, or no cluster.
    """
    place, job = check(job, options), absolute(job)
    try:
        ray = library("ray")
    except ImportError as error:
        raise ConfigError(
            "Ray is missing; install it: pip install 'dpo_jax[ray]'"
        ) from error
    try:
        ray.init(address=options.address, namespace="dpo_jax")
    except ConnectionError as error:
        raise ConfigError(f"--ray_address={options.address}: {error}") from error
    try:
        references: dict[str, Any] = {}
        submit = ray.remote(num_cpus=0, max_retries=0)(run_trial)
        for task in tasks(job):
            line = command(job, task, INDEX)
            needs = [references[name] for name in task.needs]
            references[task.name] = submit.remote(line, place, *needs)
            here.tell(f"{task.only or task.name}: submitted as {task.name}")
        wait_for(references, here)
    finally:
        ray.shutdown()
    return ended(job)


def wait_for(references: dict[str, Any], here: Here) -> None:
    """Waits for tasks; tells how each ends, and stops all where this process is."""
    ray = library("ray")
    names = {reference: name for name, reference in references.items()}
    until = float("inf")
    while names and time.monotonic() < until:
        done, _ = ray.wait([*names], timeout=POLL)
        for reference in done:
            here.tell(f"{names.pop(reference)}: {result_of(reference)}")
        if here.stop and until == float("inf"):
            until = time.monotonic() + GRACE
            for reference in names:
                ray.cancel(reference, force=False, recursive=True)


def result_of(reference: Any) -> int:
    """Returns the exit code of a task; that of a kill where Ray lost it."""
    ray = library("ray")
    try:
        return ray.get(reference)
    except ray.exceptions.TaskCancelledError:
        return EXIT_PREEMPTED
    except ray.exceptions.RayError:
        return KILLED


def run_trial(line: Sequence[str], place: Place, *needed: int) -> int:
    """Runs a trial until it has ended by itself: a task of Ray.

    Args:
      line: the command of its workers.
      place: where they run.
      *needed: exit codes of those that it waits for.

    Returns:
      The worst exit code of its hosts.
    """
    if any(needed):
        return max(needed)
    while True:
        group, start = reserved(place)
        try:
            codes = [result_of(reference) for reference in start(line)]
        finally:
            group.shutdown()
        stops = [code for code in codes if code and code not in AGAIN]
        if stops or not any(codes):
            return max(stops, default=0)
        time.sleep(REST)


def library(name: str) -> Any:
    """Imports a module of Ray, an extra that has the name of this very module."""
    return importlib.import_module(name)


class Group(NamedTuple):
    """Hosts that were reserved: `shutdown` gives them back, as that of a slice does."""

    shutdown: Callable[[], None]


def reserved(place: Place) -> tuple[Any, Callable[[Sequence[str]], list[Any]]]:
    """Reserves the hosts of a trial.

    Returns:
      What gives them back, and what starts a command on all of them.
    """
    ray, tpu = library("ray"), library("ray.util.tpu")
    groups = library("ray.util.placement_group")
    strategies = library("ray.util.scheduling_strategies")
    task = ray.remote(max_retries=0)(run_host)
    if place.topology:
        found = tpu.slice_placement_group(
            place.topology, place.version, head_reservation_timeout_s=None
        )
        if found.num_hosts != place.hosts:
            found.shutdown()
            raise ConfigError(
                f"--hosts={place.hosts}, and a slice {place.version} {place.topology} "
                f"has {found.num_hosts}"
            )
        return found, lambda line: tpu.run_on_slice(task, line, -1, tpu_slice=found)
    bundles = [place.resources] * place.hosts
    group = groups.placement_group(bundles, strategy="STRICT_SPREAD")
    ray.get(group.ready())

    def start(line: Sequence[str]) -> list[Any]:
        return [
            task.options(
                num_cpus=place.resources.get("CPU", 0),
                num_gpus=place.resources.get("GPU", 0),
                scheduling_strategy=strategies.PlacementGroupSchedulingStrategy(
                    placement_group=group, placement_group_bundle_index=index
                ),
            ).remote(line, index)
            for index in range(place.hosts)
        ]

    return Group(lambda: groups.remove_placement_group(group)), start


def run_host(line: Sequence[str], index: int) -> int:
    """Runs the worker of one host, as a process of its own: a task of Ray.

    Args:
      line: its command.
      index: of the host; −1 = as its slice has it.

    Returns:
      The exit code.
    """
    ray = library("ray")
    if index < 0:
        labels = ray.get_runtime_context().get_node_labels()
        index = int(labels["ray.io/tpu-worker-id"])
    words = [word.replace(INDEX, str(index)) for word in line]
    process = processes.start(words, None, dict(os.environ))
    try:
        code = process.wait()
    except KeyboardInterrupt:  # how Ray cancels a task
        process.send_signal(signal.SIGTERM)
        code = process.wait()
    return code if code >= 0 else 128 - code
