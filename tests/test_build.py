"""A whole run, small: what it compiles, waits for and accounts for."""

import collections
import json
import shutil
import time
from pathlib import Path

import jax
import pytest
from jax import monitoring

from dpo_jax import build
from dpo_jax.cli import common
from dpo_jax.config import to_json
from dpo_jax.data.sources import sentiment
from dpo_jax.errors import ConfigError, ModelError, RunFolderError
from dpo_jax.report import html
from dpo_jax.train import loop
from dpo_jax.train.clock import BUCKETS
from dpo_jax.wiring import data as data_wiring

ROOT = Path(__file__).parent.parent
COMPILE = "/jax/core/compile/backend_compile_duration"
PAIRS, STEPS = 16, 33
SHORT, LONG = "great", " ".join(["great"] * 20)


@pytest.fixture(scope="module", autouse=True)
def quick_compilations():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    common.setup_logging()
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Fine-tuning in order over steps of a file; batches have 8 or 16 rows.

    Every third step needs a row of 32 tokens for each text, the others for several.
    """
    folder = tmp_path_factory.mktemp("data")
    sentiment.tokenizer().save_pretrained(folder / "tokenizer")
    texts = [LONG if step % 3 == 2 else SHORT for step in range(STEPS)]
    rows = [{"prompt": "the movie was", "completion": f" {t}"} for t in texts]
    lines = [json.dumps(row) + "\n" for row in rows for _ in range(PAIRS)]
    (folder / "train.jsonl").write_text("".join(lines))
    config = common.load_config(f"{ROOT}/configs/quickstart.py:stage=sft")
    config.update_from_flattened_dict(
        {
            "tokenizer.path": str(folder / "tokenizer"),
            "data.train": str(folder / "train.jsonl"),
            "data.eval": "",
            "data.row_tokens": 32,
            "data.row_shapes": 0,
            "data.shuffle": False,
            "batch.pairs": PAIRS,
            "train.steps": STEPS,
            "checkpoint.every_steps": 0,
        }
    )
    return config


@pytest.fixture(scope="module")
def ran(config, tmp_path_factory):
    """A run: its summary, its folder, what it compiled, how long it took."""
    run, compiled = tmp_path_factory.mktemp("ran") / "run", collections.Counter()

    def hear(event, duration_secs, **more):
        if event == COMPILE:
            compiled[more["fun_name"]] += 1

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(html, "write_report", lambda runs, out: out.write_text("short"))
        monitoring.register_event_duration_secs_listener(hear)
        begun = time.perf_counter()
        try:
            summary = build.run(config, run)
        finally:
            took = time.perf_counter() - begun
            monitoring.unregister_event_duration_listener(hear)
    return summary, run, compiled, took


def test_the_step_compiles_once_for_each_number_of_rows(ran):
    summary, run, compiled, _ = ran
    assert "compiles 2 step shapes {rows: steps}: {8: 22, 16: 11}" in (
        (run / "log.txt").read_text()
    )
    assert compiled["jit(train_step)"] == 2
    assert summary.step == STEPS


def test_buckets_sum_to_the_wall_time(ran):
    summary, run, _, took = ran
    assert tuple(summary.seconds) == BUCKETS
    assert 0.95 * took < sum(summary.seconds.values()) <= took
    spent = [summary.seconds[n] for n in BUCKETS if n != "eval"]
    assert all(seconds > 0 for seconds in spent) and summary.seconds["eval"] < 0.01
    timing = json.loads((run / "timing.json").read_text())
    assert timing["seconds"] == summary.seconds and timing["steps"] == STEPS
    assert timing["peak"] == summary.peak._asdict()
    assert timing["programs"] == summary.programs


def test_compiling_is_not_in_the_seconds_of_steps(ran):
    """Reading metrics and waiting for batches are, and hardly anything else is."""
    summary, run, _, _ = ran
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    lines = [line for line in lines if line["split"] == "train"]
    stepping = sum(line["step_seconds"] for line in lines)
    least = summary.seconds["step"] + summary.seconds["data"]
    assert 0.9 * least < stepping < least + summary.seconds["other"]
    for line in lines:
        assert line["tokens_per_second"] > 0 and line["mfu"] > 0
        assert line["data_wait_seconds"] > 0


def test_a_finished_run_is_told_from_its_files(config, ran, monkeypatch):
    """Neither rows nor a tokenizer are read, also where the rows say how many steps."""

    def refuse(*arguments, **options):
        raise AssertionError("something was read")

    monkeypatch.setattr(data_wiring, "load_data", refuse)
    monkeypatch.setattr(data_wiring, "load_tokenizer", refuse)
    again = build.run(config, ran[1])
    assert again.already_complete and again.seconds == {} and again.peak is None
    assert again._replace(already_complete=False, resumed_from=0) == ran[0]._replace(
        seconds={}, peak=None, results=again.results, programs={}
    )
    in_epochs = config.copy_and_resolve_references()
    in_epochs.train.update({"steps": 0, "epochs": 1.0})
    folder = ran[1].parent / "in_epochs"
    folder.mkdir()
    for name in ("results.json", "data.json", "report.html"):
        (folder / name).write_bytes((ran[1] / name).read_bytes())
    (folder / "config.json").write_text(to_json(in_epochs))
    assert build.run(in_epochs, folder).step == STEPS


def test_a_finished_run_keeps_its_export_alone(config, ran, monkeypatch, tmp_path):
    """`checkpoint.after`: what is left is told from a run that never was."""
    run = shutil.copytree(ran[1], tmp_path / "run")
    config = config.copy_and_resolve_references()
    config.checkpoint.after = "none"
    monkeypatch.chdir(ROOT)
    assert build.run(config, run).already_complete
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["given_up.json"]
    assert (run / "export" / "model.safetensors").exists()
    assert build.run(config, run).already_complete
    said = "kept no train state when it was done.*its policy is .*/export"
    with pytest.raises(ModelError, match=said):
        build.export_run(run, tmp_path / "out", dtype="float32")
    (run / "results.json").unlink()
    with pytest.raises(RunFolderError, match="gave up its checkpoints"):
        build.run(config, run)
    assert not (run / "results.json").exists()


def test_evaluation_reads_no_training_rows(config, ran, monkeypatch, tmp_path):
    """The training rows are elsewhere while it runs."""
    changed = config.copy_and_resolve_references()
    rows = Path(config.data.train)
    changed.data.eval = str(tmp_path / "eval.jsonl")
    Path(changed.data.eval).write_text(rows.read_text())
    monkeypatch.chdir(ROOT)
    away = rows.rename(rows.with_suffix(".away"))
    try:
        summary = build.evaluate(changed, ran[1])
    finally:
        away.rename(rows)
    assert list(summary.data) == ["eval"] and summary.values["loss"] > 0
    with pytest.raises(ConfigError, match="data.eval is empty"):
        build.evaluate(config, ran[1])


def test_no_step_copies_between_host_and_device(config, monkeypatch, tmp_path):
    """The loop's step refuses to; a batch left on the host does not get through."""

    class Reached(Exception):
        pass

    def take_one(state, parts, **_):
        batch = parts.next_batch(state)
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            parts.step(state, jax.device_get(batch))
        raise Reached

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(loop, "run", take_one)
    with pytest.raises(Reached):
        build.run(config, tmp_path / "run")
