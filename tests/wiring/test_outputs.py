"""What an export says of itself, and where it may go."""

import importlib

import huggingface_hub
import pytest

from dpo_jax.errors import WriteError
from dpo_jax.losses import LOSSES
from dpo_jax.wiring import card, outputs


@pytest.fixture
def config():
    config = importlib.import_module("dpo_jax.configs.dpo").get_config()
    config.model.path = "org/base"
    config.data.train = "pairs.jsonl"
    return config


def test_card_says_how_the_policy_was_made(config):
    text = card.model_card(config, 36, LOSSES)
    for said in ("org/base", "pairs.jsonl", "beta 0.1", "36 of 64 rows", "lr 1e-06"):
        assert said in text, said
    assert "the initial policy" in text and card.commit() in text
    assert text.startswith("---\nlibrary_name: transformers\n")


def test_card_of_a_loss_that_the_table_lacks(config):
    config.loss.name = "mine"
    assert "| loss | mine |" in card.model_card(config, 1, LOSSES)


def test_code_is_named_by_its_own_repository_only(monkeypatch, tmp_path):
    assert card.commit().startswith(("commit ", "version "))
    monkeypatch.setattr(card, "__file__", str(tmp_path / "card.py"))
    assert card.commit().startswith("version ")


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
    assert outputs.push(tmp_path, "me/policy") == "https://hub/me/policy"
    assert Hub.asked == [("me/policy", ["config.json"])]


def test_push_without_a_network_says_the_way_out(monkeypatch, tmp_path):
    def refuse(self, repository, private, exist_ok):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "create_repo", refuse)
    with pytest.raises(WriteError, match="me/policy.*no route.*hf auth login"):
        outputs.push(tmp_path, "me/policy")


def test_upload_copies_every_file(tmp_path):
    source = tmp_path / "a"
    source.mkdir()
    (source / "x.bin").write_bytes(b"\x00\x01")
    outputs.upload(source, tmp_path / "b" / "c")
    assert (tmp_path / "b" / "c" / "x.bin").read_bytes() == b"\x00\x01"
