"""The devices of this machine, and shares of them for workers. No jax."""

import glob
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dpo_jax.errors import ConfigError

BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1"}  # chips of a process -> their grid


class Share(NamedTuple):
    """The devices of one worker.

    Attributes:
      variables: that show it these devices alone.
      cpus: numbers of the CPUs that it runs on; () = all.
    """

    variables: Mapping[str, str] = {}
    cpus: tuple[int, ...] = ()


def shares(environment: Mapping[str, str], workers: int, cpus: int) -> list[Share]:
    """Splits the devices of this machine between workers.

    CPUs are split only where that is asked for: XLA's sums on a CPU depend on how many
    threads share them, so a trial would end in other digits beside other workers.

    Args:
      environment: of this process; `CUDA_VISIBLE_DEVICES`, `TPU_VISIBLE_CHIPS`,
        `JAX_PLATFORMS=cpu` and `DPO_JAX_CPU_DEVICES` say what there is to split.
      workers: how many share.
      cpus: of each worker; 0 = all.

    Raises:
      ConfigError: if they cannot have the same number each.
    """
    parts = cpu_parts(own_cpus(), workers, cpus) if cpus else [()] * workers
    shown = shown_devices(environment, workers) if workers > 1 else [{}]
    return [Share(*each) for each in zip(shown, parts, strict=True)]


def shown_devices(environment: Mapping[str, str], workers: int) -> list[dict[str, str]]:
    """Returns the variables that show each worker its accelerators alone.

    Raises:
      ConfigError: if they cannot have the same number each.
    """
    on_cpu = environment.get("JAX_PLATFORMS") == "cpu"
    if on_cpu or environment.get("DPO_JAX_CPU_DEVICES"):
        return [{} for _ in range(workers)]
    if found := tpu_chips(environment):
        parts = parted(found, workers, "TPU chips")
        if len(parts[0]) not in BOUNDS:
            raise ConfigError(
                f"--workers={workers} gives each {len(parts[0])} of {len(found)} TPU "
                "chips; 1, 2 or 4 make a grid"
            )
        return [tpu_variables(part) for part in parts]
    if found := gpus(environment):
        parts = parted(found, workers, "GPUs")
        return [{"CUDA_VISIBLE_DEVICES": ",".join(part)} for part in parts]
    return [{} for _ in range(workers)]


def parted(found: Sequence[str], workers: int, what: str) -> list[tuple[str, ...]]:
    """Cuts a list into equal parts of neighbours.

    Raises:
      ConfigError: if it cannot be.
    """
    if len(found) % workers:
        fits = [n for n in range(1, len(found) + 1) if len(found) % n == 0]
        raise ConfigError(
            f"--workers={workers} does not divide the {len(found)} {what} of this "
            f"machine; use {', '.join(map(str, fits))}"
        )
    size = len(found) // workers
    return [tuple(found[i * size : (i + 1) * size]) for i in range(workers)]


def tpu_variables(chips: Sequence[str]) -> dict[str, str]:
    """Returns what makes libtpu see these chips of the host as a slice of its own."""
    return {
        "TPU_VISIBLE_CHIPS": ",".join(chips),
        "TPU_CHIPS_PER_PROCESS_BOUNDS": BOUNDS[len(chips)],
        "TPU_PROCESS_BOUNDS": "1,1,1",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }


def cpu_parts(found: Sequence[int], workers: int, each: int) -> list[tuple[int, ...]]:
    """Gives each worker CPUs of its own.

    Raises:
      ConfigError: if there are too few.
    """
    if each < 0 or workers * each > len(found):
        raise ConfigError(
            f"--local_cpus={each} for each of {workers} workers, and this process may "
            f"run on {len(found)} CPUs; use fewer, or 0 = all for all"
        )
    return [tuple(found[i * each : (i + 1) * each]) for i in range(workers)]


def own_cpus() -> list[int]:
    """Lists the CPUs that this process may run on, where the system tells."""
    return sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []


def tpu_chips(environment: Mapping[str, str]) -> list[str]:
    """Lists the TPU chips of this host, or those of them that are to be seen."""
    if named := environment.get("TPU_VISIBLE_CHIPS"):
        return named.split(",")
    files = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    return [str(i) for i in range(len(files))]


def gpus(environment: Mapping[str, str]) -> list[str]:
    """Lists the GPUs of this host, or those of them that are to be seen."""
    if "CUDA_VISIBLE_DEVICES" in environment:
        named = environment["CUDA_VISIBLE_DEVICES"]
        return [] if named in ("", "-1") else named.split(",")
    try:
        told = subprocess.run(
            ["nvidia-smi", "-L"],
            capture_output=True,
            text=True,
            timeout=60,
            env=dict(environment),
        )
    except (OSError, subprocess.TimeoutExpired):  # no driver, no GPU
        return []
    return re.findall(r"^GPU (\d+):", told.stdout, re.MULTILINE)
