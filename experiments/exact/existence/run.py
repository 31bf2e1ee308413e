"""X3: minimisers of DPO's loss that reinforcement learning would never return.

`python -m experiments.exact.existence.run --out=DIR`

One pair (y₁ ≻ y₂) and a third response that no comparison mentions, reference
(½, ½, ε): the loss sees π(y₂)/π(y₁) only. Then 8 prompts × 8 responses with a small
network, where training itself moves cells that no pair contains.
Source: arXiv:2404.10719 (Xu et al.), table 1 and §4.2; that these minimisers exist does
not say that gradient descent finds them.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from dpo_jax import exact
from dpo_jax.types import Array
from experiments.exact import common, output

BETA = 0.1
REWARDS = np.array([1.0, 0.0, 0.0])
EPSILONS = (1e-2, 1e-4, 1e-8)  # of the reference, at the unseen response
RATIOS = (1e-1, 1e-3, 1e-6)  # π(y₂)/π(y₁)
FIRST, SECOND = np.array([0]), np.array([1])

SIZE, REJECTED = 8, 3  # prompts and responses; rejected responses of a prompt
HIDDEN, SEEDS, STEPS, LR = 64, 6, 100, 1e-3
ZERO = 1e-300  # a probability of 0, whose logarithm is finite
POLICIES = {"(1, 0, 0)": (1.0, ZERO, ZERO), "(.1, 0, .9)": (0.1, ZERO, 0.9)}


def reference(epsilon: float) -> Array:
    """Returns log (½, ½, ε), normalised."""
    return jax.nn.log_softmax(jnp.log(jnp.array([0.5, 0.5, epsilon])))


def dpo(logps: Array, ref_logps: Array) -> Array:
    """Returns DPO's loss of the one pair."""
    loss = common.loss_of("dpo", {"beta": BETA})
    return loss(common.compare(logps, ref_logps, FIRST, SECOND))[0]


def worth(logps: Array, epsilon: float) -> Array:
    """Returns E[r] − β KL."""
    return exact.objective(logps, reference(epsilon), REWARDS, beta=BETA)


def spread_out(ratio: float, unseen: Array) -> Array:
    """Returns log π with π(y₂)/π(y₁) = ratio and mass `unseen` on y₃."""
    seen = jnp.log1p(-unseen) - jnp.log1p(ratio)
    return jnp.stack([seen, seen + jnp.log(ratio), jnp.log(unseen)])


def network(params: list[Array]) -> Array:
    """Returns log π(response | prompt) of a two-layer network on one-hot prompts."""
    first, second, last = params
    return jax.nn.log_softmax(jnp.tanh(jnp.tanh(first) @ second) @ last)


def pairs() -> tuple[np.ndarray, np.ndarray]:
    """Draws 3 rejected responses a prompt; the chosen one is the diagonal.

    Returns:
      (chosen, rejected) cells of the table of prompts and responses, i32[24] each.
    """
    rng = np.random.default_rng(0)
    shifts = [1 + rng.permutation(SIZE - 1)[:REJECTED] for _ in range(SIZE)]
    prompts = np.arange(SIZE)[:, None]
    rejected = (prompts + np.array(shifts)) % SIZE
    chosen = np.broadcast_to(prompts, rejected.shape)
    return (prompts * SIZE + chosen).ravel(), (prompts * SIZE + rejected).ravel()


def unseen_cells(key: Array) -> dict[str, Array]:
    """Trains DPO on 3 rejected responses a prompt; follows the cells without a pair.

    Returns:
      `start` and `end`, π of every cell [prompts, responses]; `unseen`, bool.
    """
    keys = jax.random.split(key, 3)
    shapes = ((SIZE, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, SIZE))
    scales = (1.0, HIDDEN**-0.5, HIDDEN**-0.5)
    params = [
        scale * jax.random.normal(key, shape)
        for key, shape, scale in zip(keys, shapes, scales, strict=True)
    ]
    chosen, losers = pairs()
    ref, loss = network(params).reshape(-1), common.loss_of("dpo", {"beta": BETA})

    def total(params):
        logps = network(params).reshape(-1)
        return loss(common.compare(logps, ref, chosen, losers)).mean()

    trained = common.minimise(total, params, lr=LR, steps=STEPS)
    unseen = jnp.ones(SIZE * SIZE, bool).at[chosen].set(False).at[losers].set(False)
    square = (SIZE, SIZE)
    end = jnp.exp(network(trained))
    return {
        "start": jnp.exp(ref).reshape(square),
        "end": end,
        "unseen": unseen.reshape(square),
    }


def compute() -> dict[str, Any]:
    """Computes both parts."""
    keys = jax.random.split(jax.random.key(0), SEEDS)
    masses = jnp.linspace(1e-6, 0.95, 100)
    lines = {ratio: jax.vmap(partial(spread_out, ratio))(masses) for ratio in RATIOS}
    ref = reference(EPSILONS[-1])
    return {
        "masses": masses,
        "losses": {r: jax.vmap(dpo, (0, None))(line, ref) for r, line in lines.items()},
        "worths": {e: worth(lines[RATIOS[-1]], e) for e in EPSILONS},
        "cells": jax.tree.map(np.asarray, jax.jit(jax.vmap(unseen_cells))(keys)),
    }


def raised(cells: dict[str, np.ndarray]) -> np.ndarray:
    """Returns by how much every unseen cell was multiplied, [seeds] lists."""
    ratio = cells["end"] / cells["start"]
    return np.where(cells["unseen"], ratio, np.nan)


def tabulate(results: dict[str, Any]) -> output.Table:
    """Returns loss and J of Xu's two policies, and what the network did."""
    table: output.Table = {}
    for name, policy in POLICIES.items():
        logps = jnp.log(jnp.array(policy))
        for epsilon in EPSILONS:
            case = f"π = {name}, ε = {epsilon:g}"
            table[case, "DPO loss"] = float(dpo(logps, reference(epsilon)))
            table[case, "E[r] − β KL"] = float(worth(logps, epsilon))
    cells, ratio = results["cells"], raised(results["cells"])
    for moment in ("start", "end"):
        mass = (cells[moment] * cells["unseen"]).sum(-1).mean()
        table["8 × 8 network", f"mass of unseen cells, {moment}"] = float(mass)
    counted = np.isfinite(ratio)
    table["8 × 8 network", "share of them raised"] = float((ratio[counted] > 1).mean())
    table["8 × 8 network", "largest factor"] = float(np.nanmax(ratio))
    return table


def draw(results: dict[str, Any]) -> Figure:
    """Draws the loss and J over the unseen mass, and the cells of the network."""
    canvas, (left, middle, right) = output.figure(1, 3, 10.4, 3.4)
    masses = results["masses"]
    for index, (ratio, losses) in enumerate(results["losses"].items()):
        left.plot(masses, losses, color=output.color(index))
        text = f"π(y₂)/π(y₁) = {ratio:g}"
        left.annotate(text, (0.05, float(losses[0]) + 0.015), color=output.color(index))
    left.set(ylim=(0, 0.7), ylabel="DPO loss, β = 0.1", title="DPO does not see y₃ …")
    for index, (epsilon, worths) in enumerate(results["worths"].items()):
        label = f"ref(y₃) = {epsilon:g}"
        middle.plot(masses, worths, color=output.color(3 + index), label=label)
    middle.set(ylabel="E[r] − β KL, β = 0.1", title="… the objective does")
    middle.legend(loc="lower left")
    for ax in (left, middle):
        ax.set_xlabel("π(y₃), the response without a comparison")
    cells = results["cells"]
    start, end = (cells[m][cells["unseen"]] for m in ("start", "end"))
    rises = end > start
    for index, (chosen, label) in enumerate(((~rises, "falls"), (rises, "rises"))):
        style = {"ms": 4, "color": output.color(index), "label": label, "alpha": 0.8}
        right.plot(start[chosen], end[chosen], "o", **style)
    right.plot([1e-3, 1], [1e-3, 1], color=output.INK, lw=0.8)
    right.set(xscale="log", yscale="log", xlabel="π before DPO", ylabel="π after DPO")
    right.set_title(f"8 × 8 network: cells without a pair, {SEEDS} seeds")
    right.legend(loc="lower right")
    return canvas


if __name__ == "__main__":
    output.main(__file__, compute, tabulate, draw)
