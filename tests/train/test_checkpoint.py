"""Checkpoints: nothing is lost, nothing corrupt is trusted, nothing is cast.

Expected states are the ones that were saved; damage is done by hand to real files.
"""

import json
import logging
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dpo_jax.errors import ConfigError, ModelError, RunFolderError, WriteError
from dpo_jax.train import hashing, manifest
from dpo_jax.train.checkpoint import Checkpoints
from dpo_jax.types import TrainState

ROOT = Path(__file__).parents[2]
TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def make_state(step: int, sharding=None, width: int = 16) -> TrainState:
    """A state with NamedTuples, a scalar, bfloat16, an empty leaf and odd names."""
    rng = np.random.default_rng(step)
    params = {
        "layer": {"w": jnp.asarray(rng.normal(size=(width, 8)), jnp.float32)},
        "a/b.c": jnp.asarray(rng.normal(size=(8,)), jnp.bfloat16),
        "none": jnp.zeros((0, 4)),
    }
    if sharding is not None:
        params["layer"]["w"] = jax.device_put(params["layer"]["w"], sharding)
    state = TrainState(
        step=jnp.int32(step),
        params=params,
        opt_state=TX.init(params),
        stats={"mean": jnp.float32(rng.normal())},
        key=jax.random.key_data(jax.random.key(step)),
    )
    return state


def abstract(state: TrainState) -> TrainState:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), state
    )


def assert_equal(found, wanted) -> None:
    """Same types, shapes, dtypes and bits."""
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def saved(folder, *steps: int, keep: int = 9, **options) -> Checkpoints:
    checkpoints = Checkpoints(folder, every_steps=10, keep=keep, **options)
    for step in steps:
        checkpoints.save(step, make_state(step), {"seen": step})
    checkpoints.wait()
    return checkpoints


def largest_file(folder: Path) -> Path:
    return max(
        (p for p in folder.rglob("*") if p.is_file() and p.name != "MANIFEST.json"),
        key=lambda p: p.stat().st_size,
    )


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


@pytest.fixture
def lines(caplog):
    """The log lines of absl, which does not propagate by default."""
    logger = logging.getLogger("absl")
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, logger="absl")
    yield lambda: "\n".join(r.getMessage() for r in caplog.records)
    logger.removeHandler(caplog.handler)


@pytest.mark.parametrize("after", ["all", "params", "none"])
def test_a_finished_run_keeps_what_it_is_told_to(tmp_path, after, lines):
    """Where the parameters are not at hand, to keep them apart is to keep all."""
    folder, state = tmp_path / "c", make_state(20)
    checkpoints = saved(folder, 10, 20, after=after)
    checkpoints.finish(20, None)
    assert checkpoints.committed_steps() == ([] if after == "none" else [10, 20])
    assert ("all is kept" in lines()) == (after == "params")
    checkpoints.finish(20, state.params)
    assert checkpoints.committed_steps() == ([10, 20] if after == "all" else [])
    assert manifest.given_up(folder) == ("" if after == "all" else after)
    if after == "params":
        apart = Checkpoints(folder / manifest.PARAMS, every_steps=0, keep=1)
        assert apart.newest_verified() == 20
        found = apart.restore_params(20, abstract(state).params)
        assert_equal(found, state.params)
    checkpoints.finish(20, None)  # a relaunch of the finished run
    assert manifest.given_up(folder) == ("" if after == "all" else after)


def test_round_trip_is_bit_equal_with_types_and_meta(tmp_path, lines):
    state = make_state(10)
    with Checkpoints(tmp_path / "c", every_steps=10, keep=2) as checkpoints:
        checkpoints.save(10, state, {"config": "x", "rows": [1, 2]})
    assert "step 10 committed" in lines()
    fresh = Checkpoints(tmp_path / "c", every_steps=10, keep=2)
    assert fresh.newest_verified() == 10
    found, meta = fresh.restore(10, abstract(state))
    assert_equal(found, state)
    assert isinstance(found, TrainState)
    assert isinstance(found.opt_state[1][0], optax.ScaleByAdamState)
    assert meta == {"config": "x", "rows": [1, 2]}


def test_relative_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert saved("run/checkpoints", 1).newest_verified() == 1


def test_donation_right_after_save_does_not_reach_the_checkpoint(tmp_path):
    state = make_state(1, width=4096)
    before = jax.tree.map(lambda x: np.array(x, copy=True), state)
    bump = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path, every_steps=1, keep=1)
    checkpoints.save(1, state, {})
    for _ in range(3):
        state = bump(state)
    jax.block_until_ready(state)
    checkpoints.wait()
    assert_equal(checkpoints.restore(1, abstract(before))[0], before)


def test_saved_on_eight_devices_restored_on_two_and_one(tmp_path):
    mesh = jax.make_mesh((8,), ("fsdp",))
    state = make_state(3, NamedSharding(mesh, PartitionSpec("fsdp")))
    assert len(state.params["layer"]["w"].sharding.device_set) == 8
    checkpoints = Checkpoints(tmp_path, every_steps=1, keep=1)
    checkpoints.save(3, state, {})
    checkpoints.wait()
    one, _ = checkpoints.restore(3, abstract(state))
    assert_equal(one, state)
    two = jax.make_mesh((2,), ("fsdp",), devices=jax.devices()[:2])
    columns = NamedSharding(two, PartitionSpec(None, "fsdp"))
    target = abstract(state.params)
    w = target["layer"]["w"]
    target["layer"]["w"] = jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=columns)
    params = checkpoints.restore_params(3, target)
    assert_equal(params, state.params)
    assert params["layer"]["w"].sharding == columns


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest"])
def test_corrupt_newest_is_set_aside_and_the_one_before_used(tmp_path, lines, damage):
    checkpoints = saved(tmp_path, 10, 20, 30)
    victim = largest_file(tmp_path / "30")
    if damage == "truncate":
        os.truncate(victim, victim.stat().st_size // 2)
    elif damage == "flip":
        flip(victim)
    elif damage == "remove":
        victim.unlink()
    else:
        victim = tmp_path / "30" / "MANIFEST.json"
        victim.write_text(victim.read_text().replace('"seen": 30', '"seen": 31'))
    assert checkpoints.newest_verified() == 20
    assert (tmp_path / "30.corrupt").is_dir() and not (tmp_path / "30").exists()
    told = lines()
    assert "step 30 failed verification (" in told and "; using step 20" in told
    assert victim.name in told
    assert ("sha256 mismatch in " in told) == (damage in ("flip", "manifest"))
    assert_equal(checkpoints.restore(20, abstract(make_state(20)))[0], make_state(20))
    checkpoints.save(30, make_state(30), {})  # the run comes past 30 again
    checkpoints.wait()
    assert checkpoints.newest_verified() == 30


def test_every_file_of_a_step_is_verified(tmp_path):
    """Each file is damaged alone; each time the step must be refused."""
    checkpoints = saved(tmp_path, 1, 2)
    files = [p for p in (tmp_path / "2").rglob("*") if p.is_file()]
    assert len(files) >= 5
    for path in files:
        good = path.read_bytes()
        path.write_bytes(b"x" + good)
        assert checkpoints.newest_verified() == 1, path
        (tmp_path / "2.corrupt").rename(tmp_path / "2")
        path.write_bytes(good)
    assert checkpoints.newest_verified() == 2


def test_folders_that_were_never_committed_are_ignored(tmp_path, lines):
    checkpoints = saved(tmp_path, 10)
    (tmp_path / "99").mkdir()
    (tmp_path / "notes").mkdir()
    assert checkpoints.newest_verified() == 10
    assert "ignoring 99: not committed" in lines()
    assert (tmp_path / "99").is_dir()


def test_a_folder_that_holds_another_step_is_ignored(tmp_path, lines):
    """30 was renamed by hand to 35, and 38 links to 20: 20 is what a resume gets."""
    checkpoints = saved(tmp_path, 10, 20, 30)
    (tmp_path / "30").rename(tmp_path / "35")
    (tmp_path / "38").symlink_to("20")
    assert checkpoints.newest_verified() == 20
    assert "35 holds step 30: ignored" in lines()
    assert "38 is a link: ignored" in lines()
    assert checkpoints.committed_steps() == [10, 20]
    again = Checkpoints(tmp_path, every_steps=1, keep=1)
    for step in (35, 38):  # the run comes to these steps itself
        again.save(step, make_state(step), {})
    again.wait()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("35.corrupt", "38", "38.corrupt")
    ]
    assert_equal(again.restore(38, abstract(make_state(38)))[0], make_state(38))


def test_only_a_renamed_step_refuses_to_start_from_scratch(tmp_path):
    checkpoints = saved(tmp_path, 10)
    (tmp_path / "10").rename(tmp_path / "12")
    with pytest.raises(ModelError, match="12 holds step 10; refusing to start from"):
        checkpoints.newest_verified()


def test_a_manifest_of_a_hundred_thousand_lists_is_no_manifest(tmp_path):
    checkpoints = saved(tmp_path, 10, 20)
    (tmp_path / "20" / "MANIFEST.json").write_text("[" * 100_000)
    assert checkpoints.newest_verified() == 10


def test_a_reader_renames_nothing(tmp_path):
    checkpoints = saved(tmp_path, 10, 20)
    flip(largest_file(tmp_path / "20"))
    assert checkpoints.newest_verified(rename=False) == 10
    assert (tmp_path / "20").is_dir() and not (tmp_path / "20.corrupt").exists()


def test_arrays_are_stored_as_they_are(tmp_path):
    """A constant would shrink to nothing if anything compressed it."""
    checkpoints = Checkpoints(tmp_path, every_steps=1, keep=1)
    checkpoints.save(1, {"w": jnp.zeros((1 << 18,))}, {})
    checkpoints.wait()
    assert largest_file(tmp_path / "1").stat().st_size >= 1 << 20


def test_nothing_committed_is_none(tmp_path):
    checkpoints = Checkpoints(tmp_path / "none", every_steps=1, keep=1)
    assert checkpoints.newest_verified() is None
    (tmp_path / "none" / "7").mkdir(parents=True)
    assert checkpoints.newest_verified() is None


def test_all_corrupt_refuses_to_start_from_scratch_each_time(tmp_path):
    checkpoints = saved(tmp_path, 10, 20)
    flip(largest_file(tmp_path / "10"))
    flip(largest_file(tmp_path / "20"))
    for _ in range(2):
        with pytest.raises(ModelError, match="20 .*10 .*refusing to start from"):
            checkpoints.newest_verified()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["10", "20"]


def test_only_corrupt_folders_left_refuses_too(tmp_path):
    checkpoints = saved(tmp_path, 10)
    (tmp_path / "10").rename(tmp_path / "10.corrupt")
    with pytest.raises(ModelError, match="10.corrupt; refusing to start from scratch"):
        checkpoints.newest_verified()


@pytest.mark.parametrize(
    ("name", "values", "kept"),
    [
        ("", {}, [4, 5]),
        ("rewards/accuracies", {1: 0.5, 2: 0.9, 3: 0.7, 4: 0.6}, [2, 4, 5]),
        ("loss", {1: 0.5, 2: 0.9, 3: 0.7, 4: 0.6}, [1, 4, 5]),
        ("loss", {1: float("nan"), 2: 0.4, 3: 0.4}, [3, 4, 5]),
        ("scores/brier", {1: 0.5, 2: 0.9, 3: 0.7, 4: 0.6}, [1, 4, 5]),
        ("scores/calibration_error", {1: 0.5, 2: 0.9, 3: 0.7}, [1, 4, 5]),
        ("rollouts/kl", {1: 0.5, 2: 0.9, 3: 0.7}, [1, 4, 5]),
        ("highest:loss", {1: 0.5, 2: 0.9, 3: 0.7}, [2, 4, 5]),
        ("lowest:entropy", {1: 0.5, 2: 0.9, 3: 0.7}, [1, 4, 5]),
    ],
)
def test_keep_and_keep_best(tmp_path, name, values, kept):
    checkpoints = Checkpoints(tmp_path, every_steps=1, keep=2, keep_best=name)
    for step in range(1, 6):
        metrics = {name.rpartition(":")[2]: values.get(step)}
        metrics = metrics if step in values else None
        checkpoints.save(step, make_state(step), {}, metrics)
    checkpoints.wait()
    assert checkpoints.committed_steps() == kept


def test_old_steps_go_only_after_a_newer_one_is_committed(tmp_path):
    checkpoints = saved(tmp_path, 1, keep=1)
    (tmp_path / "2.orbax-checkpoint-tmp-77").mkdir()
    (tmp_path / "2").mkdir()
    again = Checkpoints(tmp_path, every_steps=1, keep=1)
    assert again.newest_verified() == 1
    again.save(2, make_state(2), {})
    again.wait()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2"]
    assert_equal(checkpoints.restore(2, abstract(make_state(2)))[0], make_state(2))


def test_a_committed_step_is_not_written_again(tmp_path, lines):
    checkpoints = saved(tmp_path, 5)
    before = (tmp_path / "5" / "MANIFEST.json").stat().st_mtime_ns
    checkpoints.save(5, make_state(5), {})
    checkpoints.wait()
    assert (tmp_path / "5" / "MANIFEST.json").stat().st_mtime_ns == before
    assert "step 5 is already committed" in lines()


def test_statistics_that_a_run_does_not_keep_are_left_where_they_are(tmp_path):
    """Those of `bco_pair` under `baseline='none'`, which the first edition kept."""
    checkpoints, state = saved(tmp_path, 1), make_state(1)
    found, _ = checkpoints.restore(1, abstract(state._replace(stats={})))
    assert_equal(found, state._replace(stats={}))
    more = {**state.stats, "count": jnp.float32(0)}
    said = "of version .*, in which the loss did not keep count; choose another"
    with pytest.raises(RunFolderError, match=said):
        checkpoints.restore(1, abstract(state._replace(stats=more)))


def test_differing_leaves_are_all_named_and_nothing_is_cast(tmp_path):
    checkpoints = saved(tmp_path, 1)
    target = abstract(make_state(1))
    params = dict(target.params)
    params["layer"] = {"w": jax.ShapeDtypeStruct((16, 8), jnp.bfloat16)}
    params["a/b.c"] = jax.ShapeDtypeStruct((9,), jnp.bfloat16)
    params["new"] = jax.ShapeDtypeStruct((1,), jnp.float32)
    with pytest.raises(ModelError) as caught:
        checkpoints.restore(1, target._replace(params=params, key=None))
    told = str(caught.value)
    assert "4 leaves differ" in told
    assert "params/layer/w is float32[16, 8] on disk, bfloat16[16, 8] in this" in told
    assert "params/a/b.c is bfloat16[8] on disk, bfloat16[9] in this run" in told
    assert "params/new is not on disk" in told
    assert "key is not in this run" in told
    with pytest.raises(ModelError, match="3 leaves differ"):
        checkpoints.restore_params(1, params)


def test_restoring_a_step_that_does_not_exist(tmp_path):
    with pytest.raises(ModelError, match="never committed"):
        saved(tmp_path, 1).restore(2, abstract(make_state(2)))


def test_a_folder_that_cannot_be_written_is_a_write_error(tmp_path):
    (tmp_path / "file").write_text("")
    checkpoints = Checkpoints(tmp_path / "file" / "c", every_steps=1, keep=1)
    with pytest.raises(WriteError, match=r"file/c/1: .*needs about \d+ bytes"):
        checkpoints.save(1, make_state(1), {})


def test_a_full_disk_is_a_write_error_and_the_step_before_stands(tmp_path):
    """A limit on the size of files stands for the full disk: same path, EFBIG."""
    checkpoints = saved(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(WriteError, match=rf"{tmp_path}/2: .*\d+ bytes"):
            checkpoints.save(2, make_state(2, width=1 << 16), {})
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.glob("*tmp*"))
    assert checkpoints.newest_verified() == 1
    checkpoints.save(2, make_state(2), {})
    checkpoints.wait()
    assert checkpoints.newest_verified() == 2


KILLED = """
import os, signal, sys
import jax.numpy as jnp
from dpo_jax.train import checkpoint
def state(step):
    return {"w": jnp.full((1 << 20,), step, jnp.float32)}
folder, when = sys.argv[1:]
checkpoints = checkpoint.Checkpoints(folder, every_steps=1, keep=2)
checkpoints.save(1, state(1), {})
checkpoints.wait()
if when == "before the manifest":
    checkpoint.write_manifest = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
checkpoints.save(2, state(2), {})
if when == "while saving":
    os.kill(os.getpid(), signal.SIGKILL)
checkpoints.wait()
"""


@pytest.mark.parametrize("when", ["while saving", "before the manifest"])
def test_kill_in_the_middle_of_a_save(tmp_path, when):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), when],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    assert (tmp_path / "2").exists() == (when == "before the manifest")
    checkpoints = Checkpoints(tmp_path, every_steps=1, keep=2)
    assert checkpoints.newest_verified() == 1
    target = {"w": jax.ShapeDtypeStruct((1 << 20,), jnp.float32)}
    found, _ = checkpoints.restore(1, target)
    np.testing.assert_array_equal(found["w"], 1.0)
    checkpoints.save(2, {"w": jnp.full((1 << 20,), 2.0)}, {})
    checkpoints.wait()
    assert checkpoints.newest_verified() == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


def test_an_unknown_metric_is_refused_at_the_first_save(tmp_path):
    checkpoints = Checkpoints(tmp_path, every_steps=1, keep=1, keep_best="accuracy")
    with pytest.raises(ConfigError, match="keep_best='accuracy' is not.* Known: loss"):
        checkpoints.save(1, make_state(1), {}, {"loss": 1.0})


def test_a_resumed_run_learns_at_once_that_its_metric_is_none(tmp_path):
    with Checkpoints(tmp_path, every_steps=1, keep=1) as checkpoints:
        checkpoints.save(1, make_state(1), {}, {"loss": 1.0})
    again = Checkpoints(tmp_path, every_steps=1, keep=1, keep_best="scores/brier")
    with pytest.raises(ConfigError, match="keep_best='scores/brier' is not known"):
        again.restore(1, abstract(make_state(1)))


def test_due_follows_every_steps(tmp_path):
    due = Checkpoints(tmp_path, every_steps=10, keep=1).due
    assert [s for s in range(1, 31) if due(s)] == [10, 20, 30]
    assert not Checkpoints(tmp_path, every_steps=0, keep=1).due(10)


def test_files_belong_to_the_process_that_wrote_them():
    """orbax names the folders of processes; what lies beside them is the first's."""
    names = {
        "state/ocdbt.process_0/d/1": 0,
        "state/ocdbt.process_12/d/1": 12,
        "ocdbt.process_3/manifest.ocdbt": 3,
        "state/manifest.ocdbt": 0,
        "_CHECKPOINT_METADATA": 0,
    }
    assert {name: hashing._writer(name) for name in names} == names


def test_manifest_lists_every_file_with_its_size(tmp_path):
    saved(tmp_path, 1)
    whole = json.loads((tmp_path / "1" / "MANIFEST.json").read_text())
    files = whole["manifest"]["files"]
    found = {
        str(p.relative_to(tmp_path / "1")): p.stat().st_size
        for p in (tmp_path / "1").rglob("*")
        if p.is_file() and p.name != "MANIFEST.json"
    }
    assert {name: entry["bytes"] for name, entry in files.items()} == found
    assert whole["manifest"]["step"] == 1


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path, lines):
    saved(tmp_path, 1, 2).wait()
    path = largest_file(tmp_path / "2")
    path.unlink()
    os.mkfifo(path)
    assert Checkpoints(tmp_path, every_steps=0, keep=9).newest_verified() == 1


def test_a_file_in_the_place_of_all_steps_is_no_checkpoint(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    held = Checkpoints(tmp_path / "checkpoints", every_steps=0, keep=9)
    assert held.newest_verified() is None and held.committed_steps() == []
