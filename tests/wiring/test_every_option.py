"""No option can be set without an effect or an error.

A run is prepared up to its first step, and everything it would do is written down: the
batches, the traced step, the numbers handed to it, the cadence, what is kept. For each
key of a configuration another value must change what is written down, or be refused.
"""

import hashlib
import importlib
import json
import os
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from dpo_jax import build, schema
from dpo_jax.config import flat
from dpo_jax.data import token_cache
from dpo_jax.data.sources import sentiment
from dpo_jax.data.sources.files import Request
from dpo_jax.errors import UserError
from dpo_jax.losses import LOSSES, find
from dpo_jax.models.decoder import abstract_params
from dpo_jax.models.spec import preset
from dpo_jax.objectives import OBJECTIVES
from dpo_jax.sharding import mesh
from dpo_jax.train import loop
from dpo_jax.types import Columns, TokenPlaces
from dpo_jax.wiring import agreeing, checks, evaluation, outputs, restoring
from dpo_jax.wiring import data as data_wiring
from dpo_jax.wiring import model as model_wiring
from dpo_jax.wiring import objective as wiring

pytestmark = pytest.mark.losses
OPTIONS = {n: row for n, row in schema.section("loss").items() if n != "name"}
ROOT = Path(__file__).parents[2]
OTHERS = {  # key -> another value
    "seed": 3,
    "objective": "sft",
    "train.steps": 5,
    "train.epochs": 3.0,
    "train.on_nonfinite": "skip",
    "model.path": "nowhere",
    "model.revision": "main",
    "model.preset": "tiny_gpt2",
    "model.dtype": "bfloat16",
    "model.remat": "block",
    "model.attention": "none such",
    "model.logits_chunk": 3,
    "ref.path": "nowhere",
    "ref.revision": "main",
    "ref.mode": "none",
    "ref.dtype": "bfloat16",
    "ref.cache_dir": "nowhere",
    "ref.sync_every_steps": 2,
    "ref.sync_mix": 0.5,
    "tokenizer.path": "nowhere",
    "data.train": "nowhere.jsonl",
    "data.eval": "",
    "data.path": "nowhere",
    "data.limit": 18,
    "data.format": "hh",
    "data.chat_template": "nowhere",
    "data.join": "joint",
    "data.max_tokens": 14,
    "data.max_prompt_tokens": 3,
    "data.truncate_prompt": "keep_start",
    "data.truncate_response": "fixed",
    "data.cache_dir": "nowhere",
    "data.seed": 3,
    "data.labels": "bradley_terry",
    "data.on_bad_row": "error",
    "data.shuffle": False,
    "data.layout": "padded",
    "data.row_tokens": 64,
    "data.row_shapes": 3,
    "batch.pairs": 16,
    "batch.microbatches": 2,
    "optimizer.name": "adamw",
    "optimizer.lr": 1e-2,
    "optimizer.warmup_steps": 3,
    "optimizer.warmup_share": 0.5,
    "optimizer.schedule": "cosine",
    "optimizer.weight_decay": 0.1,
    "optimizer.clip": 1.0,
    "optimizer.b1": 0.5,
    "optimizer.b2": 0.5,
    "optimizer.decay": 0.5,
    "optimizer.eps": 1e-3,
    "mesh.data": 4,
    "mesh.fsdp": 2,
    "mesh.tensor": 2,
    "eval.every_steps": 1,
    "eval.rollouts": 5,
    "eval.rollouts_every_steps": 7,
    "checkpoint.every_steps": 1,
    "checkpoint.keep": 7,
    "checkpoint.keep_best": "rewards/margins",
    "log.every_steps": 2,
    "distributed.timeout_seconds": 7.0,
}
OF_THE_PARENT = {"train.watchdog_seconds"}  # see tests/cli/test_parent.py


SCORES = {"score_chosen": 1.0, "score_rejected": 0.0}
ROWS = [  # with a word that joining makes, and a bad row
    *(row for _, row in sentiment.read(Request("train", seed=1, rows=22))),
    {"prompt": "i loved the", "chosen": "film .", "rejected": "plot .", **SCORES},
    {"prompt": "the plot", "chosen": " was dull .", "rejected": " ", **SCORES},
]


@pytest.fixture(scope="module")
def configured(tmp_path_factory):
    """Makes a small run that cuts prompts and responses, so that how matters."""
    folder = tmp_path_factory.mktemp("rows")
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    tokenizer = sentiment.tokenizer()
    tokenizer.add_tokens(["thefilm", "theplot"])
    tokenizer.save_pretrained(folder / "tokenizer")

    def make():
        config = importlib.import_module("dpo_jax.configs.quickstart").get_config()
        config.train.steps, config.train.epochs = 0, 1.5
        config.tokenizer.path = str(folder / "tokenizer")
        config.data.train = str(path)
        config.data.limit = 0
        config.data.on_bad_row = "drop"
        config.data.max_tokens = 12
        config.data.max_prompt_tokens = 5
        config.batch.pairs = 8
        config.eval.rollouts = 8
        return config

    return make


def digest(tree):
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        found.update(f"{path}{np.shape(leaf)}".encode() + np.asarray(leaf).tobytes())
    return found.hexdigest()


class Written(Exception):
    """Ends a run where its first step would be."""


def observe(config, workdir, monkeypatch):
    """Writes down what a run would do."""
    seen = {}

    def load_params(model, mesh, *, seed):
        seen.setdefault("loads", []).append((str(model.folder), model.held, seed))
        zero = lambda x: np.zeros(x.shape, x.dtype)  # noqa: E731
        return jax.tree.map(zero, abstract_params(model.spec))

    def resume(checkpoints, parts, frozen, first, *, fork):
        seen["checkpoints"] = repr(
            (checkpoints._every_steps, checkpoints._keep, checkpoints._keep_best)
        )
        seen["parts"] = parts
        return restoring.Start(0, parts.trainer.abstract, measured=False, seal=None)

    def agree(name, mine, *, seconds):
        seen.setdefault("agreed", []).append((name, seconds))

    def run(state, functions, **settings):
        seen["settings"] = repr(settings)
        cadences = {n: e.every_steps for n, e in functions.evaluators.items()}
        seen["cadences"] = cadences
        raise Written

    encode = evaluation.generation.encode

    def encode_prompt(tokenizer, text, **options):
        seen.setdefault("prompts", []).append(text)
        return encode(tokenizer, text, **options)

    def kept(folder, name, make):
        seen.setdefault("tokens", []).append(os.path.relpath(folder, workdir))
        return make()

    with monkeypatch.context() as patch:
        patch.setattr(model_wiring, "load_params", load_params)
        patch.setattr(restoring, "resume", resume)
        patch.setattr(agreeing.agree, "agree", agree)
        patch.setattr(token_cache, "kept", kept)
        patch.setattr(loop, "run", run)
        patch.setattr(evaluation.generation, "encode", encode_prompt)
        patch.setattr(outputs, "export", None)
        with pytest.raises(Written):
            build.run(config, workdir)
    parts = seen.pop("parts")
    loads = [parts.train, *([parts.eval] if parts.eval else [])]
    seen["batches"] = [digest(load.batch_at(0)) for load in loads]
    seen["later"] = [digest(load.batch_at(len(load) - 1)) for load in loads]
    seen["report"] = (parts.data.report, parts.data.fingerprint)
    seen["mesh"] = dict(parts.mesh.shape)
    seen["hyper"] = {name: float(x) for name, x in parts.trainer.hyper().items()}
    batch = parts.train.batch_at(0)
    scored = jax.ShapeDtypeStruct(batch.targets.shape, np.float32)
    if config.ref.mode != "none":
        batch = batch._replace(token={"ref_logps": scored})
    trainer = parts.trainer
    with jax.set_mesh(parts.mesh):
        traced = jax.make_jaxpr(trainer.step)(
            trainer.abstract, trainer.frozen, batch, trainer.hyper()
        )
    seen["step"] = re.sub(r"0x[0-9a-f]+", "", str(traced))
    return seen


@pytest.fixture(scope="module")
def usual(configured, tmp_path_factory):
    """What the run does where nothing is changed; written down twice, the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        first, second = (
            observe(configured(), tmp_path_factory.mktemp("run"), patch)
            for _ in range(2)
        )
    assert first == second
    return first


def test_every_key_is_walked_over(configured):
    keys = {key for key in flat(configured()) if not key.startswith("loss.")}
    assert keys == OTHERS.keys() | OF_THE_PARENT
    options = {key for key in flat(configured()) if key.startswith("loss.")}
    assert options == {"loss.name", *(f"loss.{name}" for name in OPTIONS)}


@pytest.mark.parametrize("key", sorted(OTHERS.keys() - {"data.row_shapes"}))
def test_a_key_has_an_effect_or_is_refused(
    key, configured, usual, tmp_path, monkeypatch
):
    monkeypatch.chdir(ROOT)
    config = configured()
    assert flat(config)[key] != OTHERS[key]
    config.update_from_flattened_dict({key: OTHERS[key]})
    try:
        found = observe(config, tmp_path, monkeypatch)
    except UserError as error:
        said = str(error)
        assert key.rpartition(".")[2] in said or str(OTHERS[key]) in said, said
        return
    assert found != usual


def test_row_shapes_are_the_numbers_of_rows_at_most(configured):
    """On eight shards every step has eight rows, so this key is walked over on one."""
    config = configured()
    config.data.row_tokens = 32
    tokenizer = data_wiring.load_tokenizer(config)
    data = data_wiring.load_data(config, tokenizer)
    spec = preset("tiny", vocab=len(tokenizer), max_positions=64)
    alone = jax.make_mesh((1, 1, 1), mesh.AXES, devices=jax.devices()[:1])
    buckets = []
    for most in (0, OTHERS["data.row_shapes"]):
        config.data.row_shapes = most
        train, _ = data_wiring.make_loaders(config, data, spec, alone, steps=4)
        buckets.append(train.buckets)
    assert len(buckets[0]) == 1 and 1 < len(buckets[1]) <= 3
    assert buckets[1][-1] == buckets[0][0]


def columns():
    """Six pairs (and rankings of two) of which nothing is missing; some chosen fell."""
    rng = np.random.default_rng(11)
    draw = lambda low, high: rng.uniform(low, high, (3, 4)).astype(np.float32)  # noqa: E731
    ref_logps = draw(-9, -5)
    slots = np.arange(12).reshape(3, 2, 2)
    return Columns(
        lengths=rng.integers(1, 7, (3, 4)).astype(np.float32),
        pairs=slots,
        groups=slots,
        response={
            "logps": ref_logps + draw(-1.5, 1.5),
            "ref_logps": ref_logps,
            "entropy": draw(1, 6),
            "correct": draw(0, 1),
            "certainty": draw(-0.5, 0.5),
            "kls": draw(0, 2),
            "prompt_logps": draw(-4, -2),
            "noise": draw(0.1, 0.9),
            "scores": draw(-1, 1),
            "ratings": np.float32([[2, 1, 3, 0.5]] * 3) + draw(0, 0.4),
            "labels": np.float32([[1, -1, 1, 0]] * 3),
        },
    )


COLUMNS = columns()
CHOSEN_TOKENS = float(COLUMNS.lengths.reshape(-1, 2)[:, 0].sum())
COUNTS = {
    "pairs": 6.0,
    "chosen_tokens": CHOSEN_TOKENS,
    "whole_tokens": CHOSEN_TOKENS + 20.0,
    "singles": 9.0,
    "lists": 6.0,
}
PLACES = TokenPlaces(
    np.array([[0, 1, 2, 0, 1, 2, 3, 4]]),
    np.array([[2, 0, 1, 4, 0, 3, 1, 2]]),
    np.float32([[3] * 3 + [5] * 5]),
    np.float32([[5] * 3 + [3] * 5]),
)


def valued(config):
    """Returns loss, statistics, token weights and rewards."""
    losses = wiring.losses_of(config.loss, LOSSES)
    kind = OBJECTIVES[config.objective]
    objective = wiring.make_objective(kind, losses, config.loss, None, chunk=0)
    hyper = wiring.hyper(losses, config.loss)
    start = {name: value + 0.5 for name, value in wiring.start_stats(losses).items()}
    stats = objective.update(COLUMNS, start, hyper)
    loss, sums = objective.loss(COLUMNS, {}, stats, hyper, COUNTS)
    weigh = wiring.weigh_tokens(losses, config.loss.ld_alpha)
    weights = None if weigh is None else np.asarray(weigh(PLACES, hyper)).tolist()
    shown = {n: float(s) for n, (s, _) in sums.items() if n.startswith("rewards")}
    return float(loss), {k: float(v) for k, v in stats.items()}, weights, shown


def another(name, value):
    """Returns a value of an option that differs from the one it has."""
    option = OPTIONS[name]
    if option.choices:
        return next(choice for choice in option.choices if choice != value)
    if name == "weights":
        return (0.7, 0.3)
    return {"label_smoothing": 0.3, "chi_clip": 0.01}.get(name, value * 0.5 + 0.01)


@pytest.mark.parametrize("name", [*sorted(LOSSES), "dpo+sft"])
def test_an_option_of_a_loss_has_an_effect_or_is_refused(name, configured):
    config = configured()
    rows = tuple(find(part, LOSSES) for part in name.split("+"))
    config.objective = next(n for n, k in OBJECTIVES.items() if k.judges(rows[0]))
    config.loss.name = name
    config.loss.beta = 0.1
    config.loss.update({key: value for row in rows for key, value in row.usual.items()})
    if config.objective == "reward":
        config.ref.mode = "none"
        config.eval.rollouts = 0
    checks.check(config, LOSSES)
    want = valued(config)
    for option in OPTIONS:
        changed = config.copy_and_resolve_references().unlock()
        changed.loss[option] = another(option, config.loss[option])
        if option == "divergence_alpha":
            changed.loss.divergence = "alpha"
        try:
            checks.check(changed, LOSSES)
        except UserError as error:
            assert f"loss.{option}" in str(error)
            continue
        base = want
        if option == "divergence_alpha":
            base = valued(changed_but(changed, option, 1.0))
        assert valued(changed) != base, option


def changed_but(config, option, value):
    other = config.copy_and_resolve_references().unlock()
    other.loss[option] = value
    return other


def test_the_walk_can_fail(configured, usual, tmp_path, monkeypatch):
    """Were a key read by nobody, nothing that is written down would tell."""
    monkeypatch.chdir(ROOT)
    config = configured()
    with config.unlocked():
        config.data.nobodys = 1
    assert observe(config, tmp_path, monkeypatch) == usual
