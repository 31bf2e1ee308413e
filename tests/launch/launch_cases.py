"""Sweeps for tests, and trials that end as they are told, without a process."""

import json
import os
from pathlib import Path

from dpo_jax import schema
from dpo_jax.config import to_json
from dpo_jax.launch import processes
from dpo_jax.launch.trial import Trial, plan
from dpo_jax.launch.worker import Rules, Worker


def load(named, own):
    """A configuration that `config.check` passes; `named` is its preset."""
    config = schema.base()
    config.model.preset = named
    config.data.train = "sentiment"
    config.train.steps = 3
    for flag, file in own.items():
        config[flag] = f"digest of {file}"
    return config.lock()


def chain(out):
    """base, then one and two that start from it, then last, which waits for two."""
    start = {"model.preset": "", "model.path": "{base}"}
    trials = [
        Trial("last", "tiny", {"loss.beta": 0.5}, after=("two",)),
        Trial("one", "tiny", {**start, "loss.beta": 0.1}),
        Trial("base", "tiny", {}),
        Trial("two", "tiny", {**start, "loss.beta": 0.2}),
    ]
    return plan(trials, str(out), load)


def finish(trial, folder=None):
    """Leaves what a finished run leaves."""
    folder = Path(folder or trial.folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(to_json(trial.config))
    results = {"step": trial.config.train.steps, "values": {"loss": 0.5}}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "report.html").write_text("a page")


class Ended:
    """A process that has ended already."""

    def __init__(self, code):
        self.code, self.pid, self.signals = code, 0, []

    def wait(self, timeout=None):
        return self.code

    def poll(self):
        return self.code

    def send_signal(self, number):
        self.signals.append(number)


class Stub:
    """Starts trials that end at once: with what `says` lists for them, else well.

    Attributes:
      started: names of trials, in the order in which they were started.
    """

    def __init__(self, planned, says=None):
        self.planned = {trial.arguments: trial for trial in planned}
        self.says = {name: list(codes) for name, codes in (says or {}).items()}
        self.started, self.environments = [], []

    def __call__(self, arguments, log, environment):
        trial = self.planned[tuple(arguments)]
        self.started.append(trial.name)
        self.environments.append(dict(environment))
        codes = self.says.get(trial.name) or [0]
        code = codes.pop(0)
        log.write_text(f"a warning\nerror[{code}]: {trial.name} said {code}\n")
        if code == 0:
            finish(trial)
        return Ended(code)


def walk(out, planned, stub, stop=None, **rules):
    """Lets one worker walk; returns how it ended, and what it told."""
    told = []
    worker = Worker(str(out), "me", Rules(**rules), {"A": "1"}, told.append, stub)
    stop = processes.Stop() if stop is None else stop
    return worker.walk(planned, stop), told


def walker(out, stub, told):
    """Makes workers that start stubs: what a launcher is given."""
    return lambda variables: Worker(
        str(out), "me", Rules(), {"A": "1", **variables}, told.append, stub
    )


def shim(folder, monkeypatch, name, script):
    """Puts a program before all others on PATH; it finds `folder` as $HERE."""
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/bash\nHERE={folder}\n{script}\n")
    path.chmod(0o755)
    if not os.environ["PATH"].startswith(f"{path.parent}:"):
        monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
