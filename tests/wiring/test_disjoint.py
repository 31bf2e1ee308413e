"""A split by prompts, and what a reward model says of the held-out side."""

import json
import math

import jax
import numpy as np
import pytest

from dpo_jax import build, schema
from dpo_jax.data.sources import sentiment
from dpo_jax.errors import ConfigError, DataError
from dpo_jax.models import hf
from dpo_jax.models.decoder import Decoder
from dpo_jax.sharding.mesh import make_mesh
from dpo_jax.wiring import data as data_wiring
from dpo_jax.wiring import scoring
from dpo_jax.wiring.reading import request_of
from dpo_jax.wiring.weights import load_params

TOKENIZER = sentiment.tokenizer()
PROMPTS = ["the movie was", "i loved the", "the plot", "the film was very", "the cast"]


def configured(file, **given):
    config = schema.base()
    config.update_from_flattened_dict(
        {
            "objective": "reward",
            "loss.name": "bradley_terry",
            "ref.mode": "none",
            "model.preset": "tiny",
            "tokenizer.path": str(file.parent / "tokenizer"),
            "data.train": str(file),
            "data.eval": f"{file}[:2]",
            "data.disjoint": True,
            "data.max_tokens": 16,
            "data.max_prompt_tokens": 8,
            "batch.pairs": 8,
            "optimizer.name": "adamw",
            "optimizer.lr": 1e-3,
            "optimizer.warmup_steps": 0,
            **given,
        }
    )
    return config.lock()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Twenty pairs, four of each of five prompts that take turns."""
    folder = tmp_path_factory.mktemp("rows")
    TOKENIZER.save_pretrained(folder / "tokenizer")
    texts = [("good", "bad"), ("great", "dull"), ("fun", "weak"), ("superb", "awful")]
    rows = [
        {"prompt": prompt, "chosen": f" {chosen} .", "rejected": f" {rejected} ."}
        for chosen, rejected in texts
        for prompt in PROMPTS
    ]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prompts_of(records):
    return {tuple(record.prompt.tolist()) for record in records}


def test_no_prompt_lies_on_both_sides(file):
    """Of 20 rows, 8 have one of the two prompts of the first two rows."""
    data = data_wiring.load_data(request_of(configured(file)), TOKENIZER)
    assert len(data.train) == 12 and len(data.eval) == 2
    assert not prompts_of(data.train) & prompts_of(data.eval)
    assert data.sources_of("train").sizes == (12,)
    assert data_wiring.rows_kept(data.report["train"]) == 12
    assert (
        "8 rows with prompts of data.eval left out" in data.report["train"]["summary"]
    )
    mixed = configured(file, **{"data.disjoint": False})
    whole = data_wiring.load_data(request_of(mixed), TOKENIZER)
    assert len(whole.train) == 20 and whole.fingerprint != data.fingerprint
    kept = [r for r in whole.train if tuple(r.prompt) not in prompts_of(data.eval)]
    for one, other in zip(kept, data.train, strict=True):
        assert one.index == other.index
        assert [r.tolist() for r in one.responses] == [
            r.tolist() for r in other.responses
        ]


def test_a_split_that_leaves_nothing_is_refused(file, tmp_path):
    config = configured(file, **{"data.eval": f"{file}[:4]"})
    with pytest.raises(DataError, match="data.disjoint leaves 4 of 20 rows"):
        build.run(config, tmp_path / "run")
    config = configured(file, **{"data.eval": ""})
    with pytest.raises(ConfigError, match="data.disjoint=True is not used"):
        build.run(config, tmp_path / "run")


@pytest.mark.losses
def test_a_reward_model_starts_at_ln_2_and_keeps_its_best_step(file, tmp_path):
    """With a head of zeros; accuracy, calibration and margin are of prompts unseen."""
    given = {"model.score_start": "zero", "train.steps": 6, "eval.every_steps": 1}
    given |= {"checkpoint.keep_best": "scores/accuracies", "checkpoint.keep": 1}
    given |= {"checkpoint.every_steps": 1, "optimizer.lr": 1e-2}
    build.run(configured(file, **given), tmp_path / "run")
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    lines = list(map(json.loads, text.splitlines()))
    first = next(line for line in lines if line["split"] == "train")
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    held_out = [line for line in lines if line["split"] == "eval"]
    shares = {"scores/accuracies", "scores/brier", "scores/calibration_error"}
    for line in held_out:
        assert shares | {"scores/margins"} <= line.keys()
        assert all(0 <= line[name] <= 1 for name in shares)
    accuracy = {line["step"]: line["scores/accuracies"] for line in held_out}
    steps = {int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()}
    saved = {step: value for step, value in accuracy.items() if step}
    best = max(saved.values())
    assert steps >= {6} and any(saved[step] == best for step in steps)


@pytest.mark.parity
def test_transformers_reads_the_scores_of_a_runs_export(file, tmp_path):
    """Of a text that ended and of one that was cut, padded and alone."""
    torch = pytest.importorskip("torch")
    import transformers

    build.run(configured(file, **{"train.steps": 2}), tmp_path / "run")
    folder = tmp_path / "run" / "export"
    prompt = TOKENIZER("the movie was")["input_ids"]
    ids = [[[20, 9, TOKENIZER.eos_token_id], [21]]]
    mesh = make_mesh(data=8, fsdp=1, tensor=1)
    spec = hf.scalar_spec_of(hf.read_config(folder))
    with jax.set_mesh(mesh):
        scorer = scoring.make_scorer(
            Decoder(spec),
            {"path": str(folder), "dtype": ""},
            mesh,
            batch=8,
            vocab=spec.vocab,
            longest=16,
            tokenizers=[TOKENIZER],
        )
        assert scorer is not None
        params = load_params(scorer.model, mesh, seed=0)
        ours = scorer(params, [np.array(prompt)], ids, width=4)[0]
    auto = transformers.AutoModelForSequenceClassification
    model = auto.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [{"input_ids": [*prompt, *sample]} for sample in ids[0]]
    batch = tokenizer.pad(rows, return_tensors="pt")
    assert batch["attention_mask"].sum() < batch["attention_mask"].numel()
    with torch.no_grad():
        theirs = model(**batch).logits.numpy()[:, 0]
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)
    assert abs(ours[0] - ours[1]) > 1e-4
