"""Every configuration is locked, complete, checked, and says how to run it."""

import importlib
from pathlib import Path

import pytest

from dpo_jax import config as config_lib
from dpo_jax.configs import dpo, papers
from dpo_jax.errors import ConfigError
from dpo_jax.losses import LOSSES
from dpo_jax.wiring import checks
from dpo_jax.wiring.training import warmup_steps

ROOT = Path(__file__).parent.parent
FILES = sorted(path.stem for path in (ROOT / "configs").glob("[a-z]*.py"))
PRESETS = [("dpo", name) for name in dpo.PRESETS]
PRESETS += [("papers", name) for name in papers.PRESETS]
GIVEN = {"model.path": "M", "model.preset": "", "data.train": "x.jsonl"}


def load(name, arg=None):
    return importlib.import_module(f"dpo_jax.configs.{name}").get_config(arg)


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
    text = importlib.import_module(f"dpo_jax.configs.{name}").__doc__
    assert "2305.18290" in text and ("dpo_jax train" in text or "make " in text)


def test_presets_are_the_paper_and_the_repository():
    paper, repo = load("dpo"), load("dpo", "preset=reference_repo")
    assert (paper.loss.beta, paper.batch.pairs) == (0.1, 64)
    assert (paper.optimizer.name, paper.optimizer.lr) == ("rmsprop", 1e-6)
    assert paper.optimizer.warmup_steps == 150
    assert (repo.optimizer.lr, repo.optimizer.clip) == (5e-7, 10.0)
    assert (repo.data.max_tokens, repo.data.max_prompt_tokens) == (512, 256)


@pytest.mark.parametrize(("file", "preset"), PRESETS, ids=lambda value: value)
def test_preset_passes_every_check_that_reads_no_data(file, preset):
    """Among them: an option that the loss or the optimizer does not use is an error."""
    config = load(file, f"preset={preset}")
    assert config.is_locked
    config.update_from_flattened_dict(GIVEN)
    checks.check(config, LOSSES)


@pytest.mark.parametrize(
    ("preset", "lr", "tokens"),
    [
        ("olmo3_7b_instruct", 1e-6, 16384),
        ("olmo3_7b_think", 8e-8, 16384),
        ("olmo3_32b_instruct", 1e-6, 8192),
        ("olmo3_32b_think", 8e-8, 8192),
    ],
)
def test_olmo_3_is_trained_as_its_scripts_say(preset, lr, tokens):
    """`--dpo_loss_type dpo_norm --dpo_beta 5 --warmup_ratio 0.1`, 128 pairs a step."""
    config = config_lib.flat(load("papers", f"preset={preset}"))
    expected = {
        "loss.name": "dpo",
        "loss.normalize": "mean",
        "loss.beta": 5.0,
        "optimizer.lr": lr,
        "optimizer.schedule": "linear",
        "optimizer.warmup_share": 0.1,
        "optimizer.weight_decay": 0.0,
        "data.max_tokens": tokens,
        "batch.pairs": 128,
        "train.epochs": 1.0,
    }
    assert {key: config[key] for key in expected} == expected


@pytest.mark.parametrize("preset", papers.PRESETS)
def test_preset_says_whence_it_is_and_has_what_it_says(preset):
    source, keys, ours = papers.PRESETS[preset]
    assert "arXiv:" in source or preset == "cdpo"
    config = config_lib.flat(load("papers", f"preset={preset}"))
    for key, value in {**papers.CHOSEN, **keys}.items():
        assert config[key] == (list(value) if isinstance(value, tuple) else value)
    assert set(papers.open_keys(preset)) & set(keys) == set(ours)


def test_every_preset_of_dpo_is_described():
    for preset in dpo.PRESETS:
        assert f"* `{preset}`: " in (dpo.__doc__ or "")


def test_presets_differ_from_each_other():
    for file, known in (("dpo", dpo.PRESETS), ("papers", papers.PRESETS)):
        configs = {config_lib.fingerprint(load(file, f"preset={p}")) for p in known}
        assert len(configs) == len(known)


@pytest.mark.parametrize(
    ("preset", "beta", "gamma", "lr"),
    [
        ("mistral_base", 2.0, 1.6, 3e-7),
        ("mistral_instruct", 2.5, 0.25, 5e-7),
        ("llama3_base", 2.0, 1.0, 6e-7),
        ("llama3_instruct", 2.5, 1.375, 1e-6),
        ("llama3_instruct_v2", 10.0, 3.0, 1e-6),
        ("gemma2_it", 10.0, 5.0, 8e-7),
    ],
)
def test_simpo_as_published(preset, beta, gamma, lr):
    """Batch 128, 1 epoch, cosine, 10 % warm-up, Adam, 2048 tokens but for one."""
    config = load("papers", f"preset=simpo_{preset}")
    assert (config.loss.beta, config.loss.gamma, config.optimizer.lr) == (
        beta,
        gamma,
        lr,
    )
    tokens = 1024 if preset == "mistral_base" else 2048
    assert (config.batch.pairs, config.data.max_tokens) == (128, tokens)
    assert (config.optimizer.name, config.optimizer.schedule) == ("adamw", "cosine")
    assert config.optimizer.warmup_share == 0.1 and config.train.epochs == 1.0


def test_a_warm_up_is_steps_or_a_share():
    """10 % of 477 steps is 47.7: rounded up, 48."""
    config = load("papers", "preset=simpo_mistral_base")
    of = lambda given: warmup_steps(477, given.warmup_steps, given.warmup_share)  # noqa: E731
    assert of(config.optimizer) == 48 and of(load("dpo").optimizer) == 150
    both = load("dpo")  # its 150 steps are nobody's wish
    both.update_from_flattened_dict({**GIVEN, "optimizer.warmup_share": 0.1})
    config_lib.check(both)
    assert of(both.optimizer) == 48
    config.update_from_flattened_dict({**GIVEN, "optimizer.warmup_steps": 5})
    with pytest.raises(
        ConfigError, match=r"warmup_steps=5 and .*warmup_share=0.1 both"
    ):
        config_lib.check(config)
    config.optimizer.warmup_share = 1.0
    with pytest.raises(
        ConfigError, match=r"optimizer.warmup_share=1.0 is out of range"
    ):
        config_lib.check(config)


def test_unknown_arguments_are_refused():
    with pytest.raises(ConfigError, match="'papr_default'.*did you mean 'paper_def"):
        load("dpo", "preset=papr_default")
    with pytest.raises(ConfigError, match="'sipmo_gemma2_it'.*did you mean 'simpo_g"):
        load("papers", "preset=sipmo_gemma2_it")
    with pytest.raises(ConfigError, match="'stag'.*did you mean 'stage'"):
        load("quickstart", "stag=sft")
    with pytest.raises(ConfigError, match="takes no argument"):
        load("sft", "x=1")


def test_no_field_is_a_list_or_none():
    """ml_collections can override neither from the command line."""
    for name in FILES:
        for key, value in load(name).items():
            assert value is not None and not isinstance(value, list), (name, key)
