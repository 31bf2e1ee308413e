"""B7: a reference changed under its cache; a cache cut short, altered, or half made."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file
from test_processes import Pair

from dpo_jax import build
from dpo_jax.data import ref_cache as cache_lib
from dpo_jax.errors import Preempted, WriteError
from dpo_jax.wiring import reference as wiring

ROOT = Path(__file__).parent.parent.parent
STEPS = 24  # as in conftest
TOTAL = 2 * (160 + 16)  # responses of training and evaluation
FOUND = f"of {TOTAL} responses found"

pytestmark = pytest.mark.faults


def cached(runs, workdir, *, progress=None, **changed):
    more = {} if progress is None else {"progress": progress}
    return runs.here(workdir, ref__mode="cached", **more, **changed)


def log_of(run):
    return (run / "log.txt").read_text()


def shards(folder):
    found = (folder / "ref_cache").glob("*/*.safetensors")
    return {path: path.read_bytes() for path in found}


def entries_of(path):
    """Reads a shard: key -> log-probs."""
    unpacked = cache_lib._unpacked(path.read_bytes(), epath.Path(path))
    return {key: logps for key, logps, _ in unpacked}


@pytest.fixture(scope="session")
def first(runs, tmp_path_factory):
    """A run that made a cache beside it."""
    run = tmp_path_factory.mktemp("cached") / "run"
    cached(runs, run)
    return run


def again(first, tmp_path):
    """Copies the cache of a run, for another to find."""
    shutil.copytree(first.parent / "ref_cache", tmp_path / "ref_cache")
    return tmp_path / "run"


def test_cached_run_is_the_live_one(runs, straight, first):
    """In the same layout: what is cached is what was asked, so all values agree."""
    where = lambda rows: [(row["step"], row["split"]) for row in rows]  # noqa: E731
    live, found = runs.lines(straight), runs.lines(first)
    assert where(live) == where(found) and len(live) > STEPS
    for one, other in zip(live, found, strict=True):
        assert one.keys() == other.keys()
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert f"0 {FOUND}" in log_of(first)


def test_cached_run_in_another_layout(runs, straight, first, tmp_path):
    """padded / cached against prefix_shared / live: 1e-5, and 1e-3 after 20 steps."""
    run = again(first, tmp_path)
    before = shards(tmp_path)
    cached(runs, run, data__layout="padded")
    assert f"{TOTAL} {FOUND}" in log_of(run) and shards(tmp_path) == before
    names = ("loss", "rewards/chosen", "rewards/margins", "logps/ref_chosen")
    for one, other in zip(runs.lines(straight), runs.lines(run), strict=True):
        bound = 1e-5 if one["step"] <= 1 else 1e-3
        for name in names:
            close = pytest.approx(one[name], rel=bound, abs=bound)
            assert other[name] == close, (one["step"], name)


def test_resumed_run_is_equal(runs, first, tmp_path):
    """A2 with a cache: the relaunch finds all, and ends as if never stopped."""
    run = again(first, tmp_path)

    def stop(step, last, values):
        if step == 11:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Preempted, match="step 12"):
        cached(runs, run, progress=stop)
    assert cached(runs, run).resumed_from == 12
    assert log_of(run).count(f"{TOTAL} {FOUND}") == 2
    runs.assert_equal(run, first)


def test_evaluate_reads_the_cache(runs, first):
    """The verb, on the last checkpoint: what the run itself measured at its end."""
    before = shards(first.parent)
    found = build.evaluate(runs.config(ref__mode="cached"), first)
    live = build.evaluate(runs.config(), first)
    assert found.step == STEPS and shards(first.parent) == before
    assert found.values == pytest.approx(live.values, rel=1e-5, abs=1e-5)
    kept = {k: v for k, v in runs.lines(first)[-1].items() if k in found.values}
    assert kept == pytest.approx(found.values, rel=1e-6)


def spoil_end(data):
    return data[:-100]


def spoil_bit(data):
    return data[:-50] + bytes([data[-50] ^ 4]) + data[-49:]


@pytest.mark.parametrize("spoil", [spoil_end, spoil_bit])
def test_cut_or_altered_cache_is_recomputed(runs, first, tmp_path, spoil):
    run = again(first, tmp_path)
    (path,) = shards(tmp_path)
    sound = path.read_bytes()
    path.write_bytes(spoil(sound))
    cached(runs, run)
    log = log_of(run)
    assert re.search(rf"sha256 mismatch in .*{path.name} .*computed again.*kept", log)
    assert f"0 {FOUND}" in log and f"score the {TOTAL} missing" in log
    assert path.with_name(f"{path.name}.corrupt").read_bytes() == spoil(sound)
    assert path.read_bytes() == sound  # the same numbers, so under the same name
    runs.assert_equal(run, first)


def test_partial_cache_is_completed(runs, first, tmp_path):
    run = again(first, tmp_path)
    (path,) = shards(tmp_path)
    entries = entries_of(path)
    path.unlink()
    half = {key: entries[key] for key in sorted(entries)[:100]}
    cache_lib.Store(epath.Path(path.parent), {}).write(half)
    (kept,) = shards(tmp_path)
    cached(runs, run)
    assert f"100 {FOUND}" in log_of(run) and kept in shards(tmp_path)
    runs.assert_equal(run, first)


def test_reference_changed_under_its_cache(runs, straight, tmp_path):
    """Other weights under the same path are another key; the old one's stay."""
    model = tmp_path / "model"
    shutil.copytree(straight / "export", model)
    one, two = tmp_path / "one", tmp_path / "two"
    cached(runs, one, ref__path=str(model))
    old = shards(tmp_path)
    tensors = load_file(model / "model.safetensors")
    tensors = {k: (v * np.float32(1.05)) for k, v in tensors.items()}
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    cached(runs, two, ref__path=str(model))
    log = log_of(two)
    assert f"0 {FOUND}" in log
    assert re.search("holds other references, left alone; they differ .*: weights", log)
    new = shards(tmp_path)
    assert old.items() < new.items() and len({p.parent for p in new}) == 2
    before, after = runs.lines(one)[0], runs.lines(two)[0]
    assert before["logps/chosen"] == after["logps/chosen"]
    assert abs(before["logps/ref_chosen"] - after["logps/ref_chosen"]) > 0.01


def test_entries_of_another_reference_under_this_key(runs, first, tmp_path):
    """Sound files, wrong numbers: only scores of a live reference can tell."""
    run = again(first, tmp_path)
    (path,) = shards(tmp_path)
    entries = entries_of(path)
    path.unlink()
    wrong = {key: logps * np.float32(1.01) for key, logps in entries.items()}
    cache_lib.Store(epath.Path(path.parent), {}).write(wrong)
    (kept,) = shards(tmp_path)
    cached(runs, run)
    log = log_of(run)
    assert re.search(r"not to be trusted and left as it is: 48 responses scored", log)
    assert "all is computed again in" in log and kept in shards(tmp_path)
    runs.assert_equal(run, first)


def test_signal_during_the_pass(runs, first, tmp_path, monkeypatch):
    run, scored, counted = tmp_path / "run", wiring.CacheFiller._scored, []

    def signalled(self, step):
        counted.append(step)
        if len(counted) == 7:
            signal.raise_signal(signal.SIGTERM)
        return scored(self, step)

    monkeypatch.setattr(wiring.CacheFiller, "_scored", signalled)
    with pytest.raises(Preempted):
        cached(runs, run)
    assert len(counted) == 7 and shards(tmp_path)
    cached(runs, run)
    assert f"{6 * 16} {FOUND}" in log_of(run)  # all but the one that was interrupted
    runs.assert_equal(run, first)


KILLED = """
import os, signal, sys
from dpo_jax import cli
from dpo_jax.data import ref_cache
from dpo_jax.wiring import reference as wiring
ref_cache.SHARD_TOKENS = 300
scored, counted = wiring.CacheFiller._scored, []
def killed(self, step):
    counted.append(step)
    if len(counted) == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return scored(self, step)
wiring.CacheFiller._scored = killed
cli.main(["dpo_jax", "train", *sys.argv[1:]])
"""


def test_killed_during_the_pass(runs, first, tmp_path):
    """SIGKILL: the shards that stand are used, the rest is scored again."""
    run = tmp_path / "run"
    flags = runs.flags(run, ref__mode="cached")
    env = {
        **os.environ,
        "DPO_JAX_COMPILE_CACHE": str(ROOT / ".cache" / "jax"),
        "DPO_JAX_CPU_DEVICES": str(jax.device_count()),
    }
    ended = subprocess.run([sys.executable, "-c", KILLED, *flags], cwd=ROOT, env=env)
    assert ended.returncode == -signal.SIGKILL
    before = shards(tmp_path)
    assert len(before) > 1
    cached(runs, run)
    found = int(re.findall(rf"(\d+) {FOUND}", log_of(run))[-1])
    assert 0 < found <= 12 * 16 and before.items() < shards(tmp_path).items()
    runs.assert_equal(run, first)


def test_two_processes_fill_one_cache(runs, first, tmp_path):
    """Both score, the first writes; a relaunch by one process finds all."""
    run, after = tmp_path / "run", tmp_path / "after"
    assert Pair(runs, run, ref__mode="cached").codes() == [0, 0]
    assert len(shards(tmp_path)) == 1
    for one, other in zip(runs.lines(first), runs.lines(run), strict=True):
        bound = 1e-5 if one["step"] <= 1 else 1e-3
        assert other["loss"] == pytest.approx(one["loss"], rel=bound), one["step"]
    cached(runs, after)
    assert f"{TOTAL} {FOUND}" in log_of(after) and len(shards(tmp_path)) == 1


def test_cache_that_cannot_be_written(runs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cannot write .*file/.*name a place"):
        cached(runs, tmp_path / "run", ref__cache_dir=str(tmp_path / "file"))
