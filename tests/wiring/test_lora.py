"""Whole runs that train adapters: what moves, what stands, and what is left behind."""

import functools
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from dpo_jax import build, schema
from dpo_jax.errors import ConfigError, ModelError, RunFolderError
from dpo_jax.losses import LOSSES
from dpo_jax.sharding.mesh import make_mesh
from dpo_jax.train.checkpoint import Checkpoints
from dpo_jax.wiring import checks, compiling, programs
from dpo_jax.wiring.assembling import make_parts
from dpo_jax.wiring.generation import Policy, SampleRequest, read_prompts, sample
from tests.equal_runs import TIMING_KEYS
from tests.night import by_day
from tests.tiny_base import write_base

pytestmark = pytest.mark.losses
LN_2 = float(np.float32(np.log(2)))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a base, drawn at random."""
    root = tmp_path_factory.mktemp("lora")
    write_base(root / "base")
    return root


def configured(root, **given):
    config = schema.base()
    values = {
        "model.path": str(root / "base"),
        "lora.rank": 3,
        "data.train": "sentiment",
        "data.limit": 32,
        "data.max_tokens": 20,
        "data.max_prompt_tokens": 12,
        "batch.pairs": 8,
        "loss.beta": 0.5,
        "train.steps": 3,
        "checkpoint.every_steps": 1,
        "checkpoint.keep": 5,
        "optimizer.name": "adamw",
        "optimizer.lr": 1e-2,
        "optimizer.warmup_steps": 0,
    }
    config.update_from_flattened_dict(values | given)
    return config.lock()


@functools.cache
def trained(root):
    build.run(configured(root), root / "run")
    return root / "run"


def lines_of(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in TIMING_KEYS} for line in lines]


def adapter(folder):
    return load_file(folder / "adapter_model.safetensors")


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves
    }


def test_what_trains_is_what_was_declared(root):
    """After two steps every factor of every layer moved; nothing else is kept."""
    config, run = configured(root), trained(root)
    lines = lines_of(run)
    assert lines[0]["loss"] == LN_2 and lines[0]["rewards/margins"] == 0
    assert lines[-1]["rewards/margins"] > 0.01
    mesh = make_mesh(**config.mesh)
    with jax.set_mesh(mesh):
        parts = make_parts(config, checks.check(config, LOSSES), mesh, root / "none")
        frozen = parts.refer(root / "none").frozen
        start = parts.trainer.init(frozen)
    kept = Checkpoints(run / "checkpoints", every_steps=1, keep=5)
    state, _ = kept.restore(2, parts.trainer.abstract)
    assert frozen.keys() == {"base"} and state.ref is None
    before, after = flat(start.params), flat(state.params)
    linear = ("attn/q", "attn/k", "attn/v", "attn/o", "mlp/gate", "mlp/up", "mlp/down")
    assert after.keys() == {f"lora/{name}/{f}" for name in linear for f in "ab"}
    for name, value in after.items():
        assert all(
            (now != was).any() for now, was in zip(value, before[name], strict=True)
        )
    moments = [x.shape for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert sorted(moments) == sorted([x.shape for x in after.values()] * 2)


def test_without_a_step_the_merged_export_is_the_base(root, tmp_path):
    config = configured(root, **{"optimizer.lr": 0.0, "train.steps": 1})
    build.run(config, tmp_path / "run")
    build.export_run(tmp_path / "run", tmp_path / "whole", dtype="float32", merged=True)
    assert weights(tmp_path / "whole") == weights(root / "base")


def test_the_export_is_a_folder_of_peft_and_merged_a_whole_one(root, tmp_path):
    """W + 2·(A·B)ᵀ of the pairs on disk: α is twice the rank where it is not said."""
    export = trained(root) / "export"
    names = {file.name for file in export.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= names
    assert "tokenizer.json" in names
    assert not {"config.json", "model.safetensors"} & names
    build.export_run(trained(root), tmp_path / "out", dtype="float32", merged=True)
    whole, base = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "out", root / "base")
    )
    pairs, moved = adapter(export), set()
    for name, value in base.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{module}.lora_A.weight" in pairs:
            down, up = (pairs[f"{module}.lora_{x}.weight"] for x in "AB")
            delta = 2.0 * up.astype(np.float64) @ down
            np.testing.assert_allclose(whole[name], value + delta, atol=1e-6)
            moved.add(name)
        else:
            assert np.array_equal(whole[name], value)
    assert len(moved) == 14


SAME = {
    "cached": {"ref.mode": "cached"},
    "remat": {"model.remat": "block"},
    "microbatches": {"batch.microbatches": 2, "mesh.data": 2, "mesh.tensor": 2}
    | {"mesh.fsdp": 2},
    "padded": {"data.layout": "padded"},
    "adapter off": {"ref.adapter": "base"},
}


@pytest.mark.parametrize(
    "case", by_day(("cached", "microbatches", "one device"), [*SAME, "one device"])
)
def test_where_and_how_it_runs_changes_no_number(case, root, tmp_path, monkeypatch):
    usual = lines_of(trained(root))  # on all devices
    if case == "one device":
        alone = lambda **shape: make_mesh(**shape, devices=jax.devices()[:1])  # noqa: E731
        monkeypatch.setattr(build, "make_mesh", alone)
    build.run(configured(root, **SAME.get(case, {})), tmp_path / "run")
    for ours, theirs in zip(lines_of(tmp_path / "run"), usual, strict=True):
        for key in ("loss", "grad_norm", "rewards/margins", "logps/chosen"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-5), key


def test_a_run_that_fails_resumes_bit_equal(root, tmp_path):
    def failing(step, last, values):
        if step == 2:
            raise RuntimeError("a hook fails")

    with pytest.raises(RuntimeError, match="a hook"):
        build.run(configured(root), tmp_path / "run", progress=failing)
    with pytest.raises(RunFolderError, match="lora.rank"):
        build.run(configured(root, **{"lora.rank": 2}), tmp_path / "run")
    assert 0 < build.run(configured(root), tmp_path / "run").resumed_from < 3
    assert lines_of(tmp_path / "run") == lines_of(trained(root))
    ours, theirs = (
        adapter(run / "export") for run in (tmp_path / "run", trained(root))
    )
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_a_reference_follows_adapters(root, tmp_path):
    """One that copies the policy after each step leaves every loss at ln 2."""
    given = {"ref.sync_every_steps": 1, "ref.sync_mix": 1.0}
    build.run(configured(root, **given), tmp_path / "run")
    assert [line["loss"] for line in lines_of(tmp_path / "run")] == [LN_2] * 3


def test_an_adapter_is_trained_on_from_the_policy_that_it_was(root, tmp_path):
    """Its reference is a copy of it, live, cached or by its folder; or the base."""
    start = str(trained(root) / "export")
    on = {"model.adapter": start, "lora.rank": 0, "train.steps": 2}
    others = {
        "copy": {},
        "cached": {"ref.mode": "cached"},
        "folder": {"ref.adapter": start},
        "base": {"ref.adapter": "base"},
    }
    found = {}
    for name, given in others.items():
        build.run(configured(root, **on, **given), tmp_path / name)
        found[name] = lines_of(tmp_path / name)
    assert found["copy"][0]["loss"] == LN_2
    assert found["copy"] == found["folder"]
    for live, cached in zip(found["copy"], found["cached"], strict=True):
        assert live["loss"] == pytest.approx(cached["loss"], abs=1e-5)
    first = found["base"][0]
    assert first["logps/chosen"] == found["copy"][0]["logps/chosen"]
    assert first["rewards/margins"] > 0.01
    build.run(configured(root, **on, **{"optimizer.lr": 0.0}), tmp_path / "still")
    again, was = (
        adapter(tmp_path / "still" / "export"),
        adapter(trained(root) / "export"),
    )
    assert again.keys() == was.keys()
    assert all(np.array_equal(again[name], was[name]) for name in was)


WORDS = ("film", "plot", "movie", "story")
BF16 = {"model.dtype": "bfloat16", "lora.init": "a_zero", "lora.rslora": True}


def test_a_base_of_bfloat16_and_an_a_that_starts_at_zero(root, tmp_path):
    given = {"lora.targets": ("attention",), "lora.alpha": 5, **BF16}
    build.run(configured(root, **given), tmp_path / "run")
    lines = lines_of(tmp_path / "run")
    assert lines[0]["loss"] == pytest.approx(LN_2, abs=2e-3)
    assert lines[-1]["rewards/margins"] != 0
    found = adapter(tmp_path / "run" / "export")
    assert len(found) == 16 and all(x.dtype == np.float32 for x in found.values())
    said = json.loads((tmp_path / "run" / "export" / "adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"], said["use_rslora"]) == (3, 5, True)
    assert said["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]


def test_a_score_is_trained_in_full_beside_adapters(root, tmp_path):
    reward = {"objective": "reward", "loss.name": "bradley_terry", "ref.mode": "none"}
    build.run(configured(root, **reward, **{"loss.beta": 0.1}), tmp_path / "run")
    found = adapter(tmp_path / "run" / "export")
    assert found.pop("base_model.model.score.weight").shape == (1, 64)
    assert len(found) == 28
    build.export_run(tmp_path / "run", tmp_path / "out", dtype="float32", merged=True)
    judge = load_file(tmp_path / "out" / "model.safetensors")
    assert "score.weight" in judge and "lm_head.weight" not in judge


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lora.rank": 0, "lora.alpha": 8}, "lora.alpha=8 is not used by lora.rank=0"),
        ({"lora.rank": 0, "ref.adapter": "base"}, "ref.adapter='base' is not used"),
        ({"lora.targets": ("wq",)}, "'wq' names no linear map .* self_attn.q_proj"),
        ({"model.path": "", "model.preset": "tiny"}, "model.preset='tiny': an adapter"),
        ({"ref.adapter": "base", "ref.mode": "none"}, "ref.adapter='base' lies beside"),
        (
            {"ref.adapter": "base", "ref.sync_every_steps": 2},
            "ref.adapter='base' stays",
        ),
        ({"ref.path": "x", "ref.sync_every_steps": 2}, "ref.path='x' cannot follow"),
        ({"ref.dtype": "bfloat16"}, "ref.dtype='bfloat16': the reference stands on"),
        ({"lora.init": "pissa"}, "lora.init"),
        ({"model.adapter": "{export}", "lora.rank": 4}, "lora.rank=4 contradicts"),
        (
            {"model.adapter": "{export}", "lora.targets": ("mlp",), "lora.rank": 0},
            "lora.targets=.* contradicts .*attn/q",
        ),
        ({"model.adapter": "{base}"}, "adapter_config.json does not exist"),
    ],
)
def test_what_adapters_cannot_be_is_refused(given, said, root, tmp_path):
    places = {"base": root / "base"}
    if "{export}" in given.values():
        places["export"] = trained(root) / "export"
    given = {
        key: value.format(**places) if isinstance(value, str) else value
        for key, value in given.items()
    }
    with pytest.raises((ConfigError, ModelError), match=said):
        build.run(configured(root, **given), tmp_path / "run")


def test_a_policy_is_sampled_and_evaluated_beside_its_base(root, tmp_path):
    """Greedily, the text of the run is that of its merged export, and not the base's.

    Of the reference, which is the base, rollouts know the KL.
    """
    given = {"data.eval": "sentiment", "eval.limit": 8, "eval.rollouts": 4}
    config = configured(root, **given, **{"train.steps": 2, "optimizer.lr": 0.1})
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert build.run(config, run).values["rollouts/kl"] > 0.05
    assert build.evaluate(config, run).values["rollouts/kl"] > 0.05
    build.export_run(run, whole, dtype="float32", merged=True)
    merged, base = (
        configured(root, **{"lora.rank": 0, "model.path": str(folder)})
        for folder in (whole, root / "base")
    )
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"the {w}"}) + "\n" for w in WORDS))
    asked = SampleRequest(
        prompts=str(file),
        limit=0,
        max_new_tokens=6,
        n=1,
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        stop=(),
        seed=0,
        batch=8,
    )
    policies = [
        Policy("run", config, run),
        Policy("merged", merged, None),
        Policy("base", base, None),
    ]
    said = sample(read_prompts(asked, []), asked, policies, make_mesh(-1, 1, 1))
    texts = {
        name: [one.tokens for (one,) in of] for name, of in said.completions.items()
    }
    assert texts["run"] == texts["merged"] != texts["base"]


def test_a_step_takes_the_memory_of_one_copy_of_the_weights(root, tmp_path):
    """Full: weights, two moments and the reference; adapters: the base, read by both.

    What the compiler says of the step on one device, activations apart.
    """
    sizes = {}
    for name, rank in (("full", 0), ("adapters", 3)):
        config = configured(root, **{"lora.rank": rank})
        mesh = make_mesh(**config.mesh, devices=jax.devices()[:1])
        with jax.set_mesh(mesh):
            losses = checks.check(config, LOSSES)
            parts = make_parts(config, losses, mesh, tmp_path / name)
            *_, step = programs.of_step(parts)
            sizes[name] = compiling.compiled(step, 1)
    weights = sum(
        size for leaf, size in sizes["full"].leaves if leaf.startswith("state/params/")
    )
    full, adapters = (sizes[name].held for name in ("full", "adapters"))
    assert sum(full.values()) > 4 * weights  # with the batch
    kept = adapters["parameters"] + adapters["optimizer"]
    assert adapters["base"] == weights and "reference" not in adapters
    assert kept < 0.3 * weights
    full, adapters = (sizes[name].memory for name in ("full", "adapters"))
    assert adapters.arguments < 0.5 * full.arguments
    assert adapters.temporaries < full.temporaries and adapters.peak < full.peak


def test_what_is_not_merged_has_no_dtype(root, tmp_path):
    with pytest.raises(ConfigError, match="--dtype=bfloat16 is not used"):
        build.export_run(trained(root), tmp_path / "out", dtype="bfloat16")
