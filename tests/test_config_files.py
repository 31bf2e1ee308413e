"""Configurations that come from files: values of other types, keys that lack."""

import re

import pytest
from ml_collections import ConfigDict

from dpo_jax import config_files, schema
from dpo_jax.configs import dpo
from dpo_jax.errors import ConfigError


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("seed", "0", "seed='0' is not of type int"),
        ("mesh", {"tensor": [1]}, "mesh.tensor='[1]' is not of type int"),
        ("data", {"train": 7}, "data.train='7' is not of type str"),
        ("loss", 5, "loss is a section, and cannot be '5'"),
        ("optimizer", {"lr": True}, "optimizer.lr='True' is not of type float"),
        ("optimizer", {"lr": 10**400}, f"optimizer.lr='1{'0' * 79}' is not of type fl"),
    ],
)
def test_a_saved_value_of_another_type_is_named(key, value, said):
    saved = dpo.get_config().to_dict() | {key: value}
    with pytest.raises(ConfigError, match=re.escape(said)):
        config_files.from_json(saved)


def unlocked():
    return dpo.get_config().unlock()


def without(key):
    config = unlocked()
    del config[key]
    return config


def given(**values):
    config = unlocked()
    for key, value in values.items():
        with config.ignore_type():
            config[key] = value
    return config


def test_a_whole_configuration_passes():
    config = unlocked()
    config.loss.beta = 1
    schema.with_room(
        config, ["loss.options.simpo.beta"] and {"loss.options.simpo.beta": 2.0}
    )
    config_files.check_whole(config, "own.py")


@pytest.mark.parametrize(
    "config, said",
    [
        (ConfigDict(), "own.py lacks awr.baseline, .*has every key"),
        (without("train"), "own.py lacks train.epochs"),
        (given(tarin=1), "own.py: config.tarin is not known; did you mean .*train"),
        (given(loss=None), "own.py: loss is a section, and cannot be 'None'"),
        (given(seed="x"), "own.py: seed='x' is not of type int"),
        (given(seed=len), "own.py: seed='<built-in.*is not of type int"),
    ],
)
def test_what_a_users_file_leaves_out_or_adds_is_named(config, said):
    with pytest.raises(ConfigError, match=said):
        config_files.check_whole(config, "own.py")
