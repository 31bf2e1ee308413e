"""Every row of the loss table, wired as a run wires it.

The same loss and gradient on 1 and on 8 devices, with 1 and 4 microbatches, in every
layout; and the train command for three steps, its resumption bit-equal where the loss
keeps statistics. The policy of the first part is a bigram table, whose distribution at
a token depends on that token alone, so that compiling costs little.
"""

import importlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from equal_runs import TIMING_KEYS
from jax.sharding import AxisType
from orbax.checkpoint import v1 as ocp

from dpo_jax import build
from dpo_jax.data.loader import Loader, Settings
from dpo_jax.losses import LOSSES, find
from dpo_jax.objectives import OBJECTIVES
from dpo_jax.report import html
from dpo_jax.sharding import arrays, mesh
from dpo_jax.train import annotate, step
from dpo_jax.train.manifest import read_manifest
from dpo_jax.types import Head, Record
from dpo_jax.wiring import checks
from dpo_jax.wiring import objective as wiring

pytestmark = [pytest.mark.losses, pytest.mark.usefixtures("quick_compilations")]
ROOT = Path(__file__).parents[2]
VOCAB, RECORDS = 11, 8
NAMES = sorted(LOSSES)
MIXTURES = ("dpo+sft", "dpo+bco_pair+sft")
OPTIONS = {  # of cases beside every row at its usual setting
    "dpo": [{"ld_alpha": 0.5}, {"weighting": "wpo_clamped"}],
    "bco_pair": [{"baseline": "running"}],
    "bradley_terry": [{"margin": "data"}],
    "orpo": [{"likelihood": "whole"}],
    "cpo": [{"likelihood": "sum"}],
    "dpo+sft": [{"likelihood": "responses"}],
}
CASES = [(name, {}) for name in (*NAMES, *MIXTURES)] + [
    (name, options) for name, several in OPTIONS.items() for options in several
]
IDS = [f"{name}{'-' if o else ''}{'-'.join(map(str, o.values()))}" for name, o in CASES]


def configured(name, options):
    """A configuration of one loss at its usual setting, on the embedded data."""
    config = importlib.import_module("dpo_jax.configs.quickstart").get_config()
    rows = [find(part, LOSSES) for part in name.split("+")]
    config.objective = next(n for n, k in OBJECTIVES.items() if k.judges(rows[0]))
    config.loss.name = name
    config.loss.beta = 0.1
    for row in rows:
        config.loss.update(dict(row.usual))
    config.loss.update(options)
    if config.objective == "reward":
        config.ref.mode = "none"
    config.eval.rollouts = 0
    checks.check(config, LOSSES)
    return config


def records(kind):
    """Eight records of ragged lengths, with the judgements that their kind has."""
    rng = np.random.default_rng(7)
    ids = lambda low, high: rng.integers(1, VOCAB, rng.integers(low, high))  # noqa: E731
    several = {"pairs": 2, "completions": 1, "singles": 1, "rankings": 3}[kind]
    found = []
    for i in range(RECORDS):
        responses = tuple(ids(1, 8).astype(np.int32) for _ in range(several))
        compared = ((0, 1),) if kind == "pairs" else ()
        found.append(Record(i, ids(1, 7).astype(np.int32), responses, compared))
    if kind == "singles":
        return [
            r._replace(response={"labels": (1 if r.index % 3 else -1,)}) for r in found
        ]
    if kind == "rankings":
        order = ((0, 1), (0, 2), (1, 2))
        ranked = {"comparisons": order, "ranked": True}
        rated = {"ratings": (2.0, 1.0, 0.5)}
        return [r._replace(**ranked, response=rated) for r in found]
    rated = [tuple(rng.normal(size=2) + (1, 0)) for _ in found] if several == 2 else []
    if not rated:
        return found
    both = zip(found, rated, strict=True)
    return [r._replace(response={"ratings": s}) for r, s in both]


def language_model(params, batch):
    return jax.nn.one_hot(batch.tokens, VOCAB), Head(params["table"], None), {}


def reward_model(params, batch):
    return jax.nn.one_hot(batch.tokens, VOCAB), Head(params["score"], None), {}


def tables(seed):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return {"table": draw(VOCAB, VOCAB), "score": draw(VOCAB, 1)}


def laid_out(config, losses, layout, microbatches, shards):
    settings = Settings(RECORDS, microbatches, layout, 0, shards)
    join = wiring.join_of(losses, config.data.max_tokens)
    rows = records(OBJECTIVES[config.objective].rows)
    return Loader(rows, [list(range(RECORDS))], settings, join).batch_at(0)


def graded(config, layout, microbatches, devices):
    """Returns loss, metrics, gradients and statistics of one step."""
    losses = wiring.losses_of(config.loss, LOSSES)
    sizes = (devices, 1, 1)
    built = jax.make_mesh(
        sizes,
        mesh.AXES,
        axis_types=(AxisType.Auto,) * 3,
        devices=jax.devices()[:devices],
    )
    batch = laid_out(config, losses, layout, microbatches, devices)
    apply = reward_model if config.objective == "reward" else language_model
    whole = wiring.needs_whole_reference(losses)
    head_of = lambda ref: Head(ref["table"], None)  # noqa: E731
    objective = wiring.make_objective(
        OBJECTIVES[config.objective],
        losses,
        config.loss,
        apply,
        chunk=config.model.logits_chunk,
        ref_head=head_of if whole else None,
    )
    ref = tables(1)
    hyper = wiring.hyper(losses, config.loss)
    stats = {name: value + 0.25 for name, value in wiring.start_stats(losses).items()}
    score = annotate.ref_logps_and_states if whole else annotate.ref_logps

    def take(params, batch):
        if config.ref.mode != "none":
            scored = score(ref, batch, apply=language_model, chunk=5)
            batch = annotate.with_tokens(batch, scored)
        return step.accumulate(
            objective,
            params,
            {"ref": ref},
            stats,
            batch,
            jax.random.key(3),
            hyper,
        )

    with jax.set_mesh(built):
        place = arrays.row_sharding(built, leading=1)
        grads, (loss, sums, stats) = jax.device_get(
            jax.jit(take)(tables(0), arrays.to_global(batch, place))
        )
    means = {name: s / max(n, 1) for name, (s, n) in sums.items()}
    return {"loss": loss, **means, **stats}, grads


@pytest.mark.parametrize("name, options", CASES, ids=IDS)
def test_the_same_step_everywhere(name, options):
    """1e-5 between padded rows on one device, and all else."""
    config = configured(name, options)
    want, wanted = graded(config, "padded", 1, 1)
    assert np.isfinite(want["loss"])
    moved = max(np.abs(leaf).max() for leaf in wanted.values())
    assert moved > 1e-6
    for layout, microbatches, devices in (("packed", 4, 8), ("prefix_shared", 2, 1)):
        got, grads = graded(config, layout, microbatches, devices)
        assert got.keys() == want.keys()
        for key, value in want.items():
            np.testing.assert_allclose(
                got[key], value, rtol=1e-5, atol=1e-6, err_msg=f"{layout} {key}"
            )
        for key, value in wanted.items():
            np.testing.assert_allclose(
                grads[key], value, rtol=1e-5, atol=1e-5 * moved, err_msg=layout
            )


def train(config, workdir):
    """Trains three steps on a tiny model; returns its train lines."""
    config.train.steps = 3
    config.batch.pairs = 8
    config.batch.microbatches = 2
    config.data.limit = 32
    config.data.max_tokens = 24
    config.data.eval = ""
    config.checkpoint.every_steps = 1
    config.checkpoint.keep = 3
    config.mesh.data = 8
    build.run(config, workdir)
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == "train"]


IN_EVERY_CI = (  # one of each way through the wiring; the rest run every night
    "dpo",
    "dpo-0.5",
    "dpo-wpo_clamped",
    "dpo+bco_pair+sft",
    "alpha_dpo",
    "beta_dpo",
    "bco",
    "bco_pair-running",
    "bradley_terry-data",
    "kto",
    "odpo",
    "orpo",
    "plackett_luce",
    "sampo",
    "tdpo2",
)


@pytest.mark.parametrize(
    "name, options",
    [
        pytest.param(
            *case, id=id, marks=() if id in IN_EVERY_CI else pytest.mark.nightly
        )
        for case, id in zip(CASES, IDS, strict=True)
    ],
)
def test_the_train_command_runs(name, options, tmp_path, monkeypatch):
    """Three steps move the policy; resumed behind step 2, the third is bit-equal."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(html, "write_report", lambda runs, out: None)  # slow, unused
    whole, again = tmp_path / "whole", tmp_path / "again"
    lines = train(configured(name, options), whole)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["grad_norm"] > 0 for line in lines)
    assert all(isinstance(line["loss"], float) for line in lines)
    if not wiring.start_stats(wiring.losses_of(configured(name, options).loss, LOSSES)):
        return
    shutil.copytree(whole, again)
    shutil.rmtree(again / "checkpoints" / "3")
    (again / "results.json").unlink()
    resumed = train(configured(name, options), again)
    for one, other in zip(lines, resumed, strict=True):
        assert {k: v for k, v in one.items() if k not in TIMING_KEYS} == {
            k: v for k, v in other.items() if k not in TIMING_KEYS
        }
    want, got = (read_manifest(w / "checkpoints" / "3") for w in (whole, again))
    kept = [path for path in want["arrays"] if path.startswith("stats/")]
    assert kept and want["arrays"] == got["arrays"]
    first, second = (stored(w / "checkpoints" / "3") for w in (whole, again))
    assert first.keys() == second.keys() and set(kept) <= set(first)
    for path, value in first.items():
        np.testing.assert_array_equal(second[path], value, err_msg=path)


def stored(folder):
    """Reads the arrays of a checkpoint by path, on one device."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {
        path: jax.ShapeDtypeStruct(shape, np.dtype(dtype), sharding=place)
        for path, (shape, dtype) in read_manifest(folder)["arrays"].items()
        if 0 not in shape
    }
    return jax.tree.map(np.asarray, ocp.load(folder, wanted))
