"""A run with a cached reference is the run with a live one, without holding it."""

import contextlib
import gc
import json
import re
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import build
from dpo_jax.cli import common
from dpo_jax.data import ref_cache as cache_lib
from dpo_jax.data.sources import sentiment
from dpo_jax.data.sources.files import Request
from dpo_jax.errors import ConfigError, Preempted
from dpo_jax.folders import folder_at
from dpo_jax.launch.attempts import Claims
from dpo_jax.losses import LOSSES
from dpo_jax.models import hf
from dpo_jax.sharding import arrays
from dpo_jax.sharding.mesh import make_mesh
from dpo_jax.wiring import checks, evaluation, feeds, making
from dpo_jax.wiring import reference as wiring

pytestmark = pytest.mark.losses
ROOT = Path(__file__).parent.parent.parent
STEPS, PAIRS, EVALUATED = 20, 8, 16


@pytest.fixture(scope="module", autouse=True)
def precision():
    """Multiplies as `cli` does in float32, and shows what is logged."""
    common.setup_logging()
    before = jax.config.jax_default_matmul_precision
    jax.config.update("jax_default_matmul_precision", "highest")
    yield
    jax.config.update("jax_default_matmul_precision", before)


@pytest.fixture(scope="module")
def configured(tmp_path_factory):
    """Returns a function that makes configurations over one small set of pairs."""
    folder = tmp_path_factory.mktemp("data")
    tokenizer = folder / "tokenizer"
    sentiment.tokenizer().save_pretrained(tokenizer)
    values = {
        "train.steps": STEPS,
        "batch.pairs": PAIRS,
        "eval.every_steps": STEPS,
        "eval.rollouts": 0,
        "checkpoint.every_steps": STEPS,
        "tokenizer.path": str(tokenizer),
        "ref.mode": "cached",
    }
    for split, count in (("train", 160), ("eval", EVALUATED)):
        path = folder / f"{split}.jsonl"
        rows = sentiment.read(Request(split, seed=7, rows=count))
        path.write_text("".join(json.dumps(row) + "\n" for _, row in rows))
        values[f"data.{split}"] = str(path)

    def make(**changed):
        config = common.load_config(str(ROOT / "configs" / "quickstart.py"))
        named = {key.replace("__", "."): value for key, value in changed.items()}
        config.update_from_flattened_dict({**values, **named})
        return config

    return make


def prepared(config, workdir, **more):
    """Returns the parts of a run, and what annotates its batches."""
    losses = checks.check(config, LOSSES)
    mesh = make_mesh(**config.mesh)
    with jax.set_mesh(mesh):
        parts = build.make_parts(config, losses, mesh)
        return parts, parts.refer(workdir, **more)


def annotated(parts, referred, step):
    """Returns the column of the reference at a step."""
    batch = referred.train.batch_at(step)
    with jax.set_mesh(parts.mesh):
        place = arrays.row_sharding(parts.mesh, leading=1)
        batch = arrays.to_global(batch, place)
        state = parts.trainer.abstract
        batch = referred.annotate(state, referred.frozen, batch, None, {})
    return np.asarray(batch.token["ref_logps"])


def shards(folder):
    return {
        path: path.read_bytes() for path in folder.glob("ref_cache/*/*.safetensors")
    }


@pytest.fixture
def forwards(monkeypatch):
    """Counts the forward passes of the reference."""
    counted, scored = [], wiring.CacheFiller._scored

    def count(self, step):
        counted.append(step.number)
        return scored(self, step)

    monkeypatch.setattr(wiring.CacheFiller, "_scored", count)
    return counted


def by_response(parts, step, column):
    """Takes a step's column apart, whatever the layout."""
    entries = {
        cache_lib.key_of(record.prompt, record.responses[which]): column[at]
        for record, which, at in parts.train.responses_at(step)
    }
    assert len(entries) == 2 * PAIRS
    return entries


def evaluated(parts, asked):
    """Measures a policy that is not the reference."""
    with jax.set_mesh(parts.mesh):
        state = parts.trainer.init(asked.frozen)
        moved = jax.tree.map(lambda x: 1.2 * x, state.params)
        measure = evaluation.make_pairs(parts.trainer, asked, asked.eval, parts.mesh)
        return dict(measure(state._replace(params=moved)))


def test_cached_numbers_are_the_live_ones_in_another_layout(configured, tmp_path):
    """padded / live against prefix_shared / cached, equal parameters: 1e-5.

    Whole runs are compared in `tests/faults/test_cache.py`.
    """
    how = [("live", "padded"), ("cached", "prefix_shared")]
    columns, values = [], []
    for mode, layout in how:
        config = configured(ref__mode=mode, data__layout=layout)
        parts, asked = prepared(config, tmp_path / "run")
        columns.append(by_response(parts, 3, annotated(parts, asked, 3)))
        values.append(evaluated(parts, asked))
    live, cached = columns
    assert live.keys() == cached.keys()
    for key, logps in live.items():
        np.testing.assert_allclose(cached[key], logps, rtol=1e-5, atol=1e-5)
    live, cached = values
    assert abs(live["rewards/margins"]) > 0.01 and live["loss"] != pytest.approx(0.693)
    assert live == pytest.approx(cached, rel=1e-5, abs=1e-5)


def test_second_run_of_a_sweep_runs_the_reference_for_the_check_only(
    configured, tmp_path, forwards, caplog, monkeypatch
):
    """Where it is there, and where another run makes it at the same time."""
    caplog.set_level("INFO", logger="absl")
    prepared(configured(), tmp_path / "one")
    total = 2 * (160 + EVALUATED)
    assert f"0 of {total} responses found" in caplog.text
    assert len(forwards) == STEPS + EVALUATED // PAIRS + 1
    before = shards(tmp_path)
    assert before
    changed = [
        {"loss__name": "ipo", "loss__beta": 0.3},
        {"optimizer__lr": 1e-5, "model__remat": "block", "batch__microbatches": 2},
        {"ref__cache_dir": str(tmp_path / "ref_cache")},
    ]
    for number, change in enumerate(changed):
        forwards.clear()
        caplog.clear()
        prepared(configured(**change), tmp_path / f"run{number}")
        assert f"{total} of {total} responses found" in caplog.text
        # microbatches halve the batches of evaluation, so there are two more of them
        spread = [0, 12, 3] if "batch__microbatches" in change else [0, 10, 1]
        assert forwards == spread and "forward passes" not in caplog.text
    assert shards(tmp_path) == before
    forwards.clear()
    with made_by_another(tmp_path, before, caplog, monkeypatch):
        prepared(configured(), tmp_path / "late")
    assert forwards == [0] and "forward passes" not in caplog.text
    assert shards(tmp_path) == before


@contextlib.contextmanager
def made_by_another(tmp_path, made, caplog, monkeypatch):
    """Takes a cache away; another run, which has its lease, brings it when waited for.

    Its file appears before that lease ends, and is not looked at again: who waits must
    read once more when its turn has come.
    """
    ((path, data),) = made.items()
    path.unlink()
    taken = Claims("another run", 60.0).take(folder_at(path.parent / making.FOLDER), "")
    monkeypatch.setattr(making, "LOOK", 0.02)
    monkeypatch.setattr(wiring.CacheFiller, "_missing", lambda self, store: 1)
    caplog.clear()

    def finish():
        until = time.monotonic() + 60
        while "waiting for another run" not in caplog.text:
            assert time.monotonic() < until
            time.sleep(0.02)
        path.write_bytes(data)
        taken[0].end(0, "")

    finishing = threading.Thread(target=finish)
    finishing.start()
    yield
    finishing.join()


def test_another_mesh_finds_the_same_entries(configured, tmp_path, forwards):
    """Rows over 8 devices, then over 2 × 2 of them with the model split in two."""
    few = {"train__steps": 2, "data__eval": ""}
    split = {**few, "mesh__fsdp": 2, "mesh__tensor": 2}
    columns = []
    for change, passes in ((few, [0, 1, 0]), (split, [0, 1])):
        forwards.clear()
        parts, asked = prepared(configured(**change), tmp_path / "run")
        columns.append(by_response(parts, 1, annotated(parts, asked, 1)))
        assert forwards == passes
    parts, asked = prepared(configured(**split), tmp_path / "new" / "run")
    assert forwards == [0, 1, 0, 1, 0]
    columns.append(by_response(parts, 1, annotated(parts, asked, 1)))
    for key, logps in columns[0].items():
        np.testing.assert_array_equal(columns[1][key], logps)
        np.testing.assert_allclose(columns[2][key], logps, rtol=1e-5, atol=1e-5)


def test_more_rows_cost_what_they_add(configured, tmp_path, forwards):
    prepared(configured(train__steps=5), tmp_path / "one")
    forwards.clear()
    prepared(configured(train__steps=7), tmp_path / "two")
    assert forwards == [0, 3, 1, 5, 6]  # the check, then the steps with new rows


def test_evaluation_alone_takes_the_evaluated_rows(configured, tmp_path, forwards):
    parts, asked = prepared(configured(), tmp_path / "one", evaluation_only=True)
    assert forwards == [0, 1, 0] and asked.frozen == {} and asked.train is None


def test_reference_is_not_held(configured, tmp_path):
    """Bytes of live arrays: the cached run holds less by at least the parameters."""

    def held(mode):
        gc.collect()
        before = sum(x.nbytes for x in jax.live_arrays())
        parts, asked = prepared(configured(ref__mode=mode), tmp_path / "run")
        gc.collect()
        after = sum(x.nbytes for x in jax.live_arrays())
        return after - before, parts, asked

    cached, _, asked = held("cached")
    assert asked.frozen == {}
    live, parts, asked = held("live")
    size = sum(x.size for x in jax.tree.leaves(parts.trainer.abstract.params)) * 4
    assert size > 1e5
    assert live >= size
    assert cached < 0.01 * size


def test_column_is_the_live_one_with_mismatched_responses(configured, tmp_path):
    """KTO: what a step borrows is scored behind the borrower's prompt."""
    kto = {
        "objective": "unpaired",
        "loss__name": "kto",
        "train__steps": 4,
        "data__layout": "packed",
    }
    columns = []
    for mode in ("live", "cached"):
        parts, asked = prepared(configured(ref__mode=mode, **kto), tmp_path / "run")
        columns.append([annotated(parts, asked, step) for step in range(4)])
        real = parts.train.batch_at(3).slots < parts.train.shape_at(3).slots
    for live, cached in zip(*columns, strict=True):
        assert live.shape == cached.shape and cached.min() < -1.0
    for live, cached in zip(*columns, strict=True):
        known = cached != 0
        np.testing.assert_allclose(cached[known], live[known], atol=1e-5)
    assert (columns[1][3] != 0).sum() == real.sum()


def test_stopped_pass_goes_on_behind_its_shards(
    configured, tmp_path, forwards, monkeypatch
):
    monkeypatch.setattr(cache_lib, "SHARD_TOKENS", 500)

    scored = wiring.CacheFiller._scored

    def stopped(self, step):  # as a signal would, wherever it finds the run
        if len(forwards) == 9:
            raise Preempted(0)
        return scored(self, step)

    with monkeypatch.context() as patch, pytest.raises(Preempted):
        patch.setattr(wiring.CacheFiller, "_scored", stopped)
        prepared(configured(), tmp_path / "run")
    assert len(shards(tmp_path)) > 2
    del forwards[:]
    prepared(configured(), tmp_path / "run")
    assert forwards[:3] == [0, 4, 8]  # the check
    assert forwards[3:] == [*range(9, STEPS), *range(EVALUATED // PAIRS)]


def rewrite(path, change):
    """Puts a sound shard with other numbers in the place of one."""
    unpacked = cache_lib._unpacked(path.read_bytes(), path)
    entries = {key: logps for key, logps, _ in unpacked}
    path.unlink()
    cache_lib.Store(path.parent, {}).write({k: change(v) for k, v in entries.items()})


def test_entries_that_live_scores_contradict_are_left_and_computed_anew(
    configured, tmp_path, forwards, caplog
):
    caplog.set_level("INFO", logger="absl")
    parts, asked = prepared(configured(train__steps=3), tmp_path / "run")
    sound = annotated(parts, asked, 1)
    (path,) = shards(tmp_path)
    rewrite(cache_lib.epath.Path(path), lambda v: v + np.float32(3e-3))
    old = shards(tmp_path)
    parts, asked = prepared(configured(train__steps=3), tmp_path / "run")
    assert re.search(r"not to be trusted.*by 0.003 nats a token", caplog.text)
    np.testing.assert_array_equal(annotated(parts, asked, 1), sound)
    new = shards(tmp_path)
    assert old.items() <= new.items()
    assert {p.parent.name for p in new} == {path.parent.name, f"{path.parent.name}-2"}
    forwards.clear()
    prepared(configured(train__steps=3), tmp_path / "run")  # the newest is trusted
    assert forwards == [0, 2, 1] and shards(tmp_path) == new


def test_an_entry_of_a_later_step_that_is_wrong_is_found(configured, tmp_path, caplog):
    """One response of the last step, 50 nats off; the first step alone is right."""
    parts, _ = prepared(configured(train__steps=3, data__eval=""), tmp_path / "run")
    (path,) = shards(tmp_path)
    last = wiring.keys_at(parts.train, 2)[0]
    entries = {
        key: logps - np.float32(50 * (key == last))
        for key, logps, _ in cache_lib._unpacked(path.read_bytes(), path)
    }
    path.unlink()
    cache_lib.Store(cache_lib.epath.Path(path.parent), {}).write(entries)
    prepared(configured(train__steps=3, data__eval=""), tmp_path / "run")
    assert "is not to be trusted" in caplog.text


def test_what_is_never_right_is_refused(configured, tmp_path, monkeypatch):
    """Were fresh entries to differ from live scores, nothing is trained on them."""
    monkeypatch.setitem(wiring.TOLERANCES, "float32", -1.0)
    with pytest.raises(wiring.ModelError, match="scored live differ.*ref.mode='live'"):
        prepared(configured(train__steps=3), tmp_path / "run")


def identity(parts, referred, **changed):
    """Returns the identity of a reference whose decoder is changed."""
    decoder = parts.reference.decoder.clone(**changed)
    model = parts.reference._replace(decoder=decoder)
    return wiring.identity_of(model, referred.frozen["ref"])


def test_identity_is_of_content(configured, tmp_path):
    """Weights by their bytes wherever they lie; dtype and attention; not the loss."""
    live = {"ref__mode": "live"}
    parts, asked = prepared(configured(**live), tmp_path)
    names = {}
    for name in ("a", "b"):
        hf.save_params(asked.frozen["ref"], parts.model.spec, tmp_path / name)
        there = prepared(configured(ref__path=str(tmp_path / name), **live), "run")
        names[name] = identity(*there)
    assert names["a"] == names["b"] and "model.safetensors" in names["a"]["weights"]
    drawn = identity(parts, asked)
    assert drawn["weights"].keys() == {"drawn"}
    other = prepared(configured(seed=5, **live), tmp_path)
    changed = [
        identity(parts, asked, dtype=jnp.dtype("bfloat16")),
        identity(parts, asked, attention="dense"),
        identity(*other),
    ]
    same, _ = prepared(configured(loss__beta=3.0, seed=9, **live), tmp_path)
    assert identity(same, asked) == drawn
    assert drawn not in changed and len(changed) == 3
    assert identity(parts, asked, length=64) == drawn
    assert repr(parts.reference.spec) == drawn["spec"]


REFUSED = [
    ({"ref__sync_every_steps": 2}, "keeps what a frozen reference says.*'live'"),
    ({"loss__name": "tdpo1"}, "tdpo1.*whole distribution.*ref.mode='live'"),
    ({"eval__rollouts": 8}, "eval.rollouts=8 samples the reference.*rollouts=0"),
    ({"ref__mode": "live", "ref__cache_dir": "x"}, "ref.cache_dir='x' is not used"),
    ({"ref__mode": "none", "ref__cache_dir": "x"}, "ref.cache_dir='x' is not used"),
]


@pytest.mark.parametrize("changed, words", REFUSED)
def test_what_a_cache_cannot_serve_is_refused(configured, changed, words):
    if "eval__rollouts" in changed:
        changed = {**changed, "data__eval": "sentiment"}
    with pytest.raises(ConfigError, match=words):
        checks.check(configured(**changed), LOSSES)


def test_reference_that_does_not_run_is_not_held(configured, tmp_path):
    """What is held runs, and what runs is counted: 3 passes, 1 of a live reference."""
    parts, live = prepared(configured(train__steps=1, ref__mode="live"), tmp_path / "a")
    _, cached = prepared(configured(train__steps=1), tmp_path / "b")
    assert live.frozen and not cached.frozen
    spec = parts.model.spec
    flops = [
        feeds.make_facts(parts.train, spec, reference, 1.0)(1, {})["flops"]
        for reference in (parts.reference.spec, None)
    ]
    assert flops[1] == pytest.approx(flops[0] * 0.75)
