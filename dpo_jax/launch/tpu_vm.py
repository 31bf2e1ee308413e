"""The launcher of TPU VMs: a worker on each of several slices, as queued resources.

A slice starts its worker by itself when it boots, from a startup script, so nothing
hangs on a connection. This process looks at what there is and at what there should be:
a slice that was taken away is deleted, and when it is gone another is asked for, under
a name of its own; one whose worker has ended is deleted. What it does not know it waits
for.
"""

import json
import os
import shlex
import tempfile
import time
from typing import Annotated, Any, NamedTuple

from dpo_jax.errors import EXIT_PREEMPTED, ConfigError
from dpo_jax.launch.job import (
    AGAIN,
    Here,
    Job,
    Task,
    command,
    ended,
    required,
    said_of,
    started,
    tasks,
)
from dpo_jax.launch.worker import Walk

POLL = 30.0  # seconds between looks
LOST = ("SUSPENDED", "FAILED")  # states of a queued resource that nothing leads out of
GOING = ("SUSPENDING", "DELETING")
DEAD = ("PREEMPTED", "TERMINATED", "STOPPED")  # of a node
MARKER = ".sweep/tpu_vm"  # below --out: how the worker of each slice ended
QUEUE = ("gcloud", "compute", "tpus", "queued-resources")

SCRIPT = """\
#!/bin/bash
# Runs the worker of one host of a TPU slice; the slice starts it at each boot.
set -uo pipefail
export HOME=${{HOME:-/root}}
home=${{DPO_JAX_HOME:-/opt/dpo_jax}}
attribute() {{ # of this slice, as its metadata server has it
  curl --silent --fail --retry 10 --retry-connrefused -H 'Metadata-Flavor: Google' \\
    "http://${{GCE_METADATA_HOST:-metadata.google.internal}}/computeMetadata/v1/instance/attributes/$1"
}}
index=$(attribute agent-worker-number) || exit 71
endpoints=$(attribute worker-network-endpoints) || exit 71
IFS=, read -ra hosts <<<"$endpoints"
address=${{hosts[$index]##*:}} # HOST, or NAME:NUMBER:HOST

install() {{ # Python and the package; the images come with an older one
  python3 -m pip install --quiet uv &&
    python3 -m uv venv --quiet --clear --python {python} "$home" &&
    {fetch}python3 -m uv pip install --quiet --python "$home/bin/python" {package} &&
    touch "$home/.installed"
}}
for attempt in 1 2 3 4 5; do
  [ -e "$home/.installed" ] || install && break
  sleep 10
done
mkdir -p "$home/sweep" && cd "$home/sweep" || exit 71
gcloud storage cp {code} . || exit 71

worker=
trap 'told=1; [ -z "$worker" ] || kill -TERM "$worker"' TERM
told=
while [ -z "$told" ]; do
  if [ "${{#hosts[@]}}" -gt 1 ]; then
    place=("--hosts=${{#hosts[@]}}" "--host_index=$index" "--host_address=$address")
    place+=("--group={name}")
  else
    place=()
  fi
  "$home/bin/python" -m dpo_jax {command} ${{place[@]+"${{place[@]}}"}} &
  worker=$!
  wait "$worker"
  code=$?
  while kill -0 "$worker" 2>/dev/null; do # a signal ends `wait`, and not the worker
    wait "$worker"
    code=$?
  done
  case $code in
  {again}) sleep {rest} ;;
  *) break ;;
  esac
done
if [ -z "$told" ] && [ "$index" = 0 ]; then
  echo "$code" >"$home/ended" && gcloud storage cp "$home/ended" {marker}
fi
exit "$code"
"""
REST = 30  # seconds before a worker is started again


class Options(NamedTuple):
    """Flags of this launcher."""

    type: Annotated[str, "--accelerator-type of the slices, as v4-32"] = ""
    runtime: Annotated[str, "--runtime-version, as tpu-ubuntu2204-base"] = ""
    zone: Annotated[str, "of the slices"] = ""
    project: Annotated[str, "that pays; '' = as gcloud has it"] = ""
    package: Annotated[
        str, "what pip installs: gs://…/dpo_jax-….whl, or git+https…"
    ] = ""
    python: Annotated[str, "version that runs it"] = "3.12"
    spot: Annotated[str, "'true' = slices that can be taken away"] = "true"


def render(job: Job, options: Options) -> str:
    """Writes the commands for the slices, and the script that they start with."""
    check(job, options)
    lines = [shlex.join(upload(job))]
    for task in slices(job):
        name = f"{task.name}-0"
        lines.append(shlex.join(create(name, "startup-script.sh", options)))
        lines.append(shlex.join(delete(name, options)))
    text = "\n".join(lines)
    return f"{text}\n# startup-script.sh:\n{script(job, name, options)}"


def slices(job: Job) -> list[Task]:
    """Lists the slices: as many as there are workers, else one."""
    return tasks(job._replace(workers=max(1, job.workers)))


def check(job: Job, options: Options) -> None:
    """Refuses options that are missing, and a folder that the hosts do not share.

    Raises:
      ConfigError: naming them.
    """
    required(options, "tpu_vm", "type", "runtime", "zone", "package")
    if job.hosts != 1:
        raise ConfigError(
            f"--hosts={job.hosts}: leave it out, a slice knows how many hosts it has"
        )
    if not job.out.startswith(("gs://", "/")):
        raise ConfigError(
            f"--out={job.out}: name a folder gs://…, or /… of a disk that all hosts "
            "of all slices mount"
        )


def launch(job: Job, options: Options, here: Here) -> Walk:
    """Keeps the slices there until each worker has ended; says how the sweep did."""
    check(job, options)
    gcloud(upload(job), must=True)
    kept = [Slice(job, task.name, options, here) for task in slices(job)]
    while not here.stop:
        found = look(options)
        if found is not None:
            for each in kept:
                each.reconcile({n: s for n, s in found.items() if each.owns(n)})
        kept = [each for each in kept if not each.over]
        if not kept:
            return ended(job)
        rest(here, POLL)
    here.tell(left(kept, options))
    walk = ended(job)
    return walk._replace(code=EXIT_PREEMPTED)


def rest(here: Here, seconds: float) -> None:
    """Sleeps, unless this process is told to stop."""
    until = time.monotonic() + seconds
    while not here.stop and time.monotonic() < until:
        time.sleep(min(0.2, seconds))


class Slice:
    """What is known of the slice of one worker."""

    def __init__(self, job: Job, base: str, options: Options, here: Here):
        """Knows nothing yet.

        Args:
          job: the sweep.
          base: start of the names of its attempts.
          options: of the launcher.
          here: of this process.
        """
        self._job, self._base, self._options, self._here = job, base, options, here
        self._asked = ""  # the name of an attempt that has yet to be seen
        self._told: dict[str, str] = {}
        self._has_ended = self.over = False

    def owns(self, name: str) -> bool:
        """Tells whether a queued resource is an attempt at this slice."""
        start, _, attempt = name.rpartition("-")
        return start == self._base and attempt.isalnum()

    def reconcile(self, found: dict[str, str]) -> None:
        """Does what brings what is there nearer to what should be.

        Args:
          found: name of each attempt -> its state.
        """
        for name, state in found.items():
            if self._told.get(name) != state:
                self._here.tell(f"{name}: {state}")
                self._told[name] = state
        if self._asked in found:
            self._asked = ""
        self._has_ended = self._has_ended or any(map(self._end_of, found))
        for name, state in found.items():
            if state in LOST or (self._has_ended and state not in GOING):
                gcloud(delete(name, self._options))
        if self._has_ended:
            self.over = not found and not self._asked
        elif not found:  # what is going is waited for
            self._ask()

    def _end_of(self, name: str) -> bool:
        """Tells whether the worker of an attempt has ended."""
        told = gcloud(["gcloud", "storage", "cat", marker(self._job, name)])
        if told is None or not told.strip().isdecimal():
            return False
        self._here.tell(f"{name}: its worker ended with {told.strip()}")
        return True

    def _ask(self) -> None:
        """Asks for a slice; again under the same name, until it has been seen."""
        name = self._asked or f"{self._base}-{int(time.time()):x}"
        self._asked = name
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "startup-script.sh")
            with open(path, "w", encoding="utf-8") as file:
                file.write(script(self._job, name, self._options))
            gcloud(create(name, path, self._options))


def look(options: Options) -> dict[str, str] | None:
    """Returns the state of each queued resource; None where gcloud does not say.

    One whose node is dead counts as lost, whatever the queue says.
    """
    line = [*QUEUE, "list", *place(options), "--format=json"]
    nodes_line = [*QUEUE[:3], "tpu-vm", "list", *place(options), "--format=json"]
    told, nodes = gcloud(line), gcloud(nodes_line)
    if told is None or nodes is None:
        return None
    try:
        dead = {base_of(n) for n in json.loads(nodes) if n.get("state") in DEAD}
        found = {base_of(r): r["state"]["state"] for r in json.loads(told)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return {
        name: "SUSPENDED" if state == "ACTIVE" and name in dead else state
        for name, state in found.items()
    }


def base_of(resource: dict[str, Any]) -> str:
    """Returns the last part of a resource's name."""
    return resource["name"].rpartition("/")[2]


def place(options: Options) -> list[str]:
    """Writes the flags that say where."""
    project = [f"--project={options.project}"] if options.project else []
    return [f"--zone={options.zone}", *project]


def create(name: str, script_file: str, options: Options) -> list[str]:
    """Writes the command that asks for a slice."""
    return [
        *(*QUEUE, "create", name, f"--node-id={name}", *place(options)),
        f"--accelerator-type={options.type}",
        f"--runtime-version={options.runtime}",
        *(["--spot"] if options.spot == "true" else []),
        f"--metadata-from-file=startup-script={script_file}",
    ]


def delete(name: str, options: Options) -> list[str]:
    """Writes the command that deletes a slice, its node with it."""
    return [*QUEUE, "delete", name, *place(options), "--force", "--quiet", "--async"]


def upload(job: Job) -> list[str]:
    """Writes the command that puts the sweep file where the slices find it."""
    file = job.file.partition(":")[0]
    return ["gcloud", "storage", "cp", file, code_of(job)]


def code_of(job: Job) -> str:
    """Names the copy of the sweep file."""
    return f"{job.out}/.sweep/{os.path.basename(job.file.partition(':')[0])}"


def marker(job: Job, name: str) -> str:
    """Names the file that says how the worker of a slice ended."""
    return f"{job.out}/{MARKER}/{name}"


def script(job: Job, name: str, options: Options) -> str:
    """Writes the startup script of an attempt at a slice."""
    file, sign, argument = job.file.partition(":")
    named = job._replace(file=os.path.basename(file) + sign + argument, hosts=1)
    fetched, fetch = options.package, ""
    if options.package.startswith("gs://"):
        fetched = f"/tmp/{os.path.basename(options.package)}"
        fetch = f"gcloud storage cp {shlex.quote(options.package)} /tmp/ &&\n    "
    return SCRIPT.format(
        python=shlex.quote(options.python),
        fetch=fetch,
        package=shlex.quote(f"dpo_jax[tpu,gcs] @ {source_of(fetched)}"),
        code=shlex.quote(code_of(job)),
        command=shlex.join(command(named, Task(name, "", ()))),
        name=name,
        again="|".join(map(str, AGAIN)),
        rest=REST,
        marker=shlex.quote(marker(job, name)),
    )


def source_of(package: str) -> str:
    """Writes where a package lies, as a requirement has it."""
    return f"file://{package}" if package.startswith("/") else package


def left(kept: list[Slice], options: Options) -> str:
    """Says what goes on without this process, and how to end it."""
    found = look(options) or {}
    names = [name for name in found if any(each.owns(name) for each in kept)]
    gone = "; ".join(shlex.join(delete(name, options)) for name in names)
    return f"{len(names)} slices go on by themselves; to end them: {gone or 'nothing'}"


def gcloud(line: list[str], *, must: bool = False) -> str | None:
    """Calls gcloud; returns what it printed, None where it fails.

    Raises:
      ConfigError: if it is not there; or fails, and must not.
    """
    done = started(line)
    if done.returncode and must:
        raise ConfigError(said_of(done))
    return None if done.returncode else done.stdout
