"""X5: a fifth of the labels turned round; rDPO undoes it, cDPO does the opposite.

`python -m experiments.exact.label_noise.run --out=DIR`

20 responses, every pair of different ones weighted as the reference draws it, β = 1.
A flip turns p into p' = (1 − 2ε)p + ε, and DPO is the maximum-likelihood fit of p'.
Source: arXiv:2403.00409 (rDPO); cDPO after Mitchell 2023.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from dpo_jax import exact
from dpo_jax.types import Array
from experiments.exact import common, output

RESPONSES, BETA, NOISE = 20, 1.0, 0.2
GRID = np.append(np.linspace(0.0, 0.4, 9), NOISE)  # ε; the table's value comes last
LOSSES = {"DPO": "dpo", "cDPO": "dpo", "rDPO": "robust"}
STEPS = 3000


def responses() -> tuple[np.ndarray, np.ndarray]:
    """Draws (log ref, rewards), f[20] each: Dirichlet(1) and N(0, 1)."""
    rng = np.random.default_rng(1)
    ref = np.log(rng.dirichlet(np.ones(RESPONSES)))
    return ref, rng.normal(size=RESPONSES)


def flip(probability: Array, noise: Array | float) -> Array:
    """Returns (1 − 2ε)p + ε, the probability of a label that was flipped with ε."""
    return (1 - 2 * noise) * probability + noise


def fit(name: str, noise: Array | float, *, steps: int = STEPS) -> Array:
    """Minimises a loss over flipped labels, told the right ε; returns log π, f[20]."""
    ref, rewards = map(jnp.asarray, responses())
    first, second = common.all_pairs(RESPONSES)
    clean = exact.bradley_terry(rewards[first] - rewards[second])
    weight = jnp.exp(ref[first] + ref[second])
    smoothing = jnp.zeros(()) if name == "DPO" else noise
    options = {"beta": BETA, "label_smoothing": smoothing}
    loss = common.loss_of(LOSSES[name], options)

    def total(theta):
        pairs = common.compare(jax.nn.log_softmax(theta), ref, first, second)
        values = common.over_labels(loss, pairs, flip(clean, noise))
        return (weight * values).sum() / weight.sum()

    return jax.nn.log_softmax(common.minimise(total, ref, lr=0.1, steps=steps))


def measure(logps: Array) -> dict[str, Array]:
    """Compares a policy with the optimum and with the reference."""
    ref, rewards = responses()
    best = exact.optimal_policy(ref, rewards, beta=BETA)
    return {
        "KL(π*‖π)": exact.kl(best, logps),
        "KL(π‖ref)": exact.kl(logps, ref),
        "E[r]": exact.expected_reward(logps, rewards),
    }


def compute() -> dict[str, dict[str, Array]]:
    """Fits each loss along ε; loss -> measure -> f[ε]."""
    noise = jnp.asarray(GRID)
    run = {name: jax.jit(jax.vmap(partial(fit, name))) for name in LOSSES}
    results = {name: jax.vmap(measure)(fits(noise)) for name, fits in run.items()}
    best = exact.optimal_policy(*responses(), beta=BETA)
    results["π*"] = {name: value[None] for name, value in measure(best).items()}
    return results


def tabulate(results: dict[str, dict[str, Array]]) -> output.Table:
    """Returns the measures at ε = 0.2."""
    return {
        (loss if loss == "π*" else f"{loss}, ε = {NOISE}", name): float(values[-1])
        for loss, measures in results.items()
        for name, values in measures.items()
    }


def draw(results: dict[str, dict[str, Array]]) -> Figure:
    """Draws the distance to the optimum and the reward along ε."""
    canvas, (left, right) = output.figure(1, 2, 8.4, 3.4)
    for ax, name in ((left, "KL(π*‖π)"), (right, "E[r]")):
        for index, loss in enumerate(LOSSES):
            values = np.asarray(results[loss][name])[:-1]
            ax.plot(
                GRID[:-1], values, "o-", ms=4, color=output.color(index), label=loss
            )
        ax.set_xlabel("ε, share of labels turned round")
    left.set(ylabel="KL(π*‖π) [nats]", title="Distance to the optimum of clean labels")
    right.set(ylabel="E[r]", title="Reward")
    right.axhline(results["π*"]["E[r]"][0], color=output.INK, lw=0.8, ls="--")
    best = float(results["π*"]["E[r]"][0])
    right.annotate("π*, and rDPO on it", (0.28, best - 0.06), color=output.INK)
    left.legend(loc="upper left")
    return canvas


if __name__ == "__main__":
    output.main(__file__, compute, tabulate, draw)
