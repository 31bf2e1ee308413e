"""Configurations: arguments, unknown keys, checks, fingerprints, comparisons."""

import json
import math

import pytest

from dpo_jax import config as config_lib
from dpo_jax import config_files, schema
from dpo_jax.configs import dpo
from dpo_jax.errors import ConfigError
from dpo_jax.schema import KEYS, RELAUNCH

CHANGED = {"data.train": "rows.jsonl", "model.path": "M"}


def configured(**changed):
    config = dpo.get_config()
    named = {key.replace("__", "."): value for key, value in changed.items()}
    config.update_from_flattened_dict({**CHANGED, **named})
    return config


def test_parse_arg_keeps_the_types_of_the_defaults():
    parse = config_lib.parse_arg
    assert parse(None, steps=4) == parse("", steps=4) == {"steps": 4}
    found = parse("steps=7,lr=2,name=a=b,fast", steps=1, lr=0.5, name="", fast=False)
    assert found == {"steps": 7, "lr": 2.0, "name": "a=b", "fast": True}
    assert isinstance(found["lr"], float)


@pytest.mark.parametrize(
    "arg, words",
    [
        ("stps=1", "'stps' is not known; did you mean 'steps'"),
        ("steps=1.5", "steps='1.5' is not of type int"),
        ("steps=True", "not of type int"),
        ("fast=2", "fast='2' is not of type bool"),
        ("lr=__import__('os')", "not of type float"),
    ],
)
def test_parse_arg_refuses(arg, words):
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        config_lib.parse_arg(arg, steps=1, lr=0.5, fast=False)


def test_flat_and_json_agree_on_tuples():
    nested = {"a": {"b": (1, 2)}, "c": 3}
    assert config_lib.flat(nested) == {"a.b": [1, 2], "c": 3}
    read = json.loads(config_lib.to_json(configured()))
    assert config_lib.changes(read, configured().to_dict()) == []


def test_changes_lists_what_a_relaunch_may_not_change():
    old, new = configured(), configured(loss__beta=0.2, seed=3, mesh__fsdp=2)
    assert config_lib.changes(old, new) == ["loss.beta: 0.1 → 0.2", "seed: 0 → 3"]


def test_a_key_that_an_older_version_did_not_have_had_its_default():
    old, new = configured().to_dict(), configured(loss__dr_beta=2.0)
    del old["loss"]["dr_beta"], old["mesh"]
    assert config_lib.changes(old, configured()) == []
    assert config_lib.changes(old, new) == ["loss.dr_beta: 1.0 → 2.0"]
    assert config_lib.changes({**old, "a": 1}, configured()) == ["a: 1 → None"]


def test_a_config_json_of_another_version_is_read(caplog):
    """With the key that it lacks, without the one that is not known here."""
    old = json.loads(config_lib.to_json(configured(loss__weights=(0.5, 2.0))))
    del old["loss"]["dr_beta"]
    old["loss"]["gone"] = 3
    read = config_files.from_json(old)
    assert read.is_locked and read.loss.weights == (0.5, 2.0)
    assert config_lib.flat(read) == config_lib.flat(
        configured(loss__weights=(0.5, 2.0))
    )
    assert "loss.gone=3 is not known here" in caplog.text


FREE = {
    "mesh__data": 2,
    "batch__microbatches": 4,
    "log__every_steps": 9,
    "eval__every_steps": 9,
    "checkpoint__keep": 9,
    "model__remat": "block",
    "model__attention": "other",
    "ref__cache_dir": "elsewhere",
    "data__row_shapes": 9,
}


@pytest.mark.parametrize("key", FREE)
def test_fingerprint_is_blind_to_what_may_change(key):
    same = configured(**{key: FREE[key]})
    assert config_lib.fingerprint(same) == config_lib.fingerprint(configured())
    assert config_lib.changes(configured(), same) == []


def test_fingerprint_changes_with_every_guarded_key():
    """One key after the other is changed to a value of its own type."""
    base = configured()
    seen = {config_lib.fingerprint(base)}
    for key, value in config_lib.flat(base).items():
        if key.startswith(RELAUNCH):
            continue
        other = (not value) if isinstance(value, bool) else value + type(value)("1")
        changed = configured()
        changed.update_from_flattened_dict({key: other})
        assert config_lib.changes(base, changed) == [f"{key}: {value!r} → {other!r}"]
        seen.add(config_lib.fingerprint(changed))
    guarded = [k for k in config_lib.flat(base) if not k.startswith(RELAUNCH)]
    assert len(seen) == len(guarded) + 1 and all(len(mark) == 16 for mark in seen)


def test_unknown_keys_name_the_nearest_in_or_out_of_their_section():
    told = config_lib.unknown_keys(configured(), ["loss.beta", "bta", "loss.bta"])
    assert len(told) == 2
    assert told[0].startswith(
        "config.bta is not known; did you mean 'config.loss.beta'"
    )
    assert "Known: awr, batch, checkpoint, data" in told[0]
    assert told[1].startswith(
        "config.loss.bta is not known; did you mean 'config.loss.b"
    )
    assert "Known: loss.alpha, " in told[1] and "loss.beta, " in told[1]
    (far,) = config_lib.unknown_keys(configured(), ["zzzzz"])
    assert far.startswith("config.zzzzz is not known. Known: ")
    (section,) = config_lib.unknown_keys(configured(), ["mesh"])
    assert section == (
        "config.mesh is a section; set a key of it: mesh.data, mesh.fsdp, mesh.tensor"
    )


def test_unused_options_are_those_that_differ_and_are_not_read():
    values = {**config_lib.flat(schema.base().log), "every_steps": 2}
    told = config_lib.unused_options("log", values, ["name", "a"], "log.name='x'")
    assert told == [
        "log.every_steps=2 is not used by log.name='x'; leave it at 1 (used: a)",
    ]


@pytest.mark.parametrize("key", [key for key, row in KEYS.items() if row.range])
def test_ranges_hold_at_their_ends(key):
    """Bounds, NaN and infinities, through `check_values` on a real configuration."""
    low, high, closed = KEYS[key].range
    config = configured()
    kind = type(config_lib.flat(config)[key])

    def complains(value):
        with config.unlocked():
            section, _, name = key.rpartition(".")
            node = config[section] if section else config
            with node.ignore_type():
                node[name] = value
        return any(key in told for told in config_lib.check_values(config))

    assert complains(kind(low)) != closed
    assert complains(low - 1) and complains(math.nan) and complains(math.inf)
    if high != math.inf:
        assert complains(kind(high))


@pytest.mark.parametrize("key", [key for key, row in KEYS.items() if row.choices])
def test_choices_are_checked_and_hold_the_default(key):
    assert KEYS[key].default in KEYS[key].choices
    config = configured()
    config.update_from_flattened_dict({key: "no such"})
    told = config_lib.check_values(config)
    assert len(told) == 1 and told[0].startswith(f"{key}='no such' is not known")


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"train__epochs": 0.0}, "train.steps=0 and train.epochs=0"),
        ({"model__preset": "tiny"}, "exactly one of model.path"),
        ({"data__train": ""}, "data.train is empty"),
        ({"data__max_prompt_tokens": 512}, "leaves no room"),
        ({"ref__mode": "none", "ref__path": "R"}, "not used by ref.mode='none'"),
        ({"checkpoint__keep_best": "loss"}, "multiple of eval.every_steps=0"),
        ({"checkpoint__keep_best": "lowest:los"}, "did you mean 'loss'"),
        ({"checkpoint__keep_best": "best:loss"}, "'highest:loss' or 'lowest:loss'"),
        ({"checkpoint__keep_best": "entropy"}, "'highest:entropy' or 'lowest:entropy'"),
        ({"checkpoint__keep_best": "one/entropy"}, "'highest:one/entropy' or"),
        ({"checkpoint__keep_best": "lowest:one/los"}, "'one/los' is not known"),
        ({"checkpoint__keep_best": "one/rollouts/kl"}, "is not known"),
        ({"checkpoint__keep_best": "rollouts/kl"}, "set eval.rollouts > 0"),
        ({"checkpoint__keep_best": "loss", "data__eval": ""}, "set data.eval"),
        (
            {"checkpoint__keep_best": "loss", "eval__every_steps": 300},
            "checkpoint.every_steps=500 a multiple of eval.every_steps=300",
        ),
    ],
)
def test_combinations_are_refused(changed, words):
    with pytest.raises(ConfigError, match=words):
        config_lib.check(configured(**changed))


def test_good_configurations_pass():
    config_lib.check(configured())
    good = {"checkpoint__keep_best": "loss", "eval__every_steps": 250}
    good["data__eval"] = "sentiment"
    config_lib.check(configured(**good))


@pytest.mark.parametrize(
    "given, read",
    [
        ("loss", ("loss", "lowest")),
        ("rewards/margins", ("rewards/margins", "highest")),
        ("one/rewards/margins", ("one/rewards/margins", "highest")),
        ("highest:one/entropy", ("one/entropy", "highest")),
    ],
)
def test_the_best_metric_may_be_that_of_a_source(given, read):
    assert config_lib.best_of(given) == read
    config = configured(checkpoint__keep_best=given, eval__every_steps=250)
    config.data.eval = "one.jsonl+other.jsonl"
    config_lib.check(config)


OWN = ("loss.options.simpo.beta", "loss.options.simpo.none")


def test_options_of_one_loss_are_kept_by_config_json_and_guarded():
    config = dpo.get_config()
    schema.with_room(config, dict.fromkeys(OWN))
    assert config_lib.flat(config.loss.options) == {
        "simpo.beta": KEYS["loss.beta"].default
    }
    config.loss.options.simpo.beta = 2.0
    read = config_files.from_json(json.loads(config_lib.to_json(config)))
    assert config_lib.flat(read) == config_lib.flat(config)
    shared = config_lib.changes(dpo.get_config(), config)
    assert shared == ["loss.options.simpo.beta: None → 2.0"]
    assert config_lib.fingerprint(config) != config_lib.fingerprint(dpo.get_config())


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("train.steps", 10**23, "train.steps=100000000000000000000000 is out of range"),
        ("train.steps", 10**400, "train.steps=about 1e400 is out of range"),
        ("optimizer.lr", 1e39, "≤ 3.4e+38, finite"),
        ("loss.weights", ("a", "b"), "must hold numbers alone"),
        ("loss.weights", (1.0, math.inf), "loss.weights=inf is out of range"),
        ("model.ignore_attributes", (1,), "holds 1, which is no word"),
        ("data.train", "a\0b", "holds a NUL"),
    ],
)
def test_numbers_have_bounds_and_tuples_have_types(key, value, said):
    config = config_lib.stated(configured(), {key: value})
    assert any(said in told for told in config_lib.check_values(config))


def test_brackets_without_end_are_text():
    assert config_lib.literal("-" * 9000 + "1") == "-" * 9000 + "1"
    assert config_lib.literal("{{}}") == "{{}}"
