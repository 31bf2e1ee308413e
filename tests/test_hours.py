"""A sweep's chip-hours: runs of one program are compiled once, steps add up."""

import pytest

from dpo_jax import booking, hours
from dpo_jax.cli import common
from dpo_jax.errors import ConfigError
from dpo_jax.wiring.forecast import Bound


def config(**keys):
    """Fine-tuning from scratch on the embedded data."""
    made = common.load_config("quickstart:stage=sft")
    given = {"data.max_tokens": 32, "data.max_prompt_tokens": 8, "batch.pairs": 4}
    made.update_from_flattened_dict({**given, "train.steps": 10, **keys})
    return made


def test_runs_of_one_program_are_compiled_once():
    """Learning rates are arguments; another width of the batch is another program."""
    configs = {
        "slow": config(**{"optimizer.lr": 1e-4}),
        "fast": config(**{"optimizer.lr": 1e-3, "train.steps": 30}),
        "wide": config(**{"batch.pairs": 8}),
    }
    told, runs = [], {name: booking.Planned(each) for name, each in configs.items()}
    found = hours.shares(runs, "cpu:2", told.append)
    assert [share.names for share in found] == [["slow", "fast"], ["wide"]]
    assert [share.steps for share in found] == [40, 10]
    assert told.count("train step") == 2
    said = hours.as_text(found, "cpu:2")
    assert "3 runs, 2 programs on cpu:2: hours unknown" in said
    # 40 steps of 9 s on 2 devices are .2 hours of one
    plan = found[0].plan._replace(bound=Bound(9.0, 1.0, 2.0, 0.5))
    known = hours._share([("slow", 10), ("fast", 30)], plan)
    assert known.hours == pytest.approx(0.2)
    assert "0.2 chip-hours at best" in hours.as_text([known], "v4:…")


def test_a_run_of_epochs_needs_its_rows():
    runs = {"epochs": booking.Planned(config(**{"train.steps": 0}))}
    with pytest.raises(ConfigError, match="give train.steps, or --rows"):
        hours.shares(runs, "cpu:2", lambda what: None)


def test_a_run_that_starts_from_another_has_its_model():
    first = config(**{"model.preset": "tiny"})
    then = config(**{"model.preset": "", "model.path": "out/first/export"})
    again = config(**{"model.preset": "", "model.path": "out/then/export"})
    exports = {f"out/{name}/export": name for name in ("first", "then")}
    runs = {"first": first, "then": then, "again": again}
    found = hours.rooted(runs, exports)
    assert {each.model.preset for each in found.values()} == {"tiny"}
    assert {each.model.path for each in found.values()} == {""}
