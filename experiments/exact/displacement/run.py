"""X6: the chosen response loses probability while the margin grows; DPOP forbids it.

`python -m experiments.exact.displacement.run --out=DIR`

A log-linear policy of one parameter with features (1, 0, 5) of the chosen, the
rejected and one other response, and a uniform reference at θ = 0. Any step that raises
the margin raises the other response more.
Source: after arXiv:2410.08847 (likelihood displacement); arXiv:2402.13228 (DPOP).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from dpo_jax.types import Array
from experiments.exact import common, output

FEATURES = np.array([1.0, 0.0, 5.0])
NAMES = ("chosen", "rejected", "other")
CHOSEN, REJECTED = np.array([0]), np.array([1])
BETA, LR, STEPS = 1.0, 1.0, 200
LAMBDAS = (0.0, 5.0, 50.0)
LOW, HIGH = -4.0, 8.0  # θ of the search for DPOP's minimum


def policy(theta: Array) -> Array:
    """Returns log π_θ, f[3] nats."""
    return jax.nn.log_softmax(theta * FEATURES)


def total(name: str, options: dict[str, Any], theta: Array) -> Array:
    """Returns a loss of the one pair."""
    loss = common.loss_of(name, {"beta": BETA, **options})
    return loss(common.compare(policy(theta), policy(0.0), CHOSEN, REJECTED))[0]


def dpop(penalty: Array | float, theta: Array) -> Array:
    """Returns DPOP's loss of the one pair; λ is `penalty`."""
    return total("dpop", {"dpop_lambda": penalty}, theta)


def descend() -> Array:
    """Takes SGD steps on DPO from the reference; returns log π, f[steps + 1, 3]."""

    def step(theta, _):
        new = theta - LR * jax.grad(partial(total, "dpo", {}))(theta)
        return new, policy(new)

    start = jnp.zeros(())
    _, path = jax.lax.scan(step, start, length=STEPS)
    return jnp.concatenate([policy(start)[None], path])


def compute() -> dict[str, Any]:
    """Trains DPO and finds DPOP's global minimum for each λ."""
    thetas, penalties = jnp.linspace(LOW, HIGH, 601), jnp.asarray(LAMBDAS)
    over_thetas = jax.vmap(dpop, (None, 0))

    def lowest(penalty):
        return common.zoom(partial(dpop, penalty), LOW, HIGH)

    return {
        "slope": jax.jit(jax.jacobian(policy))(0.0),
        "path": jax.jit(descend)(),
        "thetas": thetas,
        "losses": jax.jit(jax.vmap(over_thetas, (0, None)))(penalties, thetas),
        "best": jax.jit(jax.vmap(lowest))(penalties),
    }


def tabulate(results: dict[str, Any]) -> output.Table:
    """Returns the first slopes, and the ends of DPO and DPOP."""
    table: output.Table = {}

    def put(case, values):
        for name, value in zip(NAMES, values, strict=True):
            table[case, name] = float(value)

    put("d log π/dθ at the reference", results["slope"])
    put("π after DPO", np.exp(results["path"][-1]))
    for penalty, theta in zip(LAMBDAS, results["best"], strict=True):
        case = f"π at DPOP's minimum, λ = {penalty:g}"
        put(case, np.exp(policy(theta)))
        table[case, "θ"] = float(theta)
    return table


def draw(results: dict[str, Any]) -> Figure:
    """Draws DPO's path, and DPOP's loss over θ."""
    canvas, (left, right) = output.figure(1, 2, 8.4, 3.6)
    for index, name in enumerate(NAMES):
        values = np.asarray(results["path"])[:, index]
        left.plot(values, color=output.color(index))
        at = (STEPS, values[-1])
        left.annotate(f" {name}", at, color=output.color(index), va="center")
    left.set(xlim=(0, STEPS * 1.25), xlabel="SGD step on DPO")
    left.set(ylabel="log π [nats]", title="DPO lowers the chosen response too")
    for index, penalty in enumerate(LAMBDAS):
        ink, best = output.color(3 + index), results["best"][index]
        label = f"λ = {penalty:g}" + (" (DPO)" if penalty == 0 else "")
        right.plot(results["thetas"], results["losses"][index], color=ink, label=label)
        right.plot(best, dpop(penalty, best), "o", color=ink, ms=6, clip_on=False)
    right.set(ylim=(0, 4), xlim=(LOW, HIGH), xlabel="θ", ylabel="loss of the pair")
    right.set_title("DPOP: the minimum (dot) moves to the reference")
    right.legend(loc="upper right")
    return canvas


if __name__ == "__main__":
    output.main(__file__, compute, tabulate, draw)
