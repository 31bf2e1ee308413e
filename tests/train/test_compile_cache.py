"""Cut entries go, whole ones stay; six runs that differ in numbers compile once."""

import os
import time
import zlib
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from dpo_jax import build
from dpo_jax.cli import common
from dpo_jax.report import html
from dpo_jax.train import compile_cache

SETTINGS = (
    "jax_enable_compilation_cache",
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture
def elsewhere(tmp_path):
    """A cache of its own in a folder, of everything that is compiled."""
    before = {name: jax.config.values[name] for name in SETTINGS}
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", None)
    compile_cache.use(tmp_path)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    yield tmp_path / compile_cache.variant()
    compilation_cache.reset_cache()
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def events():
    """Counts jax's events, e.g. hits."""
    counted = Counter()

    def count(event, **_):
        counted[event.rpartition("/")[2]] += 1

    jax.monitoring.register_event_listener(count)
    yield counted
    jax.monitoring.unregister_event_listener(count)


def age(path, seconds=10.0):
    """Makes a file older than what a living process may still be writing."""
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


@pytest.mark.parametrize(("count", "kept"), [(1, True), (2, False)])
def test_several_processes_on_cpus_read_no_program_from_disk(
    elsewhere, monkeypatch, count, kept
):
    """A program that was read back has lost the order of its collectives."""
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_count", lambda: count)
    compile_cache.use(elsewhere)
    assert jax.config.values["jax_enable_compilation_cache"] is kept


def test_a_cut_entry_is_compiled_again_and_rewritten_once(elsewhere, events):
    """Jax alone warns of it in every process, and keeps it for ever."""

    def triple():
        jax.clear_caches()
        return jax.jit(lambda x: 3 * x + 0.125)(jnp.ones(3)).tolist()

    assert triple() == [3.125] * 3
    entries = {path: path.read_bytes() for path in elsewhere.glob("*-cache")}
    assert entries
    for path, whole in entries.items():
        path.write_bytes(whole[: len(whole) // 2])
        age(path)
    (elsewhere / compile_cache.LOOKED).unlink()
    compile_cache.remove_cut(elsewhere)
    assert not any(path.exists() for path in entries)
    assert triple() == [3.125] * 3
    assert all(compile_cache.is_whole(path.read_bytes()) for path in entries)
    events.clear()
    assert triple() == [3.125] * 3 and events["cache_hits"] == len(entries)


def test_only_what_is_new_is_read_and_nothing_half_written_is_taken(
    tmp_path, monkeypatch
):
    whole = zlib.compress(b"program" * 99)
    names = ("whole", "cut", "fresh", "garbage")
    paths = {name: tmp_path / f"{name}-cache" for name in names}
    for name, path in paths.items():
        path.write_bytes({"whole": whole, "garbage": b"?" * 50}.get(name, whole[:-5]))
        if name != "fresh":
            age(path)
    compile_cache.remove_cut(tmp_path)
    assert {n for n, path in paths.items() if path.exists()} == {"whole", "fresh"}
    paths["cut"].write_bytes(whole[:-5])
    age(paths["cut"], 1000)  # older than the last look: known, so not read again
    later = time.time() + 60
    monkeypatch.setattr(compile_cache.time, "time", lambda: later)
    compile_cache.remove_cut(tmp_path)
    assert paths["cut"].exists() and not paths["fresh"].exists()


def test_a_folder_that_was_set_stays():
    before = jax.config.values["jax_compilation_cache_dir"]
    compile_cache.use("/nowhere")
    assert jax.config.values["jax_compilation_cache_dir"] == before


def test_versions_and_processors_do_not_share(tmp_path, monkeypatch):
    compile_cache.variant.cache_clear()
    before = compile_cache.variant()
    assert jax.__version__ in before
    monkeypatch.setattr(compile_cache.metadata, "version", lambda name: "9.9")
    compile_cache.variant.cache_clear()
    assert compile_cache.variant() != before
    compile_cache.variant.cache_clear()


SMALL = {
    "train.steps": 2,
    "batch.pairs": 8,
    "data.limit": 32,
    "data.eval": "",
    "eval.rollouts": 0,
}
CHANGES = (
    {},
    {"loss.beta": 0.3},
    {"optimizer.lr": 1e-4},
    {"seed": 3},
    {"train.steps": 3},
    {"loss.beta": 0.7, "optimizer.lr": 3e-5, "seed": 3, "train.steps": 3},
)


@pytest.mark.faults
def test_a_sweep_compiles_once(elsewhere, events, tmp_path, monkeypatch):
    """β, learning rate, seed and steps: from Python, each as if in its own process.

    Where other rows fill the steps, their plan may ask for other numbers of rows; here
    it does not.
    """
    monkeypatch.setattr(html, "write_report", lambda folders, out: None)
    found = []
    for number, changed in enumerate(CHANGES):
        config = common.load_config("quickstart")
        config.update_from_flattened_dict({**SMALL, **changed})
        jax.clear_caches()
        events.clear()
        build.run(config, tmp_path / f"run{number}")
        found.append((events["cache_hits"], events["cache_misses"]))
    assert found[0][1] > 50 and found[0][0] == 0, found
    assert all(hits > 50 and not missed for hits, missed in found[1:]), found
