"""Every configuration is locked, complete, checked, and says how to run it."""

import importlib
from pathlib import Path

import pytest

from dpo_jax import config as config_lib
from dpo_jax.errors import ConfigError

FILES = sorted(
    p.stem
    for p in (Path(__file__).parent.parent / "configs").glob("*.py")
    if p.stem != "parts"
)
GIVEN = {"model.path": "M", "model.preset": "", "data.train": "x.jsonl"}


def load(name, arg=None):
    return importlib.import_module(f"configs.{name}").get_config(arg)


@pytest.mark.parametrize("name", FILES)
def test_is_locked_and_passes_its_own_checks(name):
    config = load(name)
    assert config.is_locked
    with pytest.raises((KeyError, AttributeError)):
        config.bta = 0.1
    config.update_from_flattened_dict(GIVEN)
    config_lib.check(config)


@pytest.mark.parametrize("name", FILES)
def test_has_every_key_of_the_others(name):
    assert set(config_lib.flat(load(name))) == set(config_lib.flat(load("dpo")))


@pytest.mark.parametrize("name", FILES)
def test_docstring_gives_a_source_and_a_command(name):
    text = importlib.import_module(f"configs.{name}").__doc__
    assert "2305.18290" in text and ("dpo_jax train" in text or "make " in text)


def test_presets_are_the_paper_and_the_repository():
    paper, repo = load("dpo"), load("dpo", "preset=reference_repo")
    assert (paper.loss.beta, paper.batch.pairs) == (0.1, 64)
    assert (paper.optimizer.name, paper.optimizer.lr) == ("rmsprop", 1e-6)
    assert paper.optimizer.warmup_steps == 150
    assert (repo.optimizer.lr, repo.optimizer.clip) == (5e-7, 10.0)
    assert (repo.data.max_tokens, repo.data.max_prompt_tokens) == (512, 256)


def test_unknown_arguments_are_refused():
    with pytest.raises(ConfigError, match="'papr_default'.*did you mean 'paper_def"):
        load("dpo", "preset=papr_default")
    with pytest.raises(ConfigError, match="'stag'.*did you mean 'stage'"):
        load("quickstart", "stag=sft")
    with pytest.raises(ConfigError, match="takes no argument"):
        load("sft", "x=1")


def test_no_field_is_a_list_or_none():
    """ml_collections can override neither from the command line."""
    for name in FILES:
        for key, value in load(name).items():
            assert value is not None and not isinstance(value, list), (name, key)
