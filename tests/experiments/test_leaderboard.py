"""The leaderboard: exact regrets, tuning apart from scoring, resuming."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.errors import ConfigError
from dpo_jax.losses import LOSSES
from experiments.exact import enumerable
from experiments.exact.leaderboard import methods, regimes, run, table

SETTING = run.Setting(tuning=1, seeds=2, steps=40, batch=64)
REGIME = ("bradley_terry",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("board")
    run.open_folder(out, SETTING)
    run.fill_all(["dpo", "dpo+sft"], out, SETTING, REGIME, workers=1)
    return out


def test_regret_is_exact():
    """b·KL(π‖π*_b) = J(π*_b) − J(π) ≥ 0, for the reference and a random policy."""
    keys = jax.random.split(jax.random.key(0), 3)
    measure = jax.jit(run.measure)
    for regime in ("bradley_terry", "misspecified"):
        world = regimes.make_world(regime)
        shapes = [table.shape for table in world.ref]
        noise = tuple(map(jax.random.normal, keys, shapes))
        for tables in (world.ref, noise):
            found = measure(world, tables)["regret"]
            logps = np.asarray(enumerable.sequence_logps(tables), np.float64)
            ref_logps = np.asarray(world.ref_logps, np.float64)
            rewards = np.asarray(world.rewards, np.float64)
            for beta, regret in zip(run.BETAS, found, strict=True):
                best = beta * np.log(np.exp(ref_logps + rewards / beta).sum())
                value = np.exp(logps) @ (rewards - beta * (logps - ref_logps))
                assert regret > 0.1
                np.testing.assert_allclose(regret, best - value, atol=1e-5)


def test_training_beats_the_reference(folder):
    """DPO on Bradley-Terry labels gains on the reference, and no regret is negative."""
    cells = run.read_cells(folder)
    assert set(cells) == {("dpo", REGIME[0]), ("dpo+sft", REGIME[0])}
    for cell in cells.values():
        assert cell["regret"].shape == (3, methods.TRIALS, len(run.BETAS))
        assert (cell["regret"] > -1e-5).all() and (cell["gap"] > -1e-4).all()
    world = regimes.make_world(REGIME[0])
    nothing = run.measure(world, world.ref)["regret"][1]
    line = table.tabulate(cells, SETTING.seeds, run.BETAS)[0]
    assert line.entry == "dpo" and line.regret.mean < 0.5 * nothing
    assert line.difference == (0, 0)


def test_a_rerun_adds_nothing_and_a_lost_cell_comes_back(folder):
    paths = [run.cell_path(folder, name, REGIME[0]) for name in ("dpo", "dpo+sft")]
    before = [(path.stat().st_mtime_ns, dict(np.load(path))) for path in paths]
    paths[1].unlink()
    run.fill_all(["dpo", "dpo+sft"], folder, SETTING, REGIME, workers=1)
    assert paths[0].stat().st_mtime_ns == before[0][0]
    for name, values in np.load(paths[1]).items():
        np.testing.assert_array_equal(values, before[1][1][name])
    with pytest.raises(ConfigError, match="holds cells of"):
        run.open_folder(folder, run.Setting())


def test_every_entry_can_be_built_and_is_tuned_alike():
    """Every loss but the reward model's has an entry; all have as many trials."""
    covered = {e.loss for e in methods.ENTRIES.values()} | set(methods.OUT)
    assert set(LOSSES) <= covered
    world = regimes.make_world("bradley_terry")
    for entry in methods.ENTRIES.values():
        lrs, scales = methods.trials(entry)
        assert len(set(zip(lrs, scales.astype(str), strict=True))) == methods.TRIALS
        methods.build(entry, jnp.float32(scales[0]), world)


def test_tuning_and_scoring_do_not_share_seeds():
    """Trial 1 wins on the tuning seed (the last), trial 0 where it is scored.

    Scored regrets of trial 1 are 3 and 5: mean 4, standard error √2/√2 = 1. A trial
    that diverged on the tuning seed is never chosen.
    """
    regret = np.full((3, methods.TRIALS, 1), 9.0)
    regret[:, 0, 0], regret[:, 1, 0] = (1, 1, 8), (3, 5, 7)
    regret[:, 2, 0] = (0, 0, np.nan)
    plain = {name: regret[..., 0] for name in ("kl", "reward", "gap")}
    cells = {("dpo", "flipped"): {"regret": regret, **plain}}
    (line,) = table.tabulate(cells, 2, (1.0,))
    assert line.regret == pytest.approx((4, 1))
    assert (line.lr, line.scale, line.edge) == (0.003, 0.1, "lr-")


def test_differences_are_paired():
    """Regrets (1, 4) and (2, 5) differ by exactly 1, however far the seeds differ.

    Both lie within one standard error of the best that competes; `mmpo` sees the true
    rewards and does not.
    """
    shape = (3, methods.TRIALS, 1)
    cells = {}
    for name, shift in (("dpo", 0.0), ("ipo", 1.0), ("mmpo", -0.9)):
        values = np.array([1.0, 4.0, 2.0])[:, None, None] + np.full(shape, shift)
        plain = {field: values[..., 0] for field in ("kl", "reward", "gap")}
        cells[name, "flipped"] = {"regret": values, **plain}
    board = table.tabulate(cells, 2, (1.0,))
    assert board[1].difference == pytest.approx((1, 0))
    assert table.leaders(board) == {("dpo", "flipped"), ("ipo", "flipped")}
    assert list(table.by_entry(board)) == ["mmpo", "dpo", "ipo"]
