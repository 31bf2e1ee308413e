"""X4: a policy class in which DPO ends below its own reference.

`python -m experiments.exact.misspecified.run --out=DIR`

Three responses, one parameter: π_θ = softmax(θ, −θ, 0), a uniform reference at θ = 0,
true rewards (1, 2, 0), and a hundred times more comparisons of the first with the third
than of the other pairs. DPO fits what was compared; E[r] − β KL asks for the opposite.
Source: the construction of AuxDPO (ICLR 2026), Proposition 3.
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

REWARDS = np.array([1.0, 2.0, 0.0])
PAIRS = np.array([[0, 1, 0], [1, 2, 2]])  # (first, second) of 1-2, 2-3, 1-3
COUNTS = np.array([1.0, 1.0, 100.0])
BETAS = (1.0, 5.0, 10.0, 50.0)
SHOWN = 10.0  # β of the left panel
BRACKET = 5.0  # θ is looked for in [−5, 5]


def policy(theta: Array) -> Array:
    """Returns log π_θ, f[3] nats."""
    return jax.nn.log_softmax(theta * jnp.array([1.0, -1.0, 0.0]))


def dpo(theta: Array, beta: Array | float) -> Array:
    """Returns DPO's population loss, a mean over all comparisons."""
    ref, loss = policy(0.0), common.loss_of("dpo", {"beta": beta})
    probability = exact.bradley_terry(REWARDS[PAIRS[0]] - REWARDS[PAIRS[1]])
    pairs = common.compare(policy(theta), ref, *PAIRS)
    values = common.over_labels(loss, pairs, probability)
    return (COUNTS * values).sum() / COUNTS.sum()


def rlhf(theta: Array, beta: Array | float) -> Array:
    """Returns −(E[r] − β KL)."""
    return -exact.objective(policy(theta), policy(0.0), REWARDS, beta=beta)


OBJECTIVES = {"DPO": dpo, "RLHF": rlhf}


def solve(name: str, beta: Array) -> tuple[Array, Array]:
    """Minimises an objective in the class; returns (θ, E[r])."""
    loss = partial(OBJECTIVES[name], beta=beta)
    theta = common.zoom(loss, -BRACKET, BRACKET)
    return theta, exact.expected_reward(policy(theta), REWARDS)


def compute() -> dict[str, Any]:
    """Solves both at the table's β and along a grid; (θ, E[r]) of f[β] each."""
    grid = np.geomspace(0.5, 100.0, 80)
    solvers = {name: jax.jit(jax.vmap(partial(solve, name))) for name in OBJECTIVES}
    return {
        "table": {name: run(jnp.asarray(BETAS)) for name, run in solvers.items()},
        "curve": {name: run(jnp.asarray(grid)) for name, run in solvers.items()},
        "grid": grid,
    }


def tabulate(results: dict[str, Any]) -> output.Table:
    """Returns θ, π and E[r] of both solutions."""
    table: output.Table = {("reference", "E[r]"): float(REWARDS.mean())}
    for b, beta in enumerate(BETAS):
        for name, (thetas, rewards) in results["table"].items():
            case = f"{name}, β = {beta}"
            table[case, "θ"] = float(thetas[b])
            for i, p in enumerate(np.exp(policy(thetas[b])), start=1):
                table[case, f"π(y{i})"] = float(p)
            table[case, "E[r]"] = float(rewards[b])
    return table


def draw(results: dict[str, Any]) -> Figure:
    """Draws the class with both solutions at one β, and E[r] of both along β."""
    canvas, (left, right) = output.figure(1, 2, 8.4, 3.6)
    thetas = np.linspace(-0.35, 0.35, 200)
    worth = jax.vmap(lambda t: exact.expected_reward(policy(t), REWARDS))(thetas)
    left.plot(thetas, worth, color=output.INK, lw=1.2)
    at = BETAS.index(SHOWN)
    places = {name: (t[at], r[at]) for name, (t, r) in results["table"].items()}
    places["reference"] = (0.0, 1.0)
    for index, (name, place) in enumerate(places.items()):
        left.plot(*place, "o", color=output.color(index), ms=7)
        text = {"textcoords": "offset points", "color": output.color(index)}
        left.annotate(f"{name}: {place[1]:.3f}", place, (8, 4), **text)
    left.set(xlabel="θ of the policy softmax(θ, −θ, 0)", ylabel="E[r]")
    left.set_title(f"β = {SHOWN:g}: where each objective ends")
    for index, (name, (_, rewards)) in enumerate(results["curve"].items()):
        right.plot(results["grid"], rewards, color=output.color(index), label=name)
    right.axhline(1.0, color=output.color(2), lw=1, ls="--", label="reference")
    right.set(xscale="log", xlabel="β", ylabel="E[r] of the solution")
    right.set_title("DPO below its reference at every β")
    right.legend(loc="upper right")
    return canvas


if __name__ == "__main__":
    output.main(__file__, compute, tabulate, draw)
