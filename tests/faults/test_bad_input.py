"""What a user gets wrong: one line, its numbers and names, a way out, no debris."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.sharding import SingleDeviceSharding
from safetensors.numpy import load_file, save_file

from dpo_jax.data.sources import sentiment
from dpo_jax.models import decoder, hf
from dpo_jax.models.spec import preset

ROOT = Path(__file__).parent.parent.parent
WORDS = len(sentiment.tokenizer())
CONFIG = "--config=configs/quickstart.py"
ROW = {"prompt": "this", "chosen": " movie was good", "rejected": " movie was bad"}


@pytest.fixture
def refuse(call, tmp_path):
    """Trains, wants a refusal with these words, and returns the line."""

    def refuse(code, words, *flags, workdir=tmp_path / "run", config=CONFIG):
        stood, before = workdir.exists(), sorted(workdir.rglob("*"))
        found, out, err = call("train", config, f"--workdir={workdir}", *flags)
        told = [line for line in err.splitlines() if line.startswith("error[")]
        assert len(told) == 1 and len(told[0].encode()) <= 1000, err
        assert found == code and told[0].startswith(f"error[{code}]: "), err
        for word in words:
            assert word in told[0], f"{word!r} is not in {told[0]!r}"
        assert "Traceback" not in err and not out
        if not stood:  # it may be a typing error, so no folder is made
            assert not workdir.exists()
            return told[0]
        new = set(workdir.rglob("*")) - set(before) - {workdir / "errors"}
        assert new and all(path.parent == workdir / "errors" for path in new), new
        assert any("Traceback" in path.read_text() for path in new)
        return told[0]

    return refuse


CONFIG_FAULTS = {
    "typo": (["--config.bta=0.2"], ["config.bta", "did you mean 'config.loss.beta'"]),
    "nested typo": (
        ["--config.loss.bta=.2", "--config.optimizer.learning_rate=1"],
        ["config.loss.bta", "did you mean 'config.loss.beta'", "learning_rate"],
    ),
    "type": (["--config.optimizer.lr=abc"], ["config.optimizer.lr='abc'", "float"]),
    "bool": (["--config.data.shuffle=maybe"], ["data.shuffle='maybe'", "bool"]),
    "section": (["--config.loss=dpo"], ["config.loss is a section", "loss.name"]),
    "unused by the loss": (
        ["--config.loss.name=ipo", "--config.loss.label_smoothing=0.1"],
        ["loss.label_smoothing=0.1", "loss.name='ipo'", "leave it at 0.0"],
    ),
    "unused by the optimizer": (
        ["--config.optimizer.b1=0.5"],
        ["optimizer.b1=0.5", "optimizer.name='rmsprop'", "leave it at 0.9"],
    ),
    "negative": (["--config.loss.beta=-0.1"], ["loss.beta=-0.1", "0 < loss.beta"]),
    "zero": (["--config.loss.beta=0"], ["loss.beta=0.0", "0 < loss.beta"]),
    "nan": (["--config.loss.beta=nan"], ["loss.beta=nan", "finite"]),
    "several": (
        ["--config.loss.beta=-1", "--config.optimizer.lr=-3", "--config.seed=-1"],
        ["loss.beta=-1.0", "optimizer.lr=-3.0", "seed=-1"],
    ),
    "loss and optimizer": (
        ["--config.loss.name=foo", "--config.optimizer.name=adm"],
        ["loss.name='foo'", "Known: alpha_dpo", "did you mean 'adamw'"],
    ),
    "no steps": (["--config.train.steps=0"], ["train.steps=0", "train.epochs=0"]),
    "layout": (["--config.data.layout=paded"], ["did you mean 'padded'"]),
    "schedule": (["--config.optimizer.schedule=cosin"], ["did you mean 'cosine'"]),
    "preset": (["--config.model.preset=tinny"], ["did you mean 'tiny'"]),
    "attention": (["--config.model.attention=xl"], ["did you mean 'xla'"]),
    "dtype": (["--config.model.dtype=float23"], ["did you mean 'float32'"]),
    "divergence": (["--config.loss.divergence=rev"], ["loss.divergence='rev'"]),
    "no flag": (["--wrkdir=x"], ["'--wrkdir'", "did you mean '--workdir'"]),
    "stray": (["stray"], ["'stray' is not a flag", "--name=value"]),
    "keep_best": (
        ["--config.checkpoint.keep_best=loss", "--config.eval.every_steps=0"],
        ["eval.every_steps=0"],
    ),
}


@pytest.mark.parametrize("case", CONFIG_FAULTS)
def test_configuration_is_refused(refuse, case):
    flags, words = CONFIG_FAULTS[case]
    refuse(2, words, *flags)


@pytest.mark.parametrize(
    "config, words",
    [
        ("configs/quickstart.py:stge=sft", ["'stge'", "did you mean 'stage'"]),
        ("configs/quickstart.py:stage=dop", ["stage='dop'", "did you mean 'dpo'"]),
        ("configs/quickstart.py:steps=ten", ["steps='ten'", "int"]),
        ("configs/nope.py", ["configs/nope.py", "no such"]),
        ("", ["--config is missing", "--config=dpo"]),
        ("qickstart", ["'qickstart'", "did you mean 'quickstart'", "FILE.py"]),
    ],
)
def test_configuration_file_or_argument_is_refused(refuse, config, words):
    refuse(2, words, config=f"--config={config}")


def test_configuration_file_that_fails_is_named(refuse, tmp_path):
    for text, word in (
        ("def get_config():\n  retrun 1", "SyntaxError"),
        ("", "get_co"),
    ):
        (tmp_path / "own.py").write_text(text)
        refuse(2, ["own.py", word], config=f"--config={tmp_path}/own.py")


def test_verb_and_missing_workdir(call, tmp_path):
    code, _, err = call("trian", f"--workdir={tmp_path / 'run'}")
    assert code == 2 and "did you mean 'train'" in err
    code, _, err = call("train", CONFIG)
    assert code == 2 and err == "error[2]: --workdir is missing: the run folder\n"


@pytest.mark.parametrize(
    "flags, words",
    [
        (["batch.pairs=10"], ["batch.pairs=10", "8 data shards", "use 8 or 16"]),
        (["mesh.data=16"], ["mesh.data=16", "there are 8"]),
        (["mesh.data=2", "mesh.tensor=4"], ["mesh.tensor=4", "2 kv", "use 1 or 2"]),
        (["mesh.data=1", "mesh.tensor=-1"], ["mesh.tensor=8", "use 1 or 2"]),
        (["mesh.data=-1", "mesh.fsdp=-1"], ["one of them may be -1"]),
        (["batch.pairs=8", "batch.microbatches=9"], ["batch.microbatches=9", "most 8"]),
    ],
)
def test_devices_are_refused(refuse, flags, words):
    refuse(5, words, *[f"--config.{flag}" for flag in flags])


@pytest.fixture
def model(tmp_path):
    """A folder with a llama of random weights and a tokenizer that fits it."""
    spec = preset("tiny", vocab=WORDS, max_positions=32)
    place = SingleDeviceSharding(jax.devices()[0])
    params = jax.device_put(decoder.init_params(spec, jax.random.key(0)), place)
    folder = tmp_path / "model"
    hf.save_params(params, spec, folder, token_ids={"eos_token_id": 2})
    sentiment.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path):
    """Writes rows to a file; returns the flags that train on them."""

    def data(*rows):
        path = tmp_path / "rows.jsonl"
        text = "".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows)
        path.write_text(text)
        keys = {"data.train": path, "data.eval": "", "eval.rollouts": 0}
        return [f"--config.{key}={value}" for key, value in keys.items()]

    return data


def of_model(folder):
    return [f"--config.model.path={folder}", "--config.model.preset="]


def test_rows_are_refused(refuse, data, model):
    """C1, C2, C3: the file, the line, the column, the types, the counts."""
    good = [ROW] * 4
    flags = of_model(model)
    refuse(3, ["rows.jsonl:5", "JSON"], *flags, *data(*good, '{"prompt": \n'))
    renamed = {"prompt": "a", "chosn": "b", "rejected": "c"}
    refuse(3, ["rows.jsonl:5", "did you mean"], *flags, *data(*good, renamed))
    null = {**ROW, "rejected": None}
    refuse(3, ["rows.jsonl:5", "rejected"], *flags, *data(*good, null))
    same = {**ROW, "rejected": ROW["chosen"]}
    words = ["2 of 6", "1 empty", "1 identical", "data.on_bad_row='drop'"]
    refuse(3, words, *flags, *data(*good, same, {**ROW, "chosen": ""}))
    refuse(3, ["nope.jsonl"], *flags, "--config.data.train=nope.jsonl")


def test_missing_folders_are_named(refuse):
    refuse(4, ["model.path='/nope'"], *of_model("/nope"))
    refuse(4, ["tokenizer.path='/nope'"], "--config.tokenizer.path=/nope")
    refuse(4, ["/nope"], "--config.ref.path=/nope")


def test_weights_that_are_no_weights(refuse, data, model):
    """D1."""
    flags = [*of_model(model), *data(*[ROW] * 8)]
    file = model / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1000])
    refuse(4, ["truncated", str(len(whole))], *flags)
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    refuse(4, ["git-LFS pointer", "git lfs pull"], *flags)
    file.write_bytes(b"<!DOCTYPE html><html></html>")
    refuse(4, ["web page"], *flags)


def test_tensors_that_do_not_fit_are_all_named(refuse, data, model):
    """D2, of the policy and of the reference."""
    file = model / "model.safetensors"
    tensors = load_file(file)
    tensors["model.extra.weight"] = tensors["model.norm.weight"]
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:, :-1].copy()
    del tensors["model.norm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    words = ["model.norm.weight", "model.extra.weight", "lm_head.weight", "missing"]
    refuse(4, words, *of_model(model), *data(*[ROW] * 8))
    refuse(4, words, f"--config.ref.path={model}")


def test_tokenizers_that_do_not_fit(refuse, data, model, tmp_path):
    """D3."""
    flags = [*of_model(model), *data(*[ROW] * 8)]
    larger = sentiment.tokenizer()
    larger.add_tokens(["<new>"])
    larger.save_pretrained(tmp_path / "larger")
    words = [f"id {WORDS}", f"{WORDS} rows"]
    refuse(4, words, *flags, f"--config.tokenizer.path={tmp_path / 'larger'}")
    endless = sentiment.tokenizer()
    endless.eos_token = None
    endless.save_pretrained(tmp_path / "endless")
    refuse(4, ["EOS"], *flags, f"--config.tokenizer.path={tmp_path / 'endless'}")
    prompt = [{"role": "user", "content": "this"}]
    answers = [[{"role": "assistant", "content": word}] for word in ("good", "bad")]
    chat = {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}
    words = ["chat template", "data.chat_template"]
    refuse(4, words, *of_model(model), *data(*[chat] * 8))


def test_pickles_and_remote_code_are_refused(refuse, data, model, tmp_path):
    """E2: the canary that the pickle would make is never made."""
    flags = [*of_model(model), *data(*[ROW] * 8)]
    config = json.loads((model / "config.json").read_text())
    (model / "model.safetensors").rename(tmp_path / "kept")
    canary = tmp_path / "canary"
    code = f"cos\nsystem\n(S'touch {canary}'\ntR.".encode()
    (model / "pytorch_model.bin").write_bytes(code)
    refuse(4, ["refuses pickle", "pytorch_model.bin"], *flags)
    (tmp_path / "kept").rename(model / "model.safetensors")
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Model"}
    (model / "config.json").write_text(json.dumps(config))
    (model / "evil.py").write_text(f"open({str(canary)!r}, 'w')\n")
    refuse(4, ["auto_map", "remote code"], *flags)
    assert not canary.exists()


def test_changed_beta_is_refused_on_relaunch(refuse, runs, straight, tmp_path):
    """A12; what may change does not complain: the finished run stays finished."""
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    flags = runs.flags(run, loss__beta=0.2)[2:]
    words = ["loss.beta: 1.0 → 0.2", "--fork", "another --workdir"]
    refuse(8, words, *flags, workdir=run)


def test_finished_run_is_left_as_it_is(call, runs, straight, tmp_path):
    """A11, and A12: these keys may change."""
    before = {path: path.stat().st_mtime_ns for path in straight.rglob("*")}
    changed = {
        "mesh__fsdp": 2,
        "batch__microbatches": 2,
        "log__every_steps": 3,
        "eval__every_steps": 4,
        "checkpoint__keep": 5,
        "model__remat": "block",
    }
    for keys in ({}, changed):
        code, out, _ = call("train", *runs.flags(straight, **keys))
        assert code == 0 and "already complete" in out
    assert {path: path.stat().st_mtime_ns for path in straight.rglob("*")} == before


def test_run_without_its_configuration_is_refused(refuse, straight, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    (run / "config.json").unlink()
    refuse(8, ["without config.json", "another --workdir"], workdir=run)
    (run / "config.json").write_text("{")
    refuse(8, ["config.json", "not a JSON object"], workdir=run)


def test_live_run_is_refused(refuse, runs, tmp_path):
    """A10: the lock's owner is named; the first run's files are not touched."""
    run = tmp_path / "run"
    run.mkdir()
    owner = (
        "import sys, time\nfrom dpo_jax.train import runfolder\n"
        "with runfolder.claim(sys.argv[1], first=True):\n  print('held', flush=True)\n"
        "  sys.stdin.read()"
    )
    command = [sys.executable, "-c", owner, str(run)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout.readline() == "held\n"
        words = [f"pid {process.pid} on {socket.gethostname()} since 20", "in use"]
        flags = runs.flags(run)[2:]
        refuse(8, words, *flags, workdir=run)
        process.kill()
    assert f"pid {process.pid}" in (run / ".lock").read_text()


def test_run_folder_that_cannot_be_made(call, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = call("train", CONFIG, f"--workdir={tmp_path}/file/run")
    assert code == 7 and f"{tmp_path}/file/run" in err


@pytest.mark.parametrize("flag, code", [("bta=1", 2), ("batch.pairs=3", 5)])
def test_in_a_process_of_its_own(tmp_path, flag, code):
    """The exit code reaches the shell; the line is the last of stderr."""
    verb = [sys.executable, "-m", "dpo_jax", "train", CONFIG, f"--workdir={tmp_path}"]
    done = subprocess.run(
        [*verb, f"--config.{flag}"],
        cwd=ROOT,
        env={**os.environ, "DPO_JAX_CPU_DEVICES": "8"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error[{code}]: "), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["errors"]
