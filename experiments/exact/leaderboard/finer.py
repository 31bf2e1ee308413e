"""A second, finer grid around chosen trials: does the order survive closer tuning?

`python -m experiments.exact.leaderboard.finer --out=DIR --losses=dpo,ipo
--regimes=flipped`, after `run` has filled DIR. Every entry gets as many trials again,
around the trial that was chosen for it; seeds and choice are as in `run`.
"""

import argparse
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.exact.leaderboard import methods, regimes, run, table
from experiments.exact.leaderboard.methods import ENTRIES

LR_FACTORS = (0.5, 0.7, 1.4, 2.0)
SCALE_FACTORS = (0.33, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0)


def around(lr: float, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Lists learning rates and scales around a trial, [TRIALS] each."""
    grid = np.meshgrid(LR_FACTORS, SCALE_FACTORS, indexing="ij")
    lrs, scales = (factors.reshape(-1) for factors in grid)
    assert lrs.size == methods.TRIALS, lrs.size
    return lr * lrs, scale * scales


def refine(
    name: str, regime: str, cell: dict[str, np.ndarray], setting: run.Setting
) -> tuple[np.ndarray, float, float]:
    """Trains around the chosen trial of a cell.

    Returns:
      Scored regrets f[seeds] of the best of both grids on the tuning seeds, its lr, its
      scale.
    """
    main, seeds = run.BETAS.index(table.MAIN), np.arange(setting.seeds + setting.tuning)
    lrs, scales = methods.trials(ENTRIES[name])
    trial, _ = table.scored(cell, setting.seeds, main)
    new_lrs, new_scales = around(lrs[trial], scales[trial])
    world = regimes.make_world(regime)
    train = jax.jit(partial(run.cell, ENTRIES[name], setting))
    grid = (jnp.asarray(new_lrs, float), jnp.asarray(new_scales, float))
    new = train(world, regimes.sample(regime, world, seeds), seeds, *grid)["regret"]
    both = {"regret": np.concatenate([cell["regret"], np.asarray(new)], axis=1)}
    best, regrets = table.scored(both, setting.seeds, main)
    lr, scale = np.append(lrs, new_lrs)[best], np.append(scales, new_scales)[best]
    return regrets, float(lr), float(scale)


def main() -> None:
    """Runs the command line; the first entry is what the others are compared with."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True, help="folder of a run")
    parser.add_argument("--losses", required=True, help="entries, by comma")
    parser.add_argument("--regimes", required=True, help="by comma")
    given = parser.parse_args()
    cells, setting = run.read_cells(given.out), run.Setting()
    run.open_folder(given.out, setting)
    for regime in run.chosen("regimes", given.regimes, regimes.REGIMES):
        first = None
        for name in run.chosen("losses", given.losses, ENTRIES):
            found, lr, scale = refine(name, regime, cells[name, regime], setting)
            first = found if first is None else first
            mine, less = table.estimate(found), table.estimate(found - first)
            print(
                f"{regime} {name}: {mine.mean:.4f} ± {mine.error:.4f}, difference "
                f"{less.mean:+.4f} ± {less.error:.4f}, lr {lr:.3g}, scale {scale:.3g}",
                flush=True,
            )


if __name__ == "__main__":
    main()
