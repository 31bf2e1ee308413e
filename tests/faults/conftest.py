"""Runs small enough to be killed often, and what it means that two are equal."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from equal_runs import TIMING_KEYS
from orbax.checkpoint import v1 as ocp

from dpo_jax import cli
from dpo_jax.build import quiet, run
from dpo_jax.cli import common
from dpo_jax.data.sources import sentiment
from dpo_jax.data.sources.files import Request
from dpo_jax.losses import LOSSES
from dpo_jax.report import html
from dpo_jax.train.manifest import read_manifest

ROOT = Path(__file__).parent.parent.parent
STEPS = 24
CADENCE = {
    "train.steps": STEPS,
    "checkpoint.every_steps": 5,
    "eval.every_steps": 6,
    "eval.rollouts": 0,
    "batch.pairs": 8,
}
JAX_SETTINGS = (
    "jax_default_matmul_precision",
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_debug_nans",
)


def blank_report(folders, out):
    Path(out).write_text("")


class Runs:
    """Starts runs of one small configuration, in this process or in another."""

    def __init__(self, folder):
        self.folder = folder
        self.rows = {}
        for split, count in (("train", 160), ("eval", 16)):
            rows = sentiment.read(Request(split, seed=7, rows=count))
            path = folder / f"{split}.jsonl.gz"
            lines = "".join(json.dumps(row) + "\n" for _, row in rows)
            path.write_bytes(gzip.compress(lines.encode()))
            self.rows[f"data.{split}"] = str(path)
        tokenizer = folder / "tokenizer"
        sentiment.tokenizer().save_pretrained(tokenizer)
        self.changed = {**CADENCE, **self.rows, "tokenizer.path": str(tokenizer)}

    def config(self, **changed):
        """Returns the configuration; `loss__beta=…` changes `loss.beta`."""
        config = common.load_config(str(ROOT / "configs" / "quickstart.py"))
        named = {key.replace("__", "."): value for key, value in changed.items()}
        config.update_from_flattened_dict({**self.changed, **named})
        return config

    def here(self, workdir, *, fork=False, losses=LOSSES, progress=quiet, **changed):
        """Runs in this process, on its eight devices; the report's figures are slow."""
        config = self.config(**changed)
        with mock.patch.object(html, "write_report", blank_report):
            return run(config, workdir, losses=losses, fork=fork, progress=progress)

    def flags(self, workdir, **changed):
        """Returns the command line of the same run."""
        named = {key.replace("__", "."): value for key, value in changed.items()}
        values = {**self.changed, **named}
        given = [f"--config.{key}={value}" for key, value in values.items()]
        return ["--config=configs/quickstart.py", f"--workdir={workdir}", *given]

    def start(self, workdir, *, devices=8, **changed):
        """Starts a process; its stderr goes to a file beside the run folder."""
        env = {
            **os.environ,
            "DPO_JAX_COMPILE_CACHE": str(ROOT / ".cache" / "jax"),
            "DPO_JAX_CPU_DEVICES": str(devices),
        }
        command = [sys.executable, "-m", "dpo_jax", "train"]
        with open(f"{workdir}.stderr", "w") as stderr:
            return subprocess.Popen(
                [*command, *self.flags(workdir, **changed)],
                cwd=ROOT,
                env=env,
                stdout=stderr,
                stderr=stderr,
            )

    def there(self, workdir, *, devices=8, **changed):
        """Runs in another process; returns its exit code and what it printed."""
        code = self.start(workdir, devices=devices, **changed).wait(timeout=600)
        return code, Path(f"{workdir}.stderr").read_text()

    @staticmethod
    def lines(run):
        """Reads metrics.jsonl without timings."""
        rows = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in row.items() if k not in TIMING_KEYS} for row in rows]

    @staticmethod
    def wait_for_step(run, step, process, *, seconds=600):
        """Waits until metrics.jsonl has a training line of `step`."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and process.poll() is None:
            path = run / "metrics.jsonl"
            text = path.read_text() if path.exists() else ""
            if f'{{"step": {step}, "split": "train"' in text:
                return
            time.sleep(0.005)
        raise AssertionError(f"step {step} was not reached; exit code {process.poll()}")

    @staticmethod
    def final_state(run):
        """Reads the arrays of the last checkpoint, and its record."""
        path = run / "checkpoints" / str(STEPS)
        record = read_manifest(path)
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        wanted = {
            name: jax.ShapeDtypeStruct(shape, np.dtype(dtype), sharding=place)
            for name, (shape, dtype) in record["arrays"].items()
            if 0 not in shape
        }
        return jax.tree.map(np.asarray, ocp.load(path, wanted)), record

    def assert_equal(self, run, straight):
        """Asserts that a run ended as one that was never interrupted."""
        assert self.lines(run) == self.lines(straight)
        for name in ("export/model.safetensors", "export/config.json", "results.json"):
            assert (run / name).read_bytes() == (straight / name).read_bytes(), name
        found, record = self.final_state(run)
        wanted, expected = self.final_state(straight)
        assert record["step"] == STEPS and record["metrics"] == expected["metrics"]
        assert found.keys() == wanted.keys() and {"step", "key"} < found.keys()
        for name, value in wanted.items():
            assert found[name].tobytes() == value.tobytes(), name
        assert not list(run.rglob("*tmp*")) and not list(run.rglob("*.part"))

    @staticmethod
    def undone(finished, target):
        """Copies a finished run and takes away what says that it is finished."""
        shutil.copytree(finished, target)
        for name in ("results.json", "report.html", "log.txt"):
            (target / name).unlink()
        shutil.rmtree(target / "export")
        return target


@pytest.fixture(scope="module", autouse=True)
def settings():
    """Sets jax as `cli` does, and gives the other tests back what they had."""
    before = {name: getattr(jax.config, name) for name in JAX_SETTINGS}
    jax.config.update("jax_default_matmul_precision", "highest")
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    common.setup_logging()
    return Runs(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def straight(runs, tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    runs.here(folder)
    return folder


@pytest.fixture
def call(capsys, monkeypatch):
    """Calls a verb in this process: -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("DPO_JAX_COMPILE_CACHE", str(ROOT / ".cache" / "jax"))

    def call(verb, *arguments):
        capsys.readouterr()
        code = cli.main(["dpo_jax", verb, *map(str, arguments)])
        return code, *capsys.readouterr()

    return call
