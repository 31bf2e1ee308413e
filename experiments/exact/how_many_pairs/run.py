"""X10: how many pairs DPO needs, and what deterministic labels cost.

`python -m experiments.exact.how_many_pairs.run --out=DIR`

1,000 enumerable sequences with the optimum inside the policy's class; independent
pairs of the reference; 1,500 Adam steps on minibatches of 256. Gaps are exact.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from dpo_jax import exact
from dpo_jax.types import Array
from experiments.exact import common, enumerable, output
from experiments.exact.enumerable import Pairs, World, Worth

LABELS = ("bradley_terry", "deterministic")
BETAS = (0.1, 1.0, 5.0)
NUMBERS = (1_440, 5_760, 23_040, 92_160)  # of training pairs
SEEDS, STEPS, BATCH, LR = 3, 1_500, 256, 0.02
POINTS = 15  # of the baselines' curves
BASELINES = {
    "unlikelihood, α = 0.5": ("unlikelihood", {"unlikelihood_alpha": 0.5}),
    "unlikelihood, α = 1": ("unlikelihood", {"unlikelihood_alpha": 1.0}),
    "preferred-FT": ("sft", {}),
}


def make_world() -> World:
    """Makes the environment; see the README about its seed and scale."""
    return enumerable.make_world(seed=19, vocabulary=10, length=3, scale=1.25)


def pairs_of_seed(world: World, seed: int, labels: str, number: int) -> Pairs:
    """Draws the training set of a seed."""
    setting = {"groups": number, "completions": 2, "labels": labels}
    return enumerable.sample_pairs(jax.random.key(seed), world, **setting)


def fit(
    world: World, pairs: Pairs, key: Array, betas: Array, first: Array, *, steps: int
) -> Worth:
    """Trains DPO at every β and number of pairs; f[β, numbers] in each field."""

    def one(beta, first):
        method = enumerable.method("dpo", {"beta": beta}, world)
        setting = {"lr": LR, "steps": steps, "batch": BATCH, "first": first}
        tables = enumerable.train(world, pairs, method, key, **setting)
        return jax.tree.map(lambda x: x[0], enumerable.worth_of(world, tables))

    over_first = jax.vmap(one, (None, 0))
    return jax.vmap(over_first, (0, None))(betas, first)


def grid(world: World, labels: str) -> Worth:
    """Trains all seeds, β and numbers of pairs; f[seeds, β, numbers] in each field."""
    first = jnp.asarray(NUMBERS)

    def of_seed(seed):
        pairs = pairs_of_seed(world, seed, labels, NUMBERS[-1])
        key = jax.random.fold_in(jax.random.key(100), seed)
        return fit(world, pairs, key, jnp.asarray(BETAS), first, steps=STEPS)

    return jax.jit(partial(jax.lax.map, of_seed))(jnp.arange(SEEDS))


def baseline(world: World, name: str, options: dict[str, float]) -> Worth:
    """Trains a baseline on 23k Bradley-Terry pairs; f[points] along training."""
    pairs = pairs_of_seed(world, 0, "bradley_terry", NUMBERS[2])
    method = enumerable.method(name, options, world)
    setting = {"lr": LR, "steps": STEPS, "batch": BATCH, "points": POINTS}
    key = jax.random.key(100)
    tables = jax.jit(partial(enumerable.train, world, pairs, method, **setting))(key)
    return enumerable.worth_of(world, tables)


def ascend(world: World, beta: Array) -> Worth:
    """Maximises E[r] − β KL itself, without pairs or sampling."""

    def loss(tables):
        logps = enumerable.sequence_logps(tables)
        return -exact.objective(logps, world.ref_logps, world.rewards, beta=beta)

    tables = common.minimise(loss, world.ref, lr=0.1, steps=10_000)
    return enumerable.evaluate(world, enumerable.sequence_logps(tables))


def frontier_curve(world: World, betas: Array) -> Worth:
    """Returns the places of π*_β, whose gap is 0."""
    place = partial(exact.frontier, world.ref_logps, world.rewards)
    points = jax.vmap(lambda beta: place(beta=beta))(betas)
    return Worth(points.kl, points.reward, jnp.zeros_like(betas))


def compute() -> dict[str, Any]:
    """Runs everything; the values are `Worth`s."""
    world, betas = make_world(), jnp.asarray(BETAS)
    ref = enumerable.evaluate(world, world.ref_logps)
    results = {
        "grid": {labels: grid(world, labels) for labels in LABELS},
        "baselines": {
            name: baseline(world, *setting) for name, setting in BASELINES.items()
        },
        "ascent": jax.jit(jax.vmap(partial(ascend, world)))(betas),
        "optimal": frontier_curve(world, betas),
        "curve": frontier_curve(world, jnp.geomspace(0.1, 100.0, 200)),
        "ref": ref,
    }
    return jax.tree.map(np.asarray, results)


def tabulate(results: dict[str, Any]) -> output.Table:
    """Returns gap, KL and reward of every cell, means over the seeds."""
    table: output.Table = {}

    def put(case, worth, at):
        table[case, "gap"] = float(worth.gap[at])
        table[case, "KL"] = float(worth.kl[at])
        table[case, "E[r]"] = float(worth.reward[at])

    put("reference", results["ref"], ())
    for b, beta in enumerate(BETAS):
        put(f"π*, β = {beta}", results["optimal"], b)
        put(f"ascent of E[r] − β KL, β = {beta}", results["ascent"], b)
    for labels, worth in results["grid"].items():
        mean = Worth(*(field.mean(0) for field in worth))
        for b, beta in enumerate(BETAS):
            for n, number in enumerate(NUMBERS):
                put(f"{labels}, β = {beta}, {number} pairs", mean, (b, n))
    for name, worth in results["baselines"].items():
        for at in (0, POINTS - 1):
            put(f"{name}, step {STEPS // POINTS * (at + 1)}", worth, at)
    return table


def draw(results: dict[str, Any]) -> Figure:
    """Draws the gap over the number of pairs, and the plane of reward and KL."""
    canvas, (left, right) = output.figure(1, 2, 9.6, 4.2)
    draw_gaps(left, results)
    draw_plane(right, results)
    return canvas


def draw_gaps(ax: Any, results: dict[str, Any]) -> None:
    """Draws means over seeds as lines and the seeds as dots."""
    for labels, style in zip(LABELS, ("-", "--"), strict=True):
        gaps = results["grid"][labels].gap
        for b, beta in enumerate(BETAS):
            ink, mean = output.color(b), gaps[:, b].mean(0)
            ax.plot(NUMBERS, mean, style, color=ink, lw=1.4)
            ax.plot(NUMBERS, gaps[:, b].T, "o", ms=2.5, color=ink, alpha=0.5)
            name = "BT" if labels == "bradley_terry" else "det."
            place = "bottom" if (name, beta) == ("BT", 1.0) else "center"
            text = f" {name}, β = {beta:g}"
            ax.annotate(text, (NUMBERS[-1], mean[-1]), color=ink, va=place)
    ax.set(xscale="log", yscale="log", xlim=(1_200, 420_000))
    ax.set_xticks(NUMBERS, [f"{n:,}" for n in NUMBERS])
    ax.minorticks_off()
    ax.set(xlabel="training pairs", ylabel="frontier reward at its own KL − E[r]")
    ax.set_title("Bradley-Terry labels (solid) and deterministic (dashed)")


def draw_plane(ax: Any, results: dict[str, Any]) -> None:
    """Draws the frontier, DPO with the most pairs, and the baselines' paths."""
    ax.plot(results["curve"].kl, results["curve"].reward, color=output.INK, lw=1.2)
    ax.annotate("frontier, π*_β", (3.4, 4.2), color=output.INK)
    for labels, marker in zip(LABELS, "os", strict=True):
        worth = results["grid"][labels]
        for b, beta in enumerate(BETAS):
            x, y = worth.kl[:, b, -1].mean(), worth.reward[:, b, -1].mean()
            text = f"DPO, β = {beta:g}, {labels.replace('_', '-')}"
            style = {"ls": "", "ms": 6, "color": output.color(b), "label": text}
            ax.plot(x, y, marker, **style)
    for index, (name, worth) in enumerate(results["baselines"].items()):
        ink = output.color(3 + index)
        ax.plot(worth.kl, worth.reward, "-", marker=".", ms=3, lw=1, color=ink)
        at = (worth.kl[-1], worth.reward[-1])
        ax.annotate(f"  {name}", at, color=ink, fontsize=8, va="center")
    ax.plot(0, results["ref"].reward, "x", color=output.INK, label="reference")
    ax.legend(loc="lower right", fontsize=8)
    ax.set(xlabel="KL(π‖ref) [nats]", ylabel="E[r]")
    ax.set_title(f"DPO on {NUMBERS[-1]:,} pairs; paths on {NUMBERS[2]:,}")


if __name__ == "__main__":
    output.main(__file__, compute, tabulate, draw)
