"""Trials: names, needs, identities, command lines; no process and no jax."""

import pytest
from launch_cases import chain, load

from dpo_jax.errors import ConfigError
from dpo_jax.launch import Trial
from dpo_jax.launch.identity import digest_of
from dpo_jax.launch.trial import plan


def ids(trials, out="out"):
    return {trial.name: trial.id for trial in plan(trials, out, load)}


def test_a_trial_stands_behind_those_that_it_waits_for(tmp_path):
    planned = {trial.name: trial for trial in chain(tmp_path)}
    names = list(planned)
    assert names == ["base", "one", "two", "last"]
    assert planned["one"].needs == ("base",) and planned["last"].needs == ("two",)
    assert planned["one"].config.model.path == f"{tmp_path}/base/export"
    assert planned["one"].arguments == (
        "train",
        "--config=tiny",
        "--config.model.preset=",
        f"--config.model.path={tmp_path}/base/export",
        "--config.loss.beta=0.1",
        f"--workdir={tmp_path}/one",
    )


def test_identities_hold_no_path_and_no_order():
    """Of the sweep's folder, of the overrides, of names; data and needs count."""
    a = Trial("a", "tiny", {"loss.beta": 0.3, "seed": 1})
    b = Trial("b", "tiny", {"model.preset": "", "model.path": "{a}"})
    before = ids([a, b])
    assert ids([b, a], "elsewhere") == before
    other = Trial("c", "tiny", {"seed": 1, "loss.beta": 0.3})
    renamed = Trial("b", "tiny", {"model.path": "{c}", "model.preset": ""})
    assert ids([other, renamed]) == {"c": before["a"], "b": before["b"]}
    for key, value in (("seed", 2), ("loss.beta", 0.4), ("data.seed", 5)):
        changed = ids([a._replace(overrides={**a.overrides, key: value}), b])
        assert changed["a"] != before["a"] and changed["b"] != before["b"]
    where = {**a.overrides, "mesh.data": 1, "checkpoint.every_steps": 9}
    assert ids([a._replace(overrides=where), b]) == before


def test_identity_follows_the_data_and_not_where_it_lies(tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_text("a row")
    two.write_text("a row")
    of = lambda file: ids([Trial("a", "tiny", {"data.train": f"{file}[:5]"})])  # noqa: E731
    assert of(one) == of(two)
    mixed = Trial("a", "tiny", {"data.train": f"{one}:0.7+sentiment:0.3"})
    same = Trial("a", "tiny", {"data.train": f"{two}:0.7+sentiment:0.3"})
    assert ids([mixed]) == ids([same]) != of(one)
    two.write_text("another row")
    assert of(one) != of(two) and ids([mixed]) != ids([same])
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    before = digest_of([str(folder)])
    (folder / "more.json").write_text("{}")
    assert digest_of([str(folder)]) != before


def test_a_file_of_losses_is_a_flag_and_its_digest_the_key():
    (trial,) = plan([Trial("a", "tiny", {"losses": "mine.py"})], "out", load)
    assert "--losses=mine.py" in trial.arguments
    assert trial.config.losses == "digest of mine.py"


def test_braces_of_a_template_name_no_trial():
    mine = {"data.columns.prompt": "Q: {question}"}
    (trial,) = plan([Trial("a", "tiny", mine)], "out", load)
    assert trial.needs == ()
    assert "--config.data.columns.prompt=Q: {question}" in trial.arguments


@pytest.mark.parametrize(
    "name", ["../../x", "/abs", "a\nb", "", "a" * 101, "a/b", ".a", "-a", "ref_cache"]
)
def test_names_that_would_lead_elsewhere_are_refused(name):
    with pytest.raises(ConfigError, match="trial name"):
        plan([Trial(name, "tiny", {})], "out", load)


@pytest.mark.parametrize(
    "trials, said",
    [
        ([], "the sweep has no trials"),
        ([Trial("a", "tiny", {}), Trial("A", "tiny", {"seed": 1})], "stands twice"),
        ([Trial("a", "tiny", {"model.path": "{sfd}"})], "waits for='sfd' is not known"),
        ([Trial("a", "tiny", {}, ("sft",)), Trial("sfd", "x", {})], "mean 'sfd'?"),
        ([Trial("a", "tiny", {}, ("a",))], "each other in a circle: a"),
        (
            [Trial("a", "tiny", {}, ("b",)), Trial("b", "tiny", {"seed": 1}, ("a",))],
            "each other in a circle: a, b",
        ),
        (
            [Trial("a", "tiny", {}), Trial("b", "tiny", {"seed": 0})],
            "trials a and b are the same",
        ),
        ([Trial("a", "tiny", {"loss.bta": 1.0})], "trial a: config.loss.bta is not"),
        ([Trial("a", "tiny", {"loss.beta": "x"})], "trial a: loss.beta='x' is not of"),
        ([Trial("a", "tiny", {"loss.beta": -1.0})], "trial a: loss.beta=-1.0 is out"),
        (
            [Trial("a", "tiny", {"seed": 1.5}), Trial("b", "tiny", {"seed": None})],
            "trial a: seed=1.5 is not of type int; it is 0 by default · trial b",
        ),
    ],
)
def test_what_is_wrong_with_a_sweep_is_said_before_anything_runs(trials, said):
    with pytest.raises(ConfigError) as raised:
        plan(trials, "out", load)
    assert said in str(raised.value)
