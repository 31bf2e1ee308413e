"""A worker whose trials train nothing, and such a trial: processes for the tests.

    python racing.py OUT LEASE_SECONDS here|strangers|store   a worker of six trials
    python racing.py train … --workdir=RUN               a trial

A trial keeps a chain of hashes as its state, a checkpoint a step, under the lock of its
run folder, and leaves word of each write in OUT/events.txt, with the time. Of strangers
nothing can be said, as of processes of other hosts. With `store` they are strangers,
and leases lie on gs:// at STORAGE_EMULATOR_HOST: no lock keeps two from a run folder.
"""

import contextlib
import hashlib
import os
import sys
import time
from pathlib import Path

from launch_cases import finish, load

from dpo_jax import gcs
from dpo_jax.cli.train import watch_lease
from dpo_jax.folders import Bucket
from dpo_jax.launch import processes
from dpo_jax.launch.hosts import LEASE
from dpo_jax.launch.trial import Trial, plan
from dpo_jax.launch.worker import Rules, Worker
from dpo_jax.train import runfolder

TRIALS, STEPS, SECONDS = 6, 10, 0.1


def planned(out):
    trials = [Trial(f"t{i}", "tiny", {"seed": i}) for i in range(TRIALS)]
    return plan(trials, str(out), load)


def state_of(name, steps=STEPS):
    """The state of a trial after so many steps."""
    state = name
    for step in range(steps):
        state = hashlib.sha256(f"{state} {step}".encode()).hexdigest()
    return state


def train(run, taken):
    watch_lease(taken)
    token = int(Path(taken).stem) - 1

    def note(what):
        with open(run.parent / "events.txt", "a") as file:
            file.write(f"{time.monotonic()} {run.name} {token} {what}\n")

    stored = taken.startswith(gcs.SCHEME)
    locked = contextlib.nullcontext() if stored else runfolder.claim(run, first=True)
    with locked:
        folder = run / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        names = [path.name for path in folder.iterdir()]  # and halves of the killed
        done = max((int(name) for name in names if name.isdecimal()), default=0)
        note(f"from {done}")
        state = (folder / f"{done}").read_text() if done else run.name
        for step in range(done, STEPS):
            time.sleep(SECONDS)
            state = hashlib.sha256(f"{state} {step}".encode()).hexdigest()
            note(f"step {step + 1}")  # twice, where it is killed before it writes
            runfolder.files.write_whole(folder / f"{step + 1}", state)
        (trial,) = [t for t in planned(run.parent) if t.name == run.name]
        finish(trial)
        note("end")


def start(arguments, log, environment):
    line = [sys.executable, __file__, *arguments]
    return processes.spawn(line, log, environment)


def work(out, seconds, whose):
    if whose != "here":
        processes.mark = lambda pid: ""
    Bucket.rest = 0.3
    leases = "gs://bucket/out" if whose == "store" else str(out)
    tell = lambda line: print(line, flush=True)  # noqa: E731
    rules = Rules(lease_seconds=float(seconds), first=os.getpid())
    worker = Worker(leases, f"pid {os.getpid()}", rules, os.environ, tell, start)
    with processes.stopping() as stop:
        return worker.walk(planned(out), stop).code


if __name__ == "__main__":
    gcs.use(os.environ.get("STORAGE_EMULATOR_HOST", ""))
    if sys.argv[1] == "train":
        train(Path(sys.argv[-1].partition("=")[2]), os.environ[LEASE])
    else:
        sys.exit(work(*sys.argv[1:]))
