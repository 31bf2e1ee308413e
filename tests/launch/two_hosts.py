"""A host of two that run toy trials together, and a rank of such a trial.

    python two_hosts.py OUT INDEX SECONDS        the worker of a host
    python two_hosts.py train … --workdir=RUN    a rank

Ranks meet at the address that they are given and count steps together; one that loses
the other ends with 71. OUT may be gs:// of the store at STORAGE_EMULATOR_HOST; what
happens is noted in the folder EVENTS of this machine.
"""

import os
import socket
import sys
import time
from pathlib import Path

from launch_cases import finish
from racing import planned

from dpo_jax import gcs
from dpo_jax.folders import Bucket
from dpo_jax.launch import processes
from dpo_jax.launch.hosts import DISTRIBUTED, Follower, Group, Hosts, Leader
from dpo_jax.launch.worker import Rules, Worker

STEPS, SECONDS, MEETING = 10, 0.1, 30.0
EVENTS = "TWO_HOSTS_EVENTS"


def rank_of(run):
    """Counts steps with the other rank; returns the exit code."""
    place, _, index = os.environ[DISTRIBUTED].split(",")
    host, _, port = place.rpartition(":")

    def note(what):
        with open(Path(os.environ[EVENTS]) / "events.txt", "a") as file:
            file.write(f"{time.monotonic()} {run.name} {index} {place} {what}\n")

    note("begins")
    with met(host, int(port), int(index)) as other:
        for step in range(STEPS):
            time.sleep(SECONDS)
            try:
                other.sendall(b"x")
                if not other.recv(1):
                    raise OSError
            except OSError:
                note("lost")
                return 71
            note(f"step {step + 1}")
    if index == "0":
        (trial,) = [t for t in planned(run.parent) if t.name == run.name]
        finish(trial, Path(os.environ[EVENTS]) / "runs" / trial.name)
    note("ends")
    return 0


def met(host, port, index):
    """Connects two ranks."""
    if index == 0:
        with socket.create_server((host, port)) as door:
            door.settimeout(MEETING)
            return door.accept()[0]
    until = time.monotonic() + MEETING
    while True:
        try:
            return socket.create_connection((host, port), MEETING)
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def start(arguments, log, environment):
    return processes.spawn([sys.executable, __file__, *arguments], log, environment)


def work(out, index, seconds):
    gcs.use(os.environ.get("STORAGE_EMULATOR_HOST", ""))
    Bucket.rest = 0.2
    tell = lambda line: print(line, flush=True)  # noqa: E731
    hosts = Hosts(2, int(index), "slice", "127.0.0.1", float(seconds))
    group, environment = Group(out, hosts), dict(os.environ)
    runs = str(Path(os.environ[EVENTS]) / "runs")
    trials = [t._replace(folder=f"{runs}/{t.name}") for t in planned(out)[:2]]
    with processes.stopping() as stop:
        if hosts.index:
            return Follower(group, hosts, environment, tell, start).follow(trials, stop)
        leader, rules = Leader(group, hosts), Rules(lease_seconds=6.0)
        worker = Worker(out, "host 0", rules, environment, tell, start, leader)
        walk = worker.walk(trials, stop)
        leader.leave(walk.code)
        return walk.code


if __name__ == "__main__":
    if sys.argv[1] == "train":
        sys.exit(rank_of(Path(sys.argv[-1].partition("=")[2])))
    sys.exit(work(*sys.argv[1:]))
