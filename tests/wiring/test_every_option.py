"""No option can be set without an effect or an error.

A run is prepared up to its first step, and everything it would do is written down: the
batches, the traced step, the numbers handed to it, when it logs, saves and measures,
where it ends if a step is not finite, which checkpoints it keeps. For each key of a
configuration another value must change what is written down, or be refused; a key that
the usual run refuses must change it in a run that admits it (`ADMITTED`).

Three values act by a refusal alone, and need no such run: `data.format` and
`data.on_bad_row` refuse the rows that they were given, and `mesh.data` says what the
number of devices says already, or is wrong.
"""

import contextlib
import dataclasses
import hashlib
import importlib.machinery
import itertools
import json
import os
import re
import sys
import types
from pathlib import Path
from unittest import mock

import huggingface_hub
import jax
import numpy as np
import pytest

from dpo_jax import build, schema
from dpo_jax.config import flat
from dpo_jax.data import token_cache
from dpo_jax.data.sources import sentiment
from dpo_jax.data.sources.files import Request
from dpo_jax.errors import NonFiniteError, UserError
from dpo_jax.losses import LOSSES, find
from dpo_jax.models import hf, lora, peft, scalar, sites
from dpo_jax.models.decoder import abstract_params
from dpo_jax.models.scalar import policy_of
from dpo_jax.models.spec import preset
from dpo_jax.objectives import OBJECTIVES
from dpo_jax.sampling.rollout import Prompts
from dpo_jax.sharding import mesh
from dpo_jax.train import checkpoint, loop, watchdog
from dpo_jax.types import Columns, Samples, TokenPlaces, TrainState
from dpo_jax.wiring import (
    agreeing,
    checks,
    exporting,
    outputs,
    reading,
    reference,
    restoring,
    rewarding,
    sampled,
    standard,
    weights,
)
from dpo_jax.wiring import data as data_wiring
from dpo_jax.wiring import objective as wiring
from dpo_jax.wiring.turns import Turn

pytestmark = pytest.mark.losses
WANDB = types.ModuleType("wandb")
WANDB.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
OPTIONS = {n: row for n, row in schema.section("loss").items() if n != "name"}
ROOT = Path(__file__).parents[2]
OTHERS = {  # key -> another value
    "seed": 3,
    "losses": "0123",
    "rewards": "0123",
    "objective": "sft",
    "train.steps": 5,
    "train.epochs": 3.0,
    "train.on_nonfinite": "skip",
    "train.watchdog_seconds": 7.0,
    "model.path": "nowhere",
    "model.revision": "main",
    "model.ignore_attributes": ("nothing",),
    "model.adapter": "nowhere",
    "model.preset": "tiny_gpt2",
    "model.dtype": "bfloat16",
    "model.remat": "block",
    "model.attention": "splash",
    "model.score_start": "zero",
    "model.logits_chunk": 3,
    "model.router_aux_coef": 0.5,
    "model.vocab_multiple": 64,
    "ref.path": "nowhere",
    "ref.revision": "main",
    "ref.mode": "none",
    "ref.dtype": "bfloat16",
    "ref.cache_dir": "nowhere",
    "ref.sync_every_steps": 2,
    "ref.sync_mix": 0.5,
    "ref.adapter": "base",
    "lora.rank": 3,
    "lora.alpha": 5,
    "lora.rslora": True,
    "lora.targets": ("mlp",),
    "lora.init": "a_zero",
    "tokenizer.path": "nowhere",
    "data.train": "nowhere.jsonl",
    "data.eval": "",
    "data.path": "nowhere",
    "data.columns.prompt": "the {prompt}",
    "data.columns.chosen": "the {chosen}",
    "data.columns.rejected": "the {rejected}",
    "data.columns.completion": "chosen",
    "data.columns.label": "score_rejected",
    "data.columns.messages": "prompt",
    "data.columns.text": "prompt",
    "data.columns.responses": "chosen,rejected",
    "data.columns.ranking": "prompt",
    "data.columns.scores": "score_chosen,score_rejected",
    "data.columns.score_chosen": "nowhere",
    "data.columns.score_rejected": "nowhere",
    "data.columns.margin": "score_chosen",
    "data.columns.system": "prompt",
    "data.columns.tools": "prompt",
    "data.columns.pair": "sign:score_chosen",
    "data.columns.chat": "wrap",
    "data.columns.keep": "score_chosen>=0.9",
    "data.columns.drop": "nothing",
    "data.columns.pairs_per_prompt": 1,
    "data.limit": 18,
    "data.format": "hh",
    "data.chat_template": "nowhere",
    "data.now": "2026-07-26",
    "data.scored": "all",
    "data.join": "joint",
    "data.max_tokens": 14,
    "data.max_prompt_tokens": 3,
    "data.truncate_prompt": "keep_start",
    "data.truncate_response": "fixed",
    "data.cache_dir": "nowhere",
    "data.seed": 3,
    "data.labels": "bradley_terry",
    "data.on_bad_row": "error",
    "data.disjoint": True,
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
    "reward.name": "length",
    "value.path": "nowhere",
    "reward.path": "nowhere",
    "reward.dtype": "bfloat16",
    "reward.standardize": 64,
    "reward.weights": (2.0,),
    "reward.timeout_seconds": 7.0,
    "mesh.data": 4,
    "mesh.fsdp": 2,
    "mesh.tensor": 2,
    "eval.every_steps": 1,
    "eval.limit": 9,
    "eval.at_start": False,
    "eval.rollouts": 5,
    "eval.rollouts_every_steps": 2,
    "eval.best_of": 3,
    "eval.frontier": 33,
    "eval.true_reward": "length",
    "checkpoint.every_steps": 1,
    "checkpoint.after": "none",
    "checkpoint.keep": 7,
    "checkpoint.keep_best": "rewards/margins",
    "log.every_steps": 2,
    "log.to": "",
    "log.project": "another",
    "rollout.prompts": 32,
    "rollout.samples": 3,
    "rollout.max_new_tokens": 3,
    "rollout.temperature": 0.7,
    "rollout.batch": 7,
    "rollout.cache_dtype": "bfloat16",
    "ppo.epochs": 2,
    "ppo.minibatches": 2,
    "ppo.kl_coef": 0.2,
    "ppo.kl_estimator": "k3",
    "ppo.kl_target": 6.0,
    "ppo.kl_horizon": 100.0,
    "ppo.clip": 0.1,
    "ppo.value_clip": 0.1,
    "ppo.value_coef": 0.5,
    "ppo.gamma": 0.9,
    "ppo.lam": 1.0,
    "ppo.missing_eos_penalty": 1.0,
    "ppo.whiten_scores": True,
    "ppo.whiten_rewards": True,
    "ppo.whiten_advantages": False,
    "rloo.epochs": 2,
    "rloo.minibatches": 2,
    "rloo.kl_coef": 0.2,
    "rloo.clip": 0.1,
    "rloo.ratio": "token",
    "rloo.normalize": "std",
    "rloo.missing_eos_penalty": 1.0,
    "awr.epochs": 2,
    "awr.minibatches": 2,
    "awr.beta": 0.5,
    "awr.weight_clip": 5.0,
    "awr.baseline": "none",
    "awr.sampler": "ref",
    "awr.missing_eos_penalty": 1.0,
    "online.rank": "random",
    "online.labels": "bradley_terry",
    "online.ref": "each_round",
    "online.epochs": 2,
    "distributed.timeout_seconds": 7.0,
}
REFUSING = (
    *("data.format", "data.now", "data.on_bad_row", "mesh.data"),
    *("model.ignore_attributes", "losses", "rewards"),
    *("data.columns.drop", "data.columns.tools"),
)
NO_EVAL = {"data.eval": "", "eval.rollouts": 0}
MOVING = {
    "optimizer.name": "adamw",
    "optimizer.warmup_steps": 0,
    "ref.sync_every_steps": 2,
    "eval.every_steps": 10,
}
TEMPLATED = {"data.train": "{chats}", "data.chat_template": "{quiet}", **NO_EVAL}
RATED = {"loss.name": "mmpo", "loss.mmpo_gamma": 1.0}
SFT = {
    "objective": "sft",
    "loss.name": "sft",
    "loss.beta": 0.1,
    "ref.mode": "none",
    "eval.rollouts": 0,
}
SAMPLED = {
    "data.eval": "",
    "eval.rollouts": 0,
    "reward.name": "sentiment",
    "loss.beta": 0.1,
    "batch.pairs": 64,
    "rollout.prompts": 16,
    "rollout.max_new_tokens": 4,
    "data.max_prompt_tokens": 8,
    "data.row_shapes": 0,
}
OF_SAMPLES = {
    f"{name}.": {**SAMPLED, "objective": name} for name in ("ppo", "rloo", "awr")
}
OF_SAMPLES["rollout."] = OF_SAMPLES["ppo."]
OF_SAMPLES["online."] = {**SAMPLED, "objective": "online", "batch.pairs": 16}
ADAPTED = {
    "model.preset": "",
    "model.path": "{one}",
    "lora.rank": 4,
    "eval.rollouts": 0,
}
STARTED = {**ADAPTED, "lora.rank": 0, "model.adapter": "{adapter}"}
ADMITTED = {  # key -> another value, and what a run needs to take it
    "objective": ("preference", SFT),
    "data.scored": ("all", SFT),
    "model.path": ("{two}", {"model.preset": "", "model.path": "{one}"}),
    "model.score_start": (
        "zero",
        {
            "objective": "reward",
            "loss.name": "bradley_terry",
            "loss.beta": 0.1,
            "ref.mode": "none",
            "eval.rollouts": 0,
        },
    ),
    "model.revision": ("new", {"model.preset": "", "model.path": "hub/id"}),
    "model.router_aux_coef": (
        0.5,
        {"model.preset": "", "model.path": "{experts}", "eval.rollouts": 0},
    ),
    "model.attention": ("dense", {"data.row_tokens": 256}),
    "ref.path": ("{two}", {"model.preset": "", "model.path": "{one}"}),
    "ref.revision": (
        "new",
        {"model.preset": "", "model.path": "{one}", "ref.path": "hub/id"},
    ),
    "ref.mode": ("cached", {"eval.rollouts": 0}),
    "ref.cache_dir": ("{two}", {"ref.mode": "cached", "eval.rollouts": 0}),
    "ref.sync_mix": (0.5, MOVING),
    "model.adapter": ("{other}", STARTED),
    "ref.adapter": ("base", STARTED),
    **{key: (OTHERS[key], ADAPTED) for key in OTHERS if key.startswith("lora.")},
    "tokenizer.path": ("{plain}", {}),
    "data.train": ("{fewer}", {"data.train": "{hh}", "data.format": "hh", **NO_EVAL}),
    "data.eval": ("", {"eval.rollouts": 0}),
    "data.path": ("{fewer}", {"data.train": "hh", "data.path": "{hh}", **NO_EVAL}),
    "data.columns.score_chosen": ("score_rejected", RATED),
    "data.columns.score_rejected": ("score_chosen", RATED),
    "data.columns.system": ("prompt[0].content", TEMPLATED),
    "data.columns.pair": (
        "sign:score_chosen",
        {"data.columns.responses": "chosen,rejected"},
    ),
    "data.columns.chat": ("wrap", {"data.chat_template": "{quiet}"}),
    "data.chat_template": ("{loud}", TEMPLATED),
    "data.labels": ("bradley_terry", {"data.train": "sentiment", "data.limit": 16}),
    "optimizer.b1": (0.5, MOVING),
    "optimizer.b2": (0.5, MOVING),
    "optimizer.warmup_share": (0.5, MOVING),
    "checkpoint.keep_best": ("rewards/margins", MOVING),
    **{
        key: (value, base)
        for key, value in OTHERS.items()
        for section, base in OF_SAMPLES.items()
        if key.startswith(section)
    },
    "value.path": ("{judge_one}", OF_SAMPLES["ppo."]),
    "reward.path": ("{judge_two}", {"reward.path": "{judge_one}"}),
    "reward.dtype": ("bfloat16", {"reward.path": "{judge_one}"}),
    "reward.standardize": (
        64,
        {**OF_SAMPLES["ppo."], "reward.name": "model", "reward.path": "{judge_one}"},
    ),
    "reward.weights": ((2.0,), {"reward.name": "length"}),
    "log.project": ("another", {"log.to": "wandb"}),
    "reward.timeout_seconds": (7.0, {"reward.name": "length"}),
}
ADMITTED["eval.true_reward"] = (
    "length",
    {
        "data.train": "{chats}",
        "data.eval": "{chats}",
        "data.chat_template": "{quiet}",
        "reward.name": "sentiment+length",
        "data.max_prompt_tokens": 8,
        "eval.rollouts": 3,
        "eval.frontier": 32,
    },
)
ADMITTED["ppo.kl_horizon"] = (100.0, {**OF_SAMPLES["ppo."], "ppo.kl_target": 6.0})


SCORES = {"score_chosen": 1.0, "score_rejected": 0.0}
TURNS = "\n\nHuman: i loved the\n\nAssistant:"
HH = [
    {"chosen": f"{TURNS} film" + " ." * n, "rejected": f"{TURNS} plot"}
    for n in range(12)
]
CHATS = [
    {
        "prompt": [{"role": "user", "content": "i loved the"}],
        "chosen": [{"role": "assistant", "content": "film"}],
        "rejected": [{"role": "assistant", "content": "plot"}],
    }
] * 9
TEMPLATE = (
    "{% for m in messages %}SIGN {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}SIGN {% endif %}"
)
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
    tokenizer.add_tokens(["thefilm", "theplot", "\n\nHuman:", "\n\nAssistant:"])
    tokenizer.save_pretrained(folder / "tokenizer")

    for name, rows in (("hh", HH), ("fewer", HH[:8]), ("chats", CHATS)):
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows)
        )
    for name, sign in (("quiet", "."), ("loud", "film")):
        (folder / name).write_text(TEMPLATE.replace("SIGN", sign))
    sentiment.tokenizer().save_pretrained(folder / "plain")
    spec = preset("tiny", vocab=len(tokenizer), max_positions=32)
    zeros = lambda x: np.zeros(x.shape, x.dtype)  # noqa: E731
    for name in ("one", "two"):
        hf.save_params(jax.tree.map(zeros, abstract_params(spec)), spec, folder / name)
        judge = scalar.scalar_spec(spec)
        at = folder / f"judge_{name}"
        hf.save_params(jax.tree.map(zeros, abstract_params(judge)), judge, at)
    mixture = {"model_type": "olmoe", "norm": "rms", "qk_norm": "full", "experts": 4}
    routed = dataclasses.replace(spec, **mixture, experts_per_token=2)
    params = jax.tree.map(zeros, abstract_params(routed))
    hf.save_params(params, routed, folder / "experts")
    for name, rank in (("adapter", 2), ("other", 3)):
        given = {"alpha": 4, "rslora": False, "targets": (), "init": "b_zero"}
        fresh = sites.fresh(spec, rank=rank, **given)
        tree = jax.tree.map(zeros, lora.abstract(fresh))
        held = peft.folder_files(tree, fresh, spec, base="one", revision="")
        hf.save_files(folder / name, held, "adapter_config.json")

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

    make.folder = folder
    return make


def digest(tree):
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        found.update(f"{path}{np.shape(leaf)}".encode() + np.asarray(leaf).tobytes())
    return found.hexdigest()


class Written(Exception):
    """Ends a run where its first step would be."""


LOOP = loop.run


def events(functions, settings, *, bad):
    """Runs the loop on nothing, step `bad` not finite; lists what it does, and when."""
    done, clock = [], itertools.count()

    def measure(name):
        return lambda state: iter(done.append((name, state)) or [])

    evaluators = functions.evaluators.items()
    stubs = dataclasses.replace(
        functions,
        next_batch=lambda state: None,
        step=lambda state, batch: (state + 1, {"ok": state + 1 != bad}),
        facts=lambda step, values: dict.fromkeys(("flops", "tokens", "pairs"), 0.0),
        compiles=lambda step: False,
        now=lambda: next(clock),
        evaluators={n: e._replace(measure=measure(n)) for n, e in evaluators},
        save=lambda step, state, values: done.append(("save", step)),
        wait=lambda: None,
        log=lambda step, split, values: done.append((split, step)),
        progress=lambda step, values: None,
        on_bad=lambda step: "",
        to_host=dict,
        stop=lambda step: False,
    )
    try:
        LOOP(0, stubs, **settings)
    except NonFiniteError:
        done.append("halt")
    return done


def kept_steps(checkpoints, patch):
    """Saves nine steps, the third the best, and ends; lists those that stay."""

    def save(path, leaves, overwrite):
        path.mkdir(parents=True)
        (path / "leaves").write_text("")
        return mock.Mock()

    patch.setattr(checkpoint.ocp, "save_async", save)
    state = TrainState(np.int32(0), {"w": np.zeros(1)}, (), {}, np.zeros(2))
    for step in range(1, 10):
        worse = abs(step - 3.0)
        checkpoints.save(step, state, {}, {"loss": worse, "rewards/margins": -worse})
    checkpoints.wait()
    checkpoints.finish(9, None)
    return checkpoints.committed_steps()


def observe(config, workdir, monkeypatch):
    """Writes down what a run would do."""
    seen = {}

    def load_params(model, mesh, *, seed):
        seen.setdefault("loads", []).append((str(model.folder), model.held, seed))
        zero = lambda x: np.zeros(x.shape, x.dtype)  # noqa: E731
        return jax.tree.map(zero, abstract_params(model.spec))

    def resume(checkpoints, parts, frozen, first, *, fork):
        seen["parts"], seen["kept"] = parts, kept_steps(checkpoints, patch)
        return restoring.Start(0, parts.trainer.abstract, measured=False, seal=None)

    def agree(name, mine, *, seconds):
        seen.setdefault("agreed", []).append((name, seconds))

    def run(state, functions, **settings):
        seen["events"] = [events(functions, settings, bad=bad) for bad in (0, 2)]
        raise Written

    def beats(seconds, workdir):
        seen["watchdog"] = seconds
        return contextlib.nullcontext()

    def complete(cache, folder):
        seen["ref_cache"] = os.path.relpath(folder, workdir)
        raise Written

    asker, sampler = rewarding.make_asker, sampled.batches.rollouts

    def make_asker(rewards, **how):
        seen.setdefault("asked", []).append(([reward[::2] for reward in rewards], how))
        return asker(rewards, **how)

    def rollouts(*args, n, **keys):
        seen.setdefault("samples", []).append(n)
        return sampler(*args, n=n, **keys)

    def of_run(self, *params, **how):
        seen["standard"] = len(self.prompts)
        return np.float32([0, 1])

    encode = sampled.generation.encode

    def encode_prompt(tokenizer, text, **options):
        seen.setdefault("prompts", []).append(text)
        return encode(tokenizer, text, **options)

    def mirror(name, about, told):
        seen.setdefault("trackers", []).append((name, about.project))
        return mock.Mock()

    def kept(folder, name, make):
        seen.setdefault("tokens", []).append(os.path.relpath(folder, workdir))
        return make()

    with monkeypatch.context() as patch:
        patch.setattr(weights, "load_params", load_params)
        patch.setattr(restoring, "resume", resume)
        patch.setattr(agreeing.agree, "agree", agree)
        patch.setattr(token_cache, "kept", kept)
        patch.setattr(loop, "run", run)
        patch.setitem(sys.modules, "wandb", WANDB)
        patch.setattr(outputs.trackers, "Mirror", mirror)
        patch.setattr(watchdog, "Watchdog", beats)
        patch.setattr(reference.CacheFiller, "complete", complete)
        patch.setattr(sampled.generation, "encode", encode_prompt)
        patch.setattr(rewarding, "make_asker", make_asker)
        patch.setattr(sampled.batches, "rollouts", rollouts)
        patch.setattr(exporting, "export", None)
        patch.setattr(standard.Standard, "of_run", of_run)
        with pytest.raises(Written):
            build.run(config, workdir)
    if "ref_cache" in seen:  # its batches wait for what the reference says
        return seen
    parts = seen.pop("parts")
    seen["report"] = (parts.data.report, parts.data.fingerprint)
    seen["score"] = parts.model.scores_zero
    seen["adapters"] = str(parts.model.adapters)
    seen["hyper"] = {name: float(x) for name, x in parts.trainer.hyper().items()}
    if parts.turns is not None:
        return seen | turns_of(parts)
    loads = [parts.train, *([parts.eval] if parts.eval else [])]
    seen["batches"] = [digest(load.batch_at(0)) for load in loads]
    seen["later"] = [digest(load.batch_at(len(load) - 1)) for load in loads]
    seen["mesh"] = dict(parts.mesh.shape)
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


def started(turns, params):
    """Says which arrays the sampling of two prompts starts with."""
    sizes, ints = turns.sizes, lambda *dims: jax.ShapeDtypeStruct(dims, np.int32)  # noqa: E731
    asked = Prompts(ints(2, sizes.width), ints(2), ints(2))
    start = lambda *given: turns.sampler.start(*given, 0, sizes.samples)  # noqa: E731
    return jax.eval_shape(start, policy_of(params), asked, jax.random.key(0))


def turns_of(parts):
    """Writes down what the turns of an on-policy run would do."""
    turns, seen = parts.turns, {}
    told = {k: v for k, v in vars(turns).items() if k not in ("_mesh", "_lay")}
    told["_rewards"] = [(r.name, r.weight) for r in parts.rewards]
    with jax.set_mesh(parts.mesh):
        told["sampler"] = started(turns, parts.trainer.abstract.params)
    seen["turns"] = {
        name: re.sub(r"0x[0-9a-f]+", "", str(v)) for name, v in told.items()
    }
    sizes = turns.sizes
    shape = (sizes.prompts, sizes.samples)
    floats = dict.fromkeys(
        ("scores", "present", "ended"), jax.ShapeDtypeStruct(shape, np.float32)
    )
    ints = lambda *dims: jax.ShapeDtypeStruct(dims, np.int32)  # noqa: E731
    of_tokens = lambda kind: jax.ShapeDtypeStruct((*shape, sizes.new_tokens), kind)  # noqa: E731
    rollout = jax.eval_shape(
        turns._rows,
        Prompts(ints(sizes.prompts, sizes.width), ints(shape[0]), ints(shape[0])),
        Samples(
            of_tokens(np.int32),
            of_tokens(bool),
            of_tokens(np.float32),
            jax.ShapeDtypeStruct(shape, bool),
        ),
        floats,
        ints(sizes.prompts, 1, 2),
    )
    if parts.reference is not None:
        scored = jax.ShapeDtypeStruct(rollout.slots.shape, np.float32)
        rollout = rollout._replace(token={"ref_logps": scored})
    order = ints(sizes.updates, sizes.microbatches, sizes.rows)
    trainer = parts.trainer
    with jax.set_mesh(parts.mesh):
        turn = Turn(rollout, order)
        traced = jax.make_jaxpr(trainer.step)(
            trainer.abstract, trainer.frozen, turn, trainer.hyper()
        )
    return seen | {"step": re.sub(r"0x[0-9a-f]+", "", str(traced))}


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
    assert keys == OTHERS.keys()
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
        assert key in ADMITTED or key in REFUSING
        return
    assert found != usual


def given(configured, values):
    """The usual configuration with other values, `{NAME}` a file of the module's."""
    named = {path.stem: path for path in configured.folder.iterdir()}
    filled = {
        key: value.format(**named) if isinstance(value, str) else value
        for key, value in values.items()
    }
    config = configured()
    config.update_from_flattened_dict(filled)
    return config


@pytest.fixture(scope="module")
def bases():
    return {}


@pytest.mark.parametrize("key", ADMITTED)
def test_a_key_acts_where_it_is_admitted(key, configured, bases, tmp_path, monkeypatch):
    def snapshot(name, revision, allow_patterns):
        """A hub whose repositories have a main branch and another."""
        return configured.folder / ("two" if revision else "one")

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    value, base = ADMITTED[key]
    name = json.dumps(base, sort_keys=True)
    if name not in bases:
        bases[name] = observe(given(configured, base), tmp_path / "base", monkeypatch)
    found = observe(given(configured, {**base, key: value}), tmp_path, monkeypatch)
    assert found != bases[name]


def test_row_shapes_are_the_numbers_of_rows_at_most(configured):
    """On eight shards every step has eight rows, so this key is walked over on one."""
    config = configured()
    config.data.row_tokens = 32
    tokenizer = data_wiring.load_tokenizer(
        config.tokenizer.path, config.model, config.data.train
    )
    request = reading.request_of(config)
    data = data_wiring.load_data(request, tokenizer)
    spec = preset("tiny", vocab=len(tokenizer), max_positions=64)
    alone = jax.make_mesh((1, 1, 1), mesh.AXES, devices=jax.devices()[:1])
    buckets = []
    for most in (0, OTHERS["data.row_shapes"]):
        config.data.row_shapes = most
        train, _ = data_wiring.make_loaders(
            request, data, spec, alone, steps=4, model=config.model, microbatches=0
        )
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
    hyper = wiring.hyper(losses, config.loss, progress=0.5)
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
    values = {"label_smoothing": 0.3, "chi_clip": 0.01, "shift_end": 0.2}
    return values.get(name, value * 0.5 + 0.01)


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
