"""Errors of libraries: those of the user's machine, and those of this program."""

import importlib
import json

import pytest
from etils import epath

from dpo_jax import cli
from dpo_jax.cli import blame
from dpo_jax.errors import ConfigError, DeviceError


def raised(call, *arguments):
    """Returns what a call raises."""
    with pytest.raises(Exception) as error:
        call(*arguments)
    return error.value


def library(folder, monkeypatch, text):
    """Writes a library that fails when it is imported."""
    (folder / "library_that_fails.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    return raised(importlib.import_module, "library_that_fails")


def test_a_variable_that_a_library_cannot_read_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("THEIR_TIMEOUT", "abc")
    text = "import os\nint(os.environ['THEIR_TIMEOUT'])"
    error = library(tmp_path, monkeypatch, text)
    assert cli.report_error(error, []) == 2
    said = capsys.readouterr().err
    assert "error[2]: a library cannot be imported (ValueError" in said
    assert said.endswith("look at THEIR_TIMEOUT\n")


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    told = blame.of_machine(library(tmp_path, monkeypatch, "import nowhere_at_all"))
    assert isinstance(told, ConfigError)
    assert "No module named 'nowhere_at_all'" in str(told)


def test_an_address_of_no_store_is_named():
    told = blame.of_machine(raised(epath.Path, "http://host/x"))
    assert isinstance(told, ConfigError) and "at 'http://'…; give a local" in str(told)


def test_an_address_that_a_store_refuses_is_told(capsys):
    """The library raises what it likes: here a ValueError of the hub's."""
    error = raised(lambda: list(epath.Path("hf://").glob("a.*")))
    assert isinstance(error, ValueError) and cli.report_error(error, []) == 2
    assert "a path cannot be used (" in capsys.readouterr().err


def test_platforms_without_devices_are_named(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "foo")
    told = blame.of_machine(RuntimeError("Unable to initialize backend 'foo': no"))
    assert isinstance(told, DeviceError) and "JAX_PLATFORMS='foo'" in str(told)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: Out of memory")]
)
def test_a_full_memory_says_what_takes_less(error):
    told = blame.of_machine(error)
    assert isinstance(told, DeviceError) and "raise batch.microbatches" in str(told)


def test_a_path_that_cannot_be_opened_is_named(tmp_path, capsys):
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / ("x" * 5000), tmp_path / "loop"):
        assert cli.report_error(raised(path.read_text), []) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error[2]: '{str(path)[:100]}"[:60])
        assert said.endswith("; name another\n") and len(said) < 500


def test_a_panic_of_a_library_is_one_line(monkeypatch, capsys):
    """It is no Exception; here a tokenizer of a damaged table of characters panics."""
    from tokenizers import Tokenizer, models

    tree = json.loads(Tokenizer(models.BPE()).to_str())
    tree["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}

    def main(rest):
        Tokenizer.from_str(json.dumps(tree))

    monkeypatch.setattr("dpo_jax.cli.show.main", main)
    assert cli.main(["dpo_jax", "show"]) == 4
    said = capsys.readouterr().err
    assert "error[4]: tokenizers or safetensors cannot go on (Precompiled: " in said
    assert blame.of_panic(KeyboardInterrupt()) is None


def test_a_bug_of_our_own_stays_one():
    assert blame.of_machine(raised(blame.of_machine, None)) is None
    assert blame.of_machine(KeyError("x")) is None
    own = ImportError("cannot import name 'x'", name="dpo_jax.build")
    assert blame.of_machine(own) is None
    assert blame.of_machine(raised({}.__getitem__, "x")) is None
