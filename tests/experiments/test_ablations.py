"""The sweeps of beta_ablation, loss_ablation and my_loss, as they are planned."""

import pytest

from dpo_jax import schema
from dpo_jax.cli import own_functions, sweep
from dpo_jax.config import flat
from dpo_jax.launch import trial
from dpo_jax.losses import LOSSES, find, options
from dpo_jax.report.arms import Entry, arms_of
from dpo_jax.rewards import REWARDS
from dpo_jax.wiring import checks
from experiments.loss_ablation import losses

SWEEPS = {  # file:ARG -> (trials that are compared, methods, base)
    "beta_ablation/sweep.py": (24, 8, "beta=1"),
    "beta_ablation/sweep.py:tier=quick": (4, 2, "beta=1"),
    "beta_ablation/sweep.py:tier=hh": (16, 8, "beta=0.1"),
    "loss_ablation/sweep.py": (96, 12, "dpo"),
    "loss_ablation/sweep.py:tier=quick": (4, 2, "dpo"),
    "loss_ablation/sweep.py:tier=ultrafeedback": (216, 12, "dpo"),
    "my_loss/sweep.py": (12, 2, "dpo"),
    "my_loss/sweep.py:tier=quick": (4, 2, "dpo"),
}


def planned(name):
    return trial.plan(sweep.load_sweep(f"experiments/{name}"), "out", sweep.load)


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_is_what_its_page_says(name):
    """Every trial passes the checks that a run begins with; budgets are equal."""
    trials = planned(name)
    entries = [
        Entry(t.name, t.folder, flat(t.config), t.usual, t.needs) for t in trials
    ]
    arms = arms_of(entries)
    count, methods, base = SWEEPS[name]
    assert len(arms.places) == count and arms.base == base
    placed = [place.method for place in arms.places.values()]
    assert len(set(placed)) == methods and arms.same_pairs
    assert {placed.count(method) for method in placed} == {count // methods}
    has_usual = {place.method for place in arms.places.values() if place.usual}
    assert has_usual >= ({*placed} if "beta" not in name else {base})
    for each in trials:
        given = dict(a.split("=", 1) for a in each.arguments if a.startswith("--"))
        table = own_functions.losses_of(given.get("--losses", ""))
        checks.check(each.config, table, REWARDS)


def test_the_losses_stand_as_their_authors_set_them():
    """The first value is the usual one of the table, else that of the schema."""
    ours = {"dpop", "simpo"}  # β as their papers have it, where the table says .1
    for name, entry in losses.ENTRIES.items():
        row = find(name, LOSSES)
        assert {entry.strength, *entry.keys} <= set(options(row)), name
        known = {**row.usual}
        default = schema.KEYS[f"loss.{entry.strength}"].default
        if name not in ours:
            assert entry.values[0] == known.get(entry.strength, default), name
        assert len(entry.values) == 2 and len(entry.pod) == 3
