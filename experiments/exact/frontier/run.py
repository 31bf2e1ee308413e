"""X7: the frontier of reward and KL, its slope, and best-of-n below it.

`python -m experiments.exact.frontier.run --out=DIR`

20 responses. Along π*_β the slope dE[r]/dKL is β. Best-of-n spends at most
ln n − (n − 1)/n nats. Source: arXiv:2305.18290 eq. 4; arXiv:2401.01879 (best-of-n).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from dpo_jax import exact
from dpo_jax.types import Array
from experiments.exact import output
from experiments.exact.label_noise.run import responses

BETAS = (0.1, 0.5, 1.0, 3.0)
NS = (2, 4, 16, 64)
SAMPLES, PROMPTS = 1024, 64  # of the frontier from samples


def place(beta: Array) -> exact.FrontierPoint:
    """Returns where π*_β lies."""
    return exact.frontier(*responses(), beta=beta)


def slope(beta: Array) -> Array:
    """Returns dE[r]/dKL along π*_β, by differentiating both in β."""
    change = jax.jacobian(place)(beta)
    return change.reward / change.kl


def best_of(n: Array) -> tuple[exact.FrontierPoint, Array]:
    """Returns where the best of n lies, and the frontier's reward at its KL."""
    ref, rewards = responses()
    logps = exact.best_of_n(ref, jnp.asarray(rewards), n=n)
    spent = exact.kl(logps, ref)
    reward = exact.expected_reward(logps, rewards)
    most = exact.frontier_reward(ref, rewards, spent)
    return exact.FrontierPoint(spent, reward), most


def estimate(beta: Array) -> tuple[exact.FrontierPoint, Array]:
    """Estimates the place of π*_β from 1,024 reference samples a prompt."""
    ref, rewards = map(jnp.asarray, responses())
    shape = (PROMPTS, SAMPLES)
    drawn = jax.random.categorical(jax.random.key(0), ref, shape=shape)
    return exact.sampled_frontier(rewards[drawn], beta=beta)


def compute() -> dict[str, Any]:
    """Computes the frontier, its slopes, best-of-n and the sampled frontier."""
    curve = jnp.geomspace(0.02, 100.0, 200)
    return {
        "curve": jax.vmap(place)(curve),
        "points": jax.vmap(place)(jnp.asarray(BETAS)),
        "slopes": jax.vmap(slope)(jnp.asarray(BETAS)),
        "best_of": jax.jit(jax.vmap(best_of))(jnp.asarray(NS, float)),
        "sampled": jax.jit(partial(jax.lax.map, estimate))(jnp.geomspace(0.05, 30, 12)),
    }


def tabulate(results: dict[str, Any]) -> output.Table:
    """Returns slopes along the frontier and best-of-n beside it."""
    table: output.Table = {}
    for b, beta in enumerate(BETAS):
        case = f"π*, β = {beta}"
        table[case, "KL"] = float(results["points"].kl[b])
        table[case, "E[r]"] = float(results["points"].reward[b])
        table[case, "dE[r]/dKL"] = float(results["slopes"][b])
    places, most = results["best_of"]
    for i, n in enumerate(NS):
        case = f"best of {n}"
        table[case, "KL"] = float(places.kl[i])
        table[case, "E[r]"] = float(places.reward[i])
        table[case, "KL bound"] = float(exact.best_of_n_kl_bound(n))
        table[case, "frontier at its KL"] = float(most[i])
    return table


def draw(results: dict[str, Any]) -> Figure:
    """Draws the frontier with its tangents and best-of-n, and best-of-n's KL."""
    canvas, (left, right) = output.figure(1, 2, 9.0, 3.9)
    curve, points = results["curve"], results["points"]
    left.plot(curve.kl, curve.reward, color=output.INK, lw=1.2, label="frontier, π*_β")
    for b, beta in enumerate(BETAS):
        x, y = float(points.kl[b]), float(points.reward[b])
        half = 0.35 / np.hypot(1.0, beta)
        run = np.array([x - half, x + half])
        left.plot(run, y + beta * (run - x), color=output.color(0), lw=2.2)
        text = {"textcoords": "offset points", "color": output.color(0), "fontsize": 8}
        left.annotate(f"slope β = {beta:g}", (x, y), (-62, 8), **text)
    places, _ = results["best_of"]
    style = {"color": output.color(1), "label": "best of n"}
    left.plot(places.kl, places.reward, "s", ms=5, **style)
    for n, x, y in zip(NS, *places, strict=True):
        text = {"textcoords": "offset points", "color": output.color(1), "fontsize": 8}
        left.annotate(f"n = {n}", (x, y), (6, -11), **text)
    sampled, trusted = results["sampled"]
    style = {"color": output.color(2), "label": f"from {SAMPLES:,} samples a prompt"}
    left.plot(sampled.kl[trusted], sampled.reward[trusted], "x", ms=5, **style)
    left.set(xlabel="KL(π‖ref) [nats]", ylabel="E[r]", xlim=(-1.0, 3.6))
    left.set_title("20 responses")
    left.legend(loc="lower right")
    draw_kl(right)
    return canvas


def draw_kl(ax: Any) -> None:
    """Draws what best-of-n spends, with its bound."""
    ns = np.unique(np.geomspace(1, 256, 40).round())
    spent = jax.jit(jax.vmap(lambda n: best_of(n)[0].kl))(ns)
    ax.plot(ns, exact.best_of_n_kl_bound(ns), color=output.INK, lw=1.2)
    ax.plot(ns, spent, color=output.color(1))
    ax.annotate("bound ln n − (n − 1)/n", (2.2, 2.6), color=output.INK)
    ax.annotate("exact, 20 responses", (26.0, 1.7), color=output.color(1))
    ax.set(xscale="log", xlabel="n", ylabel="KL(best of n‖ref) [nats]")
    ax.set_xticks((1, 4, 16, 64, 256), ("1", "4", "16", "64", "256"))
    ax.minorticks_off()
    ax.set_title("What best-of-n spends")


if __name__ == "__main__":
    output.main(__file__, compute, tabulate, draw)
