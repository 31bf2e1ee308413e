"""Killed, stopped and corrupted runs go on as if nothing had happened, or refuse."""

import gzip
import json
import random
import re
import shutil
import signal
import tarfile
import threading
import time
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from equal_runs import TIMING_KEYS

from dpo_jax import build, cli
from dpo_jax.data.loader import Loader
from dpo_jax.errors import (
    DataError,
    ModelError,
    NonFiniteError,
    Preempted,
    RunFolderError,
)
from dpo_jax.losses import LOSSES, pairwise
from dpo_jax.report import html
from dpo_jax.train import checkpoint, runfolder
from dpo_jax.wiring import restoring

STEPS = 24  # as in conftest: checkpoints every 5, evaluations every 6


def blank_report(folders, out):
    Path(out).write_text("")


def at_step(number, action):
    """Returns a progress callback that acts once `number` has been read."""

    def progress(step, last, values):
        if step == number:
            action()

    return progress


def largest(step_folder):
    files = [path for path in step_folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def log_of(run):
    return (run / "log.txt").read_text()


def test_signal_saves_and_relaunch_equals_a_straight_run(
    runs, straight, tmp_path, monkeypatch
):
    """A2 within a process: the step behind the one that was read is committed.

    The save of step 15 is in flight when the signal comes, and is committed as well.
    """
    run, asked, hashed = tmp_path / "run", threading.Event(), checkpoint.hashed

    def held(path, step, saves):
        assert step != 15 or asked.wait(60)
        return hashed(path, step, saves)

    def ask():
        assert not (run / "checkpoints" / "15" / "MANIFEST.json").exists()
        signal.raise_signal(signal.SIGTERM)
        asked.set()

    monkeypatch.setattr(checkpoint, "hashed", held)
    with pytest.raises(Preempted, match="preempted; step 17 committed"):
        runs.here(run, progress=at_step(16, ask))
    log = log_of(run)
    assert log.index("step 15 committed") < log.index("step 17 committed")
    assert runs.lines(run)[-1]["step"] == 17
    assert not (run / "results.json").exists()
    assert runs.here(run).resumed_from == 17
    assert "resumed from step 17" in log_of(run)
    runs.assert_equal(run, straight)


def test_main_maps_a_preempted_run_to_75(capsys, monkeypatch):
    def stopped(config, workdir, **_):
        raise Preempted(17)

    monkeypatch.setattr(build, "run", stopped)
    code = cli.main(["", "train", "--config=configs/quickstart.py", "--workdir=x"])
    assert code == 75
    assert "preempted; step 17 committed; relaunch" in capsys.readouterr().err


def test_hook_that_raises_leaves_the_last_save(runs, straight, tmp_path, capsys):
    """A4: the save of step 10, still in flight, is committed."""
    run = tmp_path / "run"

    def fail():
        raise RuntimeError("the hook failed")

    with pytest.raises(RuntimeError, match="the hook failed") as caught:
        runs.here(run, progress=at_step(11, fail))
    assert cli.report_error(caught.value, [f"--workdir={run}"]) == 70
    told = capsys.readouterr().err
    (kept,) = (run / "errors").iterdir()
    assert f"error[70]: RuntimeError: the hook failed (traceback: {kept})" in told
    assert "Traceback" in kept.read_text()
    steps = [path.name for path in (run / "checkpoints").iterdir()]
    assert sorted(steps) == ["10", "5"]
    assert runs.here(run).resumed_from == 10
    runs.assert_equal(run, straight)


def spoilt(steps):
    """A table with DPO that is not finite at some steps, told by the warm-up's lr.

    The ids of the wanted step are not known to a loss, so the chosen log-prob of the
    first pair of that step marks it: `steps` are the marks.
    """

    def mine(logps, *, beta, label_smoothing, divergence, divergence_alpha, normalize):
        (delta,) = pairwise.delta(
            logps,
            divergence=divergence,
            divergence_alpha=divergence_alpha,
            normalize=normalize,
        )
        values = pairwise.dpo(delta, beta=beta, label_smoothing=label_smoothing)
        total = jnp.sum(logps.ref_chosen)
        hit = jnp.any(jnp.abs(total - jnp.asarray(steps)) < 1e-3)
        return jnp.where(hit, jnp.nan, values)

    return {**LOSSES, "mine": mine}


def marks(runs, straight, steps):
    """Sums of the reference's log-probs of the chosen, as the straight run had them."""
    rows = {r["step"]: r for r in runs.lines(straight) if r["split"] == "train"}
    return [rows[step]["logps/ref_chosen"] * 8 for step in steps]


def batch_ids(runs, *steps, **changed):
    """Ids of the rows of some steps, from a loader of its own."""
    config = runs.config(**changed)
    built = build.make_mesh(**config.mesh)
    with jax.set_mesh(built):
        parts = build.make_parts(config, build.checks.check(config, LOSSES), built)
    return [parts.train.ids_at(step - 1) for step in steps]


def test_nan_halts_before_anything_is_saved(runs, straight, tmp_path):
    """B2: names step and rows; no checkpoint of the step or after it."""
    run = tmp_path / "run"
    losses = spoilt(marks(runs, straight, [15]))
    with pytest.raises(NonFiniteError, match="at step 15") as caught:
        runs.here(run, losses=losses, loss__name="mine")
    assert caught.value.code == 6
    (ids,) = batch_ids(runs, 15)
    assert f"rows {ids}" in str(caught.value)
    batch = json.loads((run / "errors" / "batch15.json").read_text())
    assert batch == {"step": 15, "ids": ids}
    assert max(int(p.name) for p in (run / "checkpoints").iterdir()) == 10
    last = runs.lines(run)[-1]
    assert (last["step"], last["loss"]) == (15, "nan")
    assert not (run / "results.json").exists()


def test_nan_is_skipped_within_the_budget(runs, straight, tmp_path):
    """B2 b: one step is left out; what follows is finite."""
    run = tmp_path / "run"
    losses = spoilt(marks(runs, straight, [15]))
    changed = {"loss__name": "mine", "train__on_nonfinite": "skip"}
    assert runs.here(run, losses=losses, **changed).step == STEPS
    assert "step 15 is not finite" in log_of(run) and "skipped 1" in log_of(run)
    rows = [row for row in runs.lines(run) if row["split"] == "train"]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["step"] for row in rows if isinstance(row["loss"], str)] == [15]
    before = [r for r in runs.lines(straight) if r["step"] < 15]
    assert [r for r in runs.lines(run) if r["step"] < 15] == before


@pytest.mark.faults
def test_nan_beyond_the_budget_stops(runs, straight, tmp_path):
    run = tmp_path / "run"
    losses = spoilt(marks(runs, straight, [12, 13, 14, 15]))
    changed = {"loss__name": "mine", "train__on_nonfinite": "skip"}
    with pytest.raises(NonFiniteError, match="4 steps in a row.*budget.*is 3"):
        runs.here(run, losses=losses, **changed)
    assert max(int(p.name) for p in (run / "checkpoints").iterdir()) == 10


def test_loader_that_raises_names_the_rows(runs, tmp_path, monkeypatch):
    """C4: a data fault, not the end of the data."""
    run, fill = tmp_path / "run", Loader.batch_at

    def batch_at(self, step):
        if step == 11:
            raise OSError("the disk is gone")
        return fill(self, step)

    monkeypatch.setattr(Loader, "batch_at", batch_at)
    with pytest.raises(DataError, match="step 12.*the disk is gone") as caught:
        runs.here(run)
    assert str(batch_ids(runs, 12)[0]) in str(caught.value)
    assert (run / "checkpoints" / "10" / "MANIFEST.json").exists()
    assert not (run / "results.json").exists()


def test_corrupt_newest_step_is_set_aside(runs, straight, tmp_path):
    """A5 and A8: a file is cut; a folder that is no checkpoint lies beside it."""
    run = runs.undone(straight, tmp_path / "run")
    file = largest(run / "checkpoints" / "24")
    file.write_bytes(file.read_bytes()[:-100])
    (run / "checkpoints" / "99").mkdir()
    assert runs.here(run).resumed_from == 20
    log = log_of(run)
    assert re.search(
        rf"step 24 failed verification \(.*{file.name}.*using step 20", log
    )
    assert "ignoring 99: not committed" in log and "resumed from step 20" in log
    assert (run / "checkpoints" / "24.corrupt").is_dir()
    runs.assert_equal(run, straight)


@pytest.mark.faults
def test_flipped_bit_is_found(runs, straight, tmp_path):
    """A6."""
    run = runs.undone(straight, tmp_path / "run")
    file = largest(run / "checkpoints" / "24")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    runs.here(run)
    assert re.search(rf"step 24 .*sha256 mismatch in .*{file.name}", log_of(run))
    runs.assert_equal(run, straight)


def test_no_sound_step_is_no_reason_to_start_over(runs, straight, tmp_path):
    """A7: nothing is overwritten, not even the log of what was trained."""
    run = runs.undone(straight, tmp_path / "run")
    for step in ("20", "24"):
        largest(run / "checkpoints" / step).write_bytes(b"")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with pytest.raises(ModelError, match="20 .*refusing to start from scratch"):
        runs.here(run)
    after = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert {p for p in after if after[p] != before.get(p)} <= {run / "log.txt"}
    assert before.keys() <= after.keys()


def test_readers_of_a_live_run_take_the_next_step_and_leave_nothing(
    runs, straight, tmp_path, call, monkeypatch
):
    """G8: a step that the run deletes while it is read is no reason to fail."""
    run = runs.undone(straight, tmp_path / "run")
    steps, load = run / "checkpoints", checkpoint._load

    def pruned(path, *arguments):
        if path.name == "24":
            shutil.rmtree(path)
        return load(path, *arguments)

    monkeypatch.setattr(checkpoint, "_load", pruned)
    with runfolder.claim(run, first=True):
        left = {
            p for p in run.rglob("*") if "24" not in p.relative_to(steps.parent).parts
        }
        code, _, err = call("export", f"--workdir={run}", f"--out={tmp_path / 'out'}")
        assert code == 0, err
        assert not (steps / "24").exists() and (tmp_path / "out/config.json").exists()
        assert call("report", run, f"--out={tmp_path / 'report.html'}")[0] == 0
        assert set(run.rglob("*")) == left


@pytest.mark.faults
def test_folder_without_a_checkpoint_starts_over_loudly(runs, straight, tmp_path):
    run = runs.undone(straight, tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    assert runs.here(run).resumed_from == 0
    assert "no checkpoint was committed here: starting from step 0" in log_of(run)
    runs.assert_equal(run, straight)


@pytest.mark.faults
def test_stopped_behind_the_last_save_only_the_end_is_repeated(
    runs, straight, tmp_path
):
    """Killed between the last checkpoint and the report: no step is taken again."""
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    (run / "report.html").unlink()
    assert runs.here(run).resumed_from == STEPS
    assert (run / "report.html").exists()
    runs.assert_equal(run, straight)


@pytest.mark.faults
def test_changed_rows_under_the_same_name_are_noticed(runs, straight, tmp_path):
    """A resumed run would train on other examples in the same steps."""
    run, rows = tmp_path / "run", tmp_path / "rows.jsonl"
    lines = gzip.decompress(Path(runs.rows["data.train"]).read_bytes()).decode()
    rows.write_text(lines)
    stop = at_step(6, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Preempted):
        runs.here(run, progress=stop, data__train=str(rows))
    rows.write_text("".join(reversed(lines.splitlines(keepends=True))))
    with pytest.raises(RunFolderError, match="data.train changed since step 7.*--fork"):
        runs.here(run, data__train=str(rows))
    rows.write_text(lines)
    assert runs.here(run, data__train=str(rows)).resumed_from == 7
    runs.assert_equal(run, straight)


def test_fork_goes_on_with_another_loss_and_keeps_the_old_config(
    runs, straight, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    changed = {"loss__beta": 0.2, "train__steps": 26}
    assert runs.here(run, fork=True, **changed).resumed_from == STEPS
    old = json.loads((run / "config.before-fork-1.json").read_text())
    assert (old["loss"]["beta"], old["train"]["steps"]) == (1.0, 24)
    assert json.loads((run / "config.json").read_text())["loss"]["beta"] == 0.2
    assert runs.lines(run)[:-3] == runs.lines(straight)
    assert [row["step"] for row in runs.lines(run)[-3:]] == [25, 26, 26]
    with pytest.raises(RunFolderError, match="step 26, beyond the last step 20"):
        runs.here(run, fork=True, train__steps=20)


def test_fork_of_a_finished_run_trains_or_refuses(runs, straight, tmp_path):
    """It would export the old policy, and tell of it as of the new configuration."""
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    before = {p.name: p.stat().st_mtime_ns for p in run.iterdir()}
    with pytest.raises(RunFolderError, match="step 24.*would train nothing; raise"):
        runs.here(run, fork=True, loss__beta=0.2)
    written = (run / "config.json", run / "export", run / "results.json")
    assert all(path.stat().st_mtime_ns == before[path.name] for path in written)
    assert runs.here(run, fork=True).already_complete  # nothing changed: no fork


FIRST_EDITION = Path(__file__).parent / "first_edition" / "run.tar.gz"


@pytest.fixture
def first_edition(tmp_path):
    """A run of version 0.1.0, killed behind step 7 of 8, and the lines of all 8."""
    with tarfile.open(FIRST_EDITION) as archive:
        archive.extractall(tmp_path, filter="data")
    lines = (tmp_path / "whole.jsonl").read_text().splitlines()
    return tmp_path / "run", [json.loads(line) for line in lines]


def test_first_edition_is_read(first_edition, tmp_path, call, capsys):
    """Reading verbs take it, and leave nothing there."""
    run, whole = first_edition
    before = sorted(p.name for p in run.rglob("*"))
    config = restoring.run_config(run)
    found = build.evaluate(config, run)
    assert found.step == 4
    (line,) = [row for row in whole if (row["step"], row["split"]) == (4, "eval")]
    for name, value in found.values.items():
        assert value == pytest.approx(line[name], rel=1e-5, abs=1e-6), name
    code, told, _ = call("export", f"--workdir={run}", f"--out={tmp_path / 'out'}")
    assert code == 0 and (tmp_path / "out" / "model.safetensors").exists()
    code, told, _ = call("report", run, f"--out={tmp_path / 'report.html'}")
    assert code == 0
    assert sorted(p.name for p in run.rglob("*")) == before


def test_first_edition_goes_on_to_the_same_numbers(first_edition):
    """Sums of tens of nats, which float32 holds to 4e-6; by whatever jax and processor.

    The folder was made by jax 0.10, where they agree to 1e-6.
    """
    bound = 1e-6 if jax.__version__.startswith("0.10.") else 1e-5
    run, whole = first_edition
    config = restoring.run_config(run)
    with mock.patch.object(html, "write_report", blank_report):
        assert build.run(config, run).resumed_from == 4
    found = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], r["split"]) for r in found] == [
        (r["step"], r["split"]) for r in whole
    ]
    for mine, theirs in zip(found, whole, strict=True):
        for name in sorted(theirs.keys() - TIMING_KEYS - {"split"}):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-5, abs=bound), name


@pytest.mark.faults
@pytest.mark.parametrize(
    "seed, kills", [(0, 3), pytest.param(1, 10, marks=pytest.mark.nightly)]
)
def test_killed_at_random_times(runs, straight, tmp_path, seed, kills):
    """A1: SIGKILL while it starts, trains or saves, a step or more behind the last."""
    run, random_ = tmp_path / "run", random.Random(seed)
    reached = 0
    for number in range(kills):
        process = runs.start(run)
        if number % 3 == 0:  # while it starts, or soon after
            time.sleep(random_.uniform(2.0, 4.0))
        else:
            step = min(reached + random_.randint(1, 6), STEPS - 1)
            runs.wait_for_step(run, step, process)
            time.sleep(random_.uniform(0.0, 0.1))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        lines = runs.lines(run) if (run / "metrics.jsonl").exists() else []
        reached = lines[-1]["step"] if lines else 0
    code, told = runs.there(run)
    assert code == 0 and "took over stale lock of pid" in told, told
    assert re.search(r"resumed from step \d+", told), told
    runs.assert_equal(run, straight)


@pytest.mark.faults
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.nightly)]
)
def test_stopped_by_a_signal(runs, straight, tmp_path, number):
    """A2: 75, the step it stopped after is committed, and the relaunch is equal."""
    run = tmp_path / "run"
    process = runs.start(run)
    runs.wait_for_step(run, 12, process)
    process.send_signal(number)
    assert process.wait(timeout=60) == 75
    told = (tmp_path / "run.stderr").read_text()
    step = int(re.search(r"preempted; step (\d+) committed; relaunch", told)[1])
    assert (run / "checkpoints" / str(step) / "MANIFEST.json").exists()
    assert runs.here(run).resumed_from == step
    runs.assert_equal(run, straight)


@pytest.mark.faults
def test_killed_while_stopping(runs, straight, tmp_path):
    """A3: SIGTERM, then SIGKILL at once."""
    run = tmp_path / "run"
    process = runs.start(run)
    runs.wait_for_step(run, 12, process)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.03)
    process.kill()
    assert process.wait() in (-signal.SIGKILL, 75)
    told = (tmp_path / "run.stderr").read_text()
    committed = [int(step) for step in re.findall(r"step (\d+) committed", told)]
    assert runs.here(run).resumed_from >= max(committed)
    runs.assert_equal(run, straight)


@pytest.mark.faults
def test_second_process_is_refused_and_the_first_goes_on(runs, straight, tmp_path):
    """A10, with the real command twice."""
    run = tmp_path / "run"
    first = runs.start(run)
    runs.wait_for_step(run, 1, first)
    first.send_signal(signal.SIGSTOP)
    code = cli.main(["", "train", *runs.flags(run)])
    first.send_signal(signal.SIGCONT)
    assert code == 8
    assert first.wait(timeout=120) == 0
    runs.assert_equal(run, straight)


@pytest.mark.faults
def test_other_devices_take_the_same_examples(runs, tmp_path):
    """A13: 8 → 4 → 1 devices: losses 1e-5 at the first step, 1e-3 over the run."""
    base, run = tmp_path / "base", tmp_path / "run"
    slow = {"optimizer__lr": 1e-5}
    runs.here(base, **slow)
    with pytest.raises(Preempted):
        stop = at_step(7, lambda: signal.raise_signal(signal.SIGTERM))
        runs.here(run, progress=stop, **slow)
    process = runs.start(run, devices=4, **slow)
    runs.wait_for_step(run, 9, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    code, told = runs.there(run, devices=1, **slow)
    assert code == 0 and re.search(r"mesh changed: .*'data': 4.* → .*'data': 1", told)
    found, wanted = runs.lines(run), runs.lines(base)
    named = [[(row["step"], row["split"]) for row in rows] for rows in (found, wanted)]
    assert named[0] == named[1]
    for one, other in zip(found, wanted, strict=True):
        bound = 1e-5 if one["step"] <= 9 else 1e-3
        assert one["loss"] == pytest.approx(other["loss"], rel=bound), one["step"]
        for name in ("lengths/chosen", "lengths/rejected"):  # of the same examples
            assert one[name] == other[name]


def test_examples_of_a_step_do_not_depend_on_the_devices(runs):
    meshes = [{}, {"mesh__fsdp": 4}, {"mesh__tensor": 2}, {"batch__microbatches": 2}]
    found = [batch_ids(runs, 1, 20, 24, **changed) for changed in meshes]
    assert found.count(found[0]) == len(meshes) and len(found[0][0]) == 8
