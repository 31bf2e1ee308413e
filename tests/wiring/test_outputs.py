"""What an export says of itself, and where it may go."""

import importlib
import json
from types import SimpleNamespace
from typing import Any
from unittest import mock

import huggingface_hub
import jax
import pytest
import tokenizers
import transformers

from dpo_jax import files
from dpo_jax.data.sources import sentiment
from dpo_jax.errors import ConfigError, WriteError
from dpo_jax.losses import LOSSES
from dpo_jax.models import lora, scalar
from dpo_jax.models.decoder import init_params
from dpo_jax.models.spec import preset
from dpo_jax.wiring import exporting, outputs

WHOLE = mock.Mock(adapters=None)  # of a policy whose weights are all trained


@pytest.fixture
def config():
    config = importlib.import_module("dpo_jax.configs.dpo").get_config()
    config.model.path = "org/base"
    config.data.train = "pairs.jsonl"
    return config


def test_card_says_how_the_policy_was_made(config):
    text = outputs.model_card(config, 36, LOSSES, WHOLE)
    for said in ("org/base", "pairs.jsonl", "beta 0.1", "36 of 64 rows", "lr 1e-06"):
        assert said in text, said
    assert "the initial policy" in text and outputs.commit() in text
    assert text.startswith("---\nlibrary_name: transformers\n")


def test_card_of_an_adapter_names_its_rank_and_targets(config):
    assert "adapter" not in outputs.model_card(config, 1, LOSSES, WHOLE)
    sites = [
        lora.Site(
            f"attn/{x}", f"model.layers.{{i}}.self_attn.{x}_proj", "T", 8, (8,), r, 8
        )
        for x, r in (("q", 4), ("v", 4), ("o", 2))
    ]
    model = mock.Mock(adapters=lora.Adapters(tuple(sites), 1))
    text = outputs.model_card(config, 1, LOSSES, model)
    assert (
        "| adapter | LoRA of rank 4, alpha 8, on self_attn.q_proj, self_attn.v_proj; "
        "LoRA of rank 2, alpha 8, on self_attn.o_proj |"
    ) in text


def test_card_of_a_loss_that_the_table_lacks(config):
    config.loss.name = "mine"
    assert "| loss | mine |" in outputs.model_card(config, 1, LOSSES, WHOLE)


def test_code_is_named_by_its_own_repository_only(monkeypatch, tmp_path):
    assert outputs.commit().startswith(("commit ", "version "))
    monkeypatch.setattr(outputs, "__file__", str(tmp_path / "outputs.py"))
    assert outputs.commit().startswith("version ")


class Hub:
    """Stands for the hub's client and remembers what it was asked."""

    asked: list = []

    def create_repo(self, repository, private, exist_ok):
        assert private and exist_ok
        return f"https://hub/{repository}"

    def upload_folder(self, repo_id, folder_path):
        self.asked.append((repo_id, sorted(p.name for p in folder_path.iterdir())))


def test_push_uploads_the_folder(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert exporting.push(tmp_path, "me/policy") == "https://hub/me/policy"
    assert Hub.asked == [("me/policy", ["config.json"])]


def test_push_without_a_network_says_the_way_out(monkeypatch, tmp_path):
    def refuse(self, repository, private, exist_ok):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "create_repo", refuse)
    with pytest.raises(WriteError, match="me/policy.*no route.*hf auth login"):
        exporting.push(tmp_path, "me/policy")


def test_card_hides_passwords(config):
    config.data.train = "https://user:secret@host/rows.jsonl"
    text = outputs.model_card(config, 1, LOSSES, WHOLE)
    assert "secret" not in text and "https://***@host/rows.jsonl" in text


@pytest.mark.parametrize(
    ("pad", "special", "expected"),
    [
        ("<pad>", [], "<pad>"),
        ("<eos>", ["<|my_pad_id|>"], "<|my_pad_id|>"),
        ("<bos>", ["<|my_pad_id|>"], "<|my_pad_id|>"),
        (None, ["<|my_pad_id|>"], "<|my_pad_id|>"),
        ("<eos>", [], None),
    ],
)
def test_the_pad_token_of_a_reward_model_ends_no_text(pad, special, expected, tmp_path):
    """transformers reads a score at the last token that is not the pad token."""
    words = ["<eos>", "<bos>", *(["<pad>"] if pad == "<pad>" else []), *special, "a"]
    bare = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, "a")
    )
    given = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bare,
        eos_token="<eos>",
        bos_token="<bos>",
        pad_token=pad,
        additional_special_tokens=special,
    )
    number = None if expected is None else words.index(expected)
    other, stated = exporting.scored_at_the_end(given)
    assert stated == {"pad_token_id": number} and given.pad_token == pad
    assert (other or given).pad_token == (expected or pad)
    spec = scalar.scalar_spec(preset("tiny", vocab=8, max_positions=8))
    params = init_params(spec, jax.random.key(0))
    model: Any = SimpleNamespace(spec=spec, folder=None, adapters=None)
    for name in ("drawn", "copied"):
        out = tmp_path / name
        exporting.export(model, params, given, out, card="", own_tokenizer=False)
        config = json.loads((out / "config.json").read_bytes())
        assert config["pad_token_id"] == number
        saved = transformers.AutoTokenizer.from_pretrained(out)
        assert saved.pad_token == (expected or pad)
        config["pad_token_id"] = 0  # as folders do that pad with EOS
        (out / "config.json").write_text(json.dumps(config))
        given.save_pretrained(out)
        model.folder = out


def policy(folder=None):
    """A tiny policy of a preset, or of the folder that it was exported to."""
    spec = preset("tiny", vocab=61, max_positions=32)
    model: Any = SimpleNamespace(spec=spec, folder=folder, adapters=None)
    return model, init_params(spec, jax.random.key(0))


def export(target, folder=None):
    model, params = policy(folder)
    exporting.export(
        model,
        params,
        sentiment.tokenizer(),
        target,
        card="# card",
        own_tokenizer=folder is None,
    )


def check(target, run, **options):
    exporting.check_target(target, run, **{"overwrite": False, **options})


def test_an_export_replaces_itself_only(tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    check(out, run)
    export(out)
    check(out, run)
    (out / "notes.txt").write_text("mine")  # nothing that an export writes
    check(out, run)
    (out / "config.json").write_text('{"model_type": "precious"}')
    (out / "model-00001-of-00002.safetensors").write_text("precious")
    with pytest.raises(ConfigError, match="--overwrite") as caught:
        check(out, run)
    assert f"{out} holds config.json, model-00001-of-00002.safe" in str(caught.value)
    check(out, run, overwrite=True)
    (out / exporting.WRITTEN).write_text("[]")
    with pytest.raises(ConfigError, match="README.md, config.json, model"):
        check(out, run)


def test_a_link_out_of_the_run_folder(tmp_path):
    run, precious = tmp_path / "run", tmp_path / "precious"
    run.mkdir()
    precious.mkdir()
    exporting.check_own_target(run)
    (run / "export").symlink_to(precious)
    with pytest.raises(ConfigError, match=f"run/export is a link to {precious}"):
        exporting.check_own_target(run)
    with pytest.raises(ConfigError, match=f"is a link to {precious}; name another"):
        check(run / "export", run)
    check(run / "export", run, overwrite=True)
    check(precious, run)
    (tmp_path / "alias").symlink_to(run)  # the run folder itself may be reached by one
    (run / "export").unlink()
    check(tmp_path / "alias" / "export", tmp_path / "alias")


def test_the_folder_that_a_model_was_read_from_is_not_written(tmp_path):
    export(tmp_path / "base")
    before = (tmp_path / "base" / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="base is the folder that the model was read"):
        export(tmp_path / "base", tmp_path / "base")
    export(tmp_path / "other", tmp_path / "base")
    assert (tmp_path / "other" / "model.safetensors").read_bytes() == before


def test_an_export_to_a_store_ends_with_its_configuration(store, monkeypatch):
    names, put = [], files.write_whole

    def write(path, data):
        names.append(path.name)
        put(path, data)

    monkeypatch.setattr(files, "write_whole", write)
    target = store("gs://bucket/export")
    export(target)
    assert names[-2:] == ["config.json", exporting.WRITTEN] and len(names) > 4
    assert not exporting.foreign_files(target)
    (target / "config.json").write_text("{}")
    assert exporting.foreign_files(target) == ["config.json"]


@pytest.mark.parametrize("data", [b"", b"[", b"\xff"])
def test_timing_of_no_training(tmp_path, data):
    (tmp_path / "timing.json").write_bytes(data)  # of a launch before
    outputs.write_timing(tmp_path, outputs.Summary(3, 1, False, {}, {}, {}))
    found = json.loads((tmp_path / "timing.json").read_text())
    assert found == {"steps": 2, "seconds": {}, "peak": None, "programs": {}}


def test_a_bad_batch_is_written_by_one_process(tmp_path, monkeypatch):
    """Two writers of one name collide: the loser once ended with 7, not with 6."""
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert outputs.bad_batch(tmp_path, 15, [4, 2]) == "rows [4, 2] of data.train"
    assert not list(tmp_path.rglob("*"))
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    outputs.bad_batch(tmp_path, 15, [4, 2])
    assert json.loads((tmp_path / "errors" / "batch15.json").read_text())["ids"] == [
        4,
        2,
    ]
