"""The train command against what TRL 1.16 logs, step by step.

The goldens hold TRL's metrics of 2 or 4 optimizer steps on real preference rows, with
a reference that is not the policy, so that no term vanishes at the first step; later
steps check gradients and the optimizer. Expected values and tolerances are theirs.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from dpo_jax import cli
from dpo_jax.report import html

pytestmark = pytest.mark.parity
ROOT = Path(__file__).parents[2]
FLAGS = {
    "data.shuffle": False,
    "data.max_tokens": 4096,  # longer than any row: TRL's runs cut nothing
    "data.max_prompt_tokens": 2048,
    "batch.pairs": 8,
    "optimizer.name": "adamw",
    "optimizer.lr": 1e-3,
    "optimizer.warmup_steps": 0,
    "optimizer.clip": 1.0,
}
CASES = {  # the 23 of `trl_llama`, in our options
    "dpo": {},
    "dpo_beta0.5": {"loss.beta": 0.5},
    "dpo_mean": {"loss.normalize": "mean"},
    "dpo_forward_kl": {"loss.divergence": "forward_kl"},
    "dpo_js": {"loss.divergence": "js"},
    "dpo_alpha": {"loss.divergence": "alpha", "loss.divergence_alpha": 0.5},
    "dpo_ld": {"loss.ld_alpha": 0.5},
    "dpo_wpo": {"loss.weighting": "wpo"},
    "dpo_trdpo": {"ref.sync_every_steps": 2, "ref.sync_mix": 0.6},
    "ipo_mean": {"loss.name": "ipo", "loss.normalize": "mean"},
    "exo_pair": {"loss.name": "exo_pair", "loss.label_smoothing": 1e-3},
    "robust": {"loss.name": "robust", "loss.label_smoothing": 0.1},
    "mpo": {"loss.name": "dpo+bco_pair+sft", "loss.weights": (0.8, 0.2, 1.0)},
    **{
        name: {"loss.name": name}
        for name in (
            "hinge",
            "nca_pair",
            "bco_pair",
            "sppo_hard",
            "aot",
            "aot_unpaired",
            "apo_zero",
            "apo_down",
            "discopop",
            "sft",
        )
    },
}
LOGPS_ATOL = 5e-3  # nats
GRAD_NORM_RTOL = 5e-3  # of max(1, |value|)
RTOL, ATOL = 2e-4, 1e-4  # loss, rewards, entropy: RTOL·max(1, |value|) + ATOL
UNKNOWN = ("logits/chosen", "logits/rejected")  # TRL's alone


def tolerance(name, value):
    if name.startswith("logps/"):
        return LOGPS_ATOL
    scale = max(1.0, abs(value))
    return GRAD_NORM_RTOL * scale if name == "grad_norm" else RTOL * scale + ATOL


@pytest.fixture
def train(shared, tmp_path, monkeypatch):
    """Runs the train command on a folder of goldens; returns its train lines."""
    monkeypatch.chdir(ROOT)
    cache = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("DPO_JAX_COMPILE_CACHE", cache or "")
    monkeypatch.setattr(html, "write_report", lambda runs, out: None)  # slow, unused
    precision = jax.config.jax_default_matmul_precision
    run = tmp_path / "run"

    def go(folder, steps, flags):
        goldens = shared / "goldens" / folder
        paths = {"model.path": goldens / "model", "ref.path": goldens / "ref"}
        paths["data.train"] = goldens / "train.jsonl"
        given = FLAGS | paths | flags | {"train.steps": steps}
        argv = [f"--config.{key}={value}" for key, value in given.items()]
        where = ["--config=configs/dpo.py", f"--workdir={run}"]
        assert cli.main(["dpo_jax", "train", *where, *argv]) == 0
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        return [line for line in lines if line["split"] == "train"]

    yield go
    jax.config.update("jax_default_matmul_precision", precision)


def check(lines, steps):
    assert [line["step"] for line in lines] == list(range(1, len(steps) + 1))
    wrong = {
        f"step {line['step']} {name}": (line.get(name), value)
        for line, golden in zip(lines, steps, strict=True)
        for name, value in golden.items()
        if name not in UNKNOWN
        and not abs(line.get(name, float("nan")) - value) <= tolerance(name, value)
    }
    assert not wrong, wrong


def golden_steps(shared, folder, case):
    text = (shared / "goldens" / folder / "goldens.json").read_text()
    return json.loads(text)["cases"][case]["steps"]


def test_the_cases_are_all_there_are(shared):
    text = (shared / "goldens" / "trl_llama" / "goldens.json").read_text()
    assert json.loads(text)["cases"].keys() == CASES.keys() and len(CASES) == 23


PADDED_IN_EVERY_CI = ("dpo", "dpo_ld", "dpo_wpo", "dpo_trdpo", "mpo", "sft")


@pytest.mark.parametrize(
    "case, layout",
    [(case, "prefix_shared") for case in sorted(CASES)]
    + [
        pytest.param(
            case,
            "padded",
            marks=() if case in PADDED_IN_EVERY_CI else pytest.mark.nightly,
        )
        for case in sorted(CASES)
    ],
)
def test_losses(shared, train, case, layout):
    steps = golden_steps(shared, "trl_llama", case)
    assert len(steps) == 4
    lines = train("trl_llama", 4, CASES[case] | {"data.layout": layout})
    check(lines, steps)


@pytest.mark.parametrize("layout", ["prefix_shared", "padded"])
@pytest.mark.parametrize("folder", ["trl_llama_bos", "trl_llama_chat"])
def test_tokens(shared, train, folder, layout):
    """BOS of a post-processor, and chats behind a template, tokenised jointly."""
    steps = golden_steps(shared, folder, "dpo")
    assert len(steps) == 2
    lines = train(folder, 2, {"data.join": "joint", "data.layout": layout})
    check(lines, steps)


@pytest.mark.parametrize("layout", ["prefix_shared", "padded"])
@pytest.mark.parametrize("case", ["fresh", "started"])
def test_adapters(shared, train, tmp_path, case, layout):
    """Four steps on an adapter, and what they leave is that of TRL and peft.

    The accuracy of the first step is of ties, which count a half here.
    """
    steps = golden_steps(shared, "trl_lora", case)
    assert len(steps) == 4
    del steps[0]["rewards/accuracies"]
    start = shared / "goldens" / "trl_lora" / case
    flags = {"model.adapter": start, "ref.path": "", "optimizer.lr": 5e-3}
    check(train("trl_lora", 4, flags | {"data.layout": layout}), steps)
    want = load_file(start.parent / f"trained_{case}" / "adapter_model.safetensors")
    first = load_file(start / "adapter_model.safetensors")
    got = load_file(tmp_path / "run" / "export" / "adapter_model.safetensors")
    assert got.keys() == want.keys() == first.keys()
    for name, value in want.items():
        moved = np.abs(value - first[name]).max()
        assert np.abs(got[name] - value).max() < 0.05 * moved, name


def test_a_wrong_value_is_noticed():
    """Two runs that differ by twice the tolerance in one key do not pass."""
    golden = {"loss": 0.5, "logps/chosen": -200.0, "grad_norm": 3.0}
    check([{"step": 1, **golden}], [golden])
    for name, value in golden.items():
        off = {**golden, name: value + 2 * tolerance(name, value)}
        with pytest.raises(AssertionError, match=name):
            check([{"step": 1, **off}], [golden])
    with pytest.raises(AssertionError, match="loss"):
        check([{"step": 1, "logps/chosen": -200.0, "grad_norm": 3.0}], [golden])
