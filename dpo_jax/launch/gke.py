"""The launcher of GKE: a JobSet a trial, in a queue of Kueue, by `kubectl apply`.

A pod is a host of a TPU slice. What preempts a trial, or takes a host of it, restarts
its JobSet for free; what is the trial's own fault ends it: see `AGAIN`.
"""

import json
import math
import shlex
from typing import Annotated, Any, NamedTuple

import yaml

from dpo_jax.errors import ConfigError
from dpo_jax.launch.job import (
    AGAIN,
    Here,
    Job,
    Task,
    call,
    command,
    required,
    tasks,
)

LABEL = "dpo-jax/sweep"
KINDS = {  # of node selector -> (accelerator type, cores of a chip that it counts)
    "tpu-v4-podslice": ("v4", 2),
    "tpu-v5-lite-podslice": ("v5litepod", 1),
    "tpu-v5p-slice": ("v5p", 2),
    "tpu-v6e-slice": ("v6e", 1),
    "tpu7x": ("tpu7x", 1),
}
GRACE = 120  # seconds from SIGTERM to SIGKILL: a checkpoint is committed meanwhile
INDEX = {  # of a pod, as Kubernetes names it to a container
    "fieldRef": {
        "fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    }
}


class Options(NamedTuple):
    """Flags of this launcher."""

    image: Annotated[str, "container image with dpo_jax and the sweep file"] = ""
    queue: Annotated[str, "LocalQueue of Kueue"] = ""
    accelerator: Annotated[str, "cloud.google.com/gke-tpu-accelerator"] = ""
    topology: Annotated[str, "cloud.google.com/gke-tpu-topology, as 4x4"] = ""
    chips: Annotated[int, "TPU chips of a host"] = 4
    spot: Annotated[str, "'true' = on spot nodes"] = ""
    namespace: Annotated[str, "of the JobSets"] = "default"
    service_account: Annotated[str, "of the pods; it may read and write --out"] = ""
    env: Annotated[str, "variables of the pods, NAME=VALUE,…; no secrets"] = ""


def render(job: Job, options: Options) -> str:
    """Writes the JobSets, each with the line of `xpk` that would do the same."""
    placed = check(job, options)
    return "".join(
        f"---\n# {xpk(placed, task, options)}\n"
        + yaml.safe_dump(jobset(placed, task, options), sort_keys=False, width=1000)
        for task in tasks(placed)
    )


def launch(job: Job, options: Options, here: Here) -> None:
    """Submits what is not there: one that runs stays, one that has ended goes first.

    Raises:
      SweepError: if the cluster takes something not.
    """
    placed = check(job, options)
    found = existing(placed, options)
    for task in tasks(placed):
        if task.name in found and not found[task.name]:
            here.tell(f"{task.only or task.name}: JobSet {task.name} is there already")
            continue
        if task.name in found:
            kubectl(options, "delete", "jobset", task.name, "--wait=true")
        manifest = yaml.safe_dump(jobset(placed, task, options), sort_keys=False)
        kubectl(options, "apply", "-f", "-", given=manifest)
        here.tell(f"{task.only or task.name}: submitted as JobSet {task.name}")


def check(job: Job, options: Options) -> Job:
    """Returns the job with as many hosts as the slice has.

    Raises:
      ConfigError: if an option is missing, or makes no sense.
    """
    required(options, "gke", "image", "queue", "accelerator", "topology")
    sides = options.topology.split("x")
    if options.accelerator not in KINDS or not all(s.isdecimal() for s in sides):
        raise ConfigError(
            f"--gke_accelerator={options.accelerator!r} --gke_topology="
            f"{options.topology!r}: accelerators are {', '.join(KINDS)}, a topology "
            "is 4x4 or 2x2x4"
        )
    chips = math.prod(map(int, sides))
    if not options.chips > 0 or (chips > options.chips and chips % options.chips):
        raise ConfigError(
            f"--gke_chips={options.chips} does not divide the {chips} chips of "
            f"--gke_topology={options.topology}"
        )
    if not job.out.startswith("gs://"):
        raise ConfigError(f"--out={job.out}: pods share no disk; name a folder gs://…")
    hosts = max(1, chips // options.chips)
    if job.hosts not in (1, hosts):
        raise ConfigError(f"--hosts={job.hosts}: a slice of these has {hosts} hosts")
    return job._replace(hosts=hosts)


def jobset(job: Job, task: Task, options: Options) -> dict[str, Any]:
    """Writes the JobSet of a task."""
    restart = {
        "name": "again",
        "action": "RestartJobSetAndIgnoreMaxRestarts",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": task.name,
            "namespace": options.namespace,
            "labels": {
                "kueue.x-k8s.io/queue-name": options.queue,
                LABEL: label_of(job),
            },
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": (
                    "cloud.google.com/gke-nodepool"
                ),
                "dpo-jax/trial": task.only or "all",
            },
        },
        "spec": {
            # no rank starts before all of the attempt before are gone
            "failurePolicy": {
                "maxRestarts": 0,
                "restartStrategy": "BlockingRecreate",
                "rules": [restart],
            },
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "replicatedJobs": [
                {
                    "name": "hosts",
                    "replicas": 1,
                    "template": {"spec": job_spec(job, task, options)},
                }
            ],
        },
    }


def job_spec(job: Job, task: Task, options: Options) -> dict[str, Any]:
    """Writes the Job of a slice: a pod a host, and which ends count for nothing."""
    disrupted = [{"type": "DisruptionTarget", "status": "True"}]
    codes = {"containerName": "trial", "operator": "In", "values": list(AGAIN)}
    return {
        "completionMode": "Indexed",
        "parallelism": job.hosts,
        "completions": job.hosts,
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onPodConditions": disrupted},
                {"action": "FailJob", "onExitCodes": codes},
            ]
        },
        "template": {"spec": pod_spec(job, task, options)},
    }


def pod_spec(job: Job, task: Task, options: Options) -> dict[str, Any]:
    """Writes the pod of a host."""
    spot = {"cloud.google.com/gke-spot": "true"} if options.spot == "true" else {}
    tolerated = [
        {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}
        for key, value in spot.items()
    ]
    account = options.service_account
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE,
        **({"serviceAccountName": account} if account else {}),
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": options.accelerator,
            "cloud.google.com/gke-tpu-topology": options.topology,
            **spot,
        },
        **({"tolerations": tolerated} if tolerated else {}),
        "containers": [
            {
                "name": "trial",
                "image": options.image,
                "command": ["python", "-m", "dpo_jax"],
                "args": command(job, task, "$(HOST_INDEX)"),
                "env": [
                    {"name": "HOST_INDEX", "valueFrom": INDEX},
                    {"name": "PYTHONUNBUFFERED", "value": "1"},
                    *variables(options),
                ],
                "ports": [{"containerPort": 8471}],
                "resources": {"limits": {"google.com/tpu": options.chips}},
            }
        ],
    }


def variables(options: Options) -> list[dict[str, str]]:
    """Reads `--gke_env`.

    Raises:
      ConfigError: if it is no list of NAME=VALUE.
    """
    parts = [part.partition("=") for part in options.env.split(",") if part]
    if not all(name.isidentifier() and sign for name, sign, _ in parts):
        raise ConfigError(f"--gke_env={options.env!r} is not NAME=VALUE,NAME=VALUE,…")
    return [{"name": name, "value": value} for name, _, value in parts]


def xpk(job: Job, task: Task, options: Options) -> str:
    """Writes the line of xpk that starts the same; `$CLUSTER` is the user's."""
    kind, cores = KINDS[options.accelerator]
    chips = math.prod(map(int, options.topology.split("x")))
    line = ["python", "-m", "dpo_jax", *command(job, task, "HOST_INDEX")]
    run = shlex.join(line).replace("HOST_INDEX", "$JOB_COMPLETION_INDEX")
    flags = [
        f"--workload={task.name}",
        "--cluster=$CLUSTER",
        f"--tpu-type={kind}-{chips * cores}",
        "--num-slices=1",
        f"--docker-image={options.image}",
        "--max-restarts=1000",
        f"--restart-on-exit-codes={','.join(map(str, AGAIN))}",
        f"--command={shlex.quote(run)}",
    ]
    return " ".join(["xpk workload create", *flags])


def label_of(job: Job) -> str:
    """Names a sweep as labels allow it: at most 63 of a-z, A-Z, 0-9, -, _ and '.'."""
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in job.name)
    return kept.strip("-")[:63].strip("-") or "sweep"


def existing(job: Job, options: Options) -> dict[str, bool]:
    """Returns the JobSets of the sweep that are there, and whether they have ended."""
    told = kubectl(options, "get", "jobsets", f"-l{LABEL}={label_of(job)}", "-ojson")
    return {
        item["metadata"]["name"]: bool(item.get("status", {}).get("terminalState"))
        for item in json.loads(told)["items"]
    }


def kubectl(options: Options, *arguments: str, given: str = "") -> str:
    """Calls kubectl; returns what it printed. See `job.call`."""
    line = ["kubectl", f"--namespace={options.namespace}", *arguments]
    return call(line, given)
