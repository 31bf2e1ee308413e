"""Model folders of gs:// are downloaded once for each state of their objects."""

import pytest

from dpo_jax.errors import ModelError
from dpo_jax.models import files, stored

URL = "gs://bucket/out/sft/export"


@pytest.fixture
def put(store, fake_gcs):
    """Writes a file to the memory behind paths, and lists it over HTTP."""

    def write(name, text):
        path = store(URL) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        fake_gcs.change("POST", f"bucket/out/sft/export/{name}", {}, text.encode())

    return write


def test_a_folder_is_fetched_once_and_again_when_it_changes(put, tmp_path, store):
    put("config.json", "{}")
    put("model.safetensors", "weights")
    put("training.bin", "a pickle")
    folder = stored.fetched(URL, files.WANTED, tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    (store(URL) / "model.safetensors").unlink()  # it is not read again
    assert stored.fetched(URL, files.WANTED, tmp_path) == folder
    put("model.safetensors", "others")
    other = stored.fetched(URL, files.WANTED, tmp_path)
    assert other != folder and (other / "model.safetensors").read_text() == "others"
    assert (folder / "model.safetensors").read_text() == "weights"
    assert len(list(tmp_path.iterdir())) == 2  # nothing half is left


def test_a_file_that_changes_meanwhile_is_fetched_again(put, tmp_path, monkeypatch):
    put("config.json", "{}")
    download, times = stored._download, []

    def slow(url, path):
        download(url, path)
        times.append(url)
        if len(times) == 1:
            put("config.json", '{"new": 1}')

    monkeypatch.setattr(stored, "_download", slow)
    folder = stored.fetched(URL, files.WANTED, tmp_path)
    assert (folder / "config.json").read_text() == '{"new": 1}' and len(times) == 2


def test_model_path_takes_gs(put, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "CACHE", tmp_path)
    monkeypatch.setattr(stored.fetched, "__defaults__", (tmp_path,))
    put("config.json", '{"model_type": "gpt2"}')
    assert files.read_config(URL) == {"model_type": "gpt2"}
    with pytest.raises(ModelError, match="holds no files of a model"):
        files.resolve("gs://bucket/nothing")
