"""The leaderboard: every loss, equally tuned, by its distance to the true optimum.

`python -m experiments.exact.leaderboard.run --out=DIR [--losses=dpo,ipo] [--seeds=20]`

Everything is trained for all seeds and trials at once; a cell (entry × regime) is kept
as one file, and a rerun trains what is missing. `--quick` is a rehearsal of a minute.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import exact
from dpo_jax.errors import ConfigError, known
from dpo_jax.types import Array
from experiments.exact import enumerable
from experiments.exact.enumerable import Pairs, World
from experiments.exact.leaderboard import figure, methods, regimes, table
from experiments.exact.leaderboard.methods import ENTRIES, Entry

BETAS = (0.3, 1.0, 3.0)  # of the objectives whose regret is measured


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all cells of a leaderboard share.

    Attributes:
      tuning: seeds that choose the trial; they are behind the scored ones.
      seeds: that are scored.
      steps: of Adam.
      batch: pairs of a step.
    """

    tuning: int = 4
    seeds: int = 20
    steps: int = 600
    batch: int = 128


def cell(
    entry: Entry,
    setting: Setting,
    world: World,
    pairs: Pairs,
    seeds: Array,
    lrs: Array,
    scales: Array,
) -> dict[str, Array]:
    """Trains all seeds and trials, and measures the policies exactly.

    Args:
      entry: of the leaderboard.
      setting: steps and batch.
      world: the environment.
      pairs: [seeds, N] training sets.
      seeds: i32[seeds], also of the minibatches.
      lrs: f[trials].
      scales: f[trials].

    Returns:
      `kl`, `reward`, `gap` f[seeds, trials]; `regret` f[seeds, trials, BETAS].
    """

    def of_seed(inputs):
        drawn, seed = inputs
        key = jax.random.fold_in(jax.random.key(100), seed)

        def one(lr, scale):
            method = methods.build(entry, scale, world)
            steps = {"steps": setting.steps, "batch": setting.batch}
            tables = enumerable.train(world, drawn, method, key, lr=lr, **steps)
            return measure(world, jax.tree.map(lambda x: x[0], tables))

        return jax.vmap(one)(lrs, scales)

    return jax.lax.map(of_seed, (pairs, seeds))


def measure(world: World, tables: enumerable.Tables) -> dict[str, Array]:
    """Computes a policy's worth and its regrets b·KL(π‖π*_b) = J(π*_b) − J(π)."""
    logps = enumerable.sequence_logps(tables)

    def regret(beta):
        best = exact.optimal_policy(world.ref_logps, world.rewards, beta=beta)
        return beta * exact.kl(logps, best)

    worth = enumerable.evaluate(world, logps)._asdict()
    return worth | {"regret": jnp.stack([regret(beta) for beta in BETAS])}


def cell_path(out: Path, name: str, regime: str) -> Path:
    """Returns where a cell is kept."""
    return out / "cells" / f"{re.sub('[^a-z0-9.]', '_', name)}.{regime}.npz"


def fill(
    name: str, out: Path, setting: Setting, among: Sequence[str]
) -> tuple[str, float, float]:
    """Trains the missing cells of an entry and writes them.

    Args:
      name: of the entry.
      out: folder of the leaderboard.
      setting: of all cells.
      among: regimes.

    Returns:
      Its name, seconds spent compiling, seconds spent training.
    """
    entry = ENTRIES[name]
    missing = [r for r in among if not cell_path(out, name, r).exists()]
    seeds = np.arange(setting.seeds + setting.tuning)
    lrs, scales = (jnp.asarray(x, float) for x in methods.trials(entry))
    run: Callable[..., dict[str, Array]] | None = None
    start, compiling = time.monotonic(), 0.0
    for regime in missing:
        world = regimes.make_world(regime)
        inputs = (world, regimes.sample(regime, world, seeds), seeds, lrs, scales)
        if run is None:
            begin = time.monotonic()
            run = jax.jit(partial(cell, entry, setting)).lower(*inputs).compile()
            compiling = time.monotonic() - begin
        path = cell_path(out, name, regime)
        partly = path.with_suffix(".part.npz")
        np.savez(partly, **jax.tree.map(np.asarray, run(*inputs)))
        os.replace(partly, path)
    return name, compiling, time.monotonic() - start - compiling


def fill_all(
    names: list[str], out: Path, setting: Setting, among: Sequence[str], workers: int
) -> None:
    """Trains all missing cells, entries in parallel; prints one line an entry."""
    start = time.monotonic()
    job = partial(fill, out=out, setting=setting, among=among)
    for count, (name, compiling, training) in enumerate(spread(job, names, workers), 1):
        spent = time.monotonic() - start
        print(
            f"{spent:6.0f} s  {count}/{len(names)}  {name}: compiled in "
            f"{compiling:.0f} s, trained in {training:.0f} s",
            flush=True,
        )


def spread(job: Callable, names: list[str], workers: int) -> Iterator:
    """Maps a job over names, in processes of their own if there are several."""
    if workers == 1:
        yield from map(job, names)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, initializer=keep_to_one_core) as pool:
        yield from pool.imap_unordered(job, names)


def keep_to_one_core() -> None:
    """Gives this process's XLA one thread: its arrays are too small to share."""
    os.environ["NPROC"] = "1"


def open_folder(out: Path, setting: Setting) -> None:
    """Makes the folder, or checks that what it holds was trained alike.

    Raises:
      ConfigError: if it holds cells of another setting.
    """
    (out / "cells").mkdir(parents=True, exist_ok=True)
    path, mine = out / "setting.json", dataclasses.asdict(setting)
    if path.exists() and json.loads(path.read_text()) != mine:
        raise ConfigError(
            f"{out} holds cells of {path.read_text()}, not of {mine}; choose another"
        )
    path.write_text(json.dumps(mine))


def read_cells(out: Path) -> table.Cells:
    """Reads all that was trained: (entry, regime) -> arrays as `cell` returns them."""
    return {
        (name, regime): dict(np.load(cell_path(out, name, regime)))
        for name in ENTRIES
        for regime in regimes.REGIMES
        if cell_path(out, name, regime).exists()
    }


def chosen(field: str, given: str, all_names: Mapping[str, object]) -> list[str]:
    """Splits a list given by comma; '' = all that is known.

    Raises:
      ConfigError: if a name is not known.
    """
    names = given.split(",") if given else list(all_names)
    return [known(field, name, all_names) for name in names]


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--losses", default="", help="entries, by comma; '' = all")
    parser.add_argument("--regimes", default="", help="by comma; '' = all")
    parser.add_argument("--seeds", type=int, default=20, help="that are scored")
    parser.add_argument("--quick", action="store_true", help="100 steps, 4 seeds")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    given = parser.parse_args(arguments)
    setting = Setting(seeds=given.seeds)
    if given.quick:
        setting = Setting(tuning=2, seeds=4, steps=100)
    names = chosen("losses", given.losses, ENTRIES)
    among = chosen("regimes", given.regimes, regimes.REGIMES)
    open_folder(given.out, setting)
    fill_all(names, given.out, setting, among, given.workers)
    board = table.tabulate(read_cells(given.out), setting.seeds, BETAS)
    table.write_csv(given.out / "table.csv", board)
    bounds = regimes.bounds(table.MAIN)
    text = table.as_markdown(board, bounds)
    (given.out / "table.md").write_text(text, encoding="utf-8")
    figure.draw(board, bounds).savefig(given.out / "figure.png")
    print(text)


if __name__ == "__main__":
    main()
