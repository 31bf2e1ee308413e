"""X2: the three-armed bandit of the IPO paper, and an erratum about its third data set.

`python -m experiments.exact.ipo_bandit.run --out=DIR`

Adam at 0.01, minibatches of 9 drawn with replacement, 18,000 steps, 10 seeds.
Source: arXiv:2310.12036 §5.4 and figure 2; their τ is our β.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from dpo_jax import exact
from dpo_jax.types import Array
from experiments.exact import common, output

# (preferred, other) of the arms a, b, c = 0, 1, 2.
DATA = {
    "D1": ((0, 1), (1, 2), (0, 2)),
    "D2": ((0, 1), (1, 2), (2, 0)),
    "D3": ((0, 1), (1, 0)),
    "D3'": ((0, 1), (1, 0), (1, 2)),
}
BETAS = (0.1, 0.5, 1.0)
SEEDS, STEPS, MINIBATCH, LR = 10, 18_000, 9, 0.01
EVERY = 100  # steps between two points of a curve
LOSSES = ("ipo", "dpo")


def wins(data: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Counts how often row was preferred to column, f[3, 3]."""
    count = np.zeros((3, 3))
    np.add.at(count, tuple(np.array(data).T), 1.0)
    return count


def fit(name: str, wins: Array, beta: Array) -> Array:
    """Minimises a loss over a whole data set, without noise; returns log π, f[3].

    Args:
      name: of the loss.
      wins: f[3, 3], how often row was preferred to column.
      beta: strength of the KL penalty.
    """
    first, second = np.nonzero(1 - np.eye(3))
    ref, loss = jnp.zeros(3), common.loss_of(name, {"beta": beta})
    counts = wins[first, second]

    def total(theta):
        pairs = common.compare(jax.nn.log_softmax(theta), ref, first, second)
        return (counts * loss(pairs)).sum() / counts.sum()

    return jax.nn.log_softmax(common.minimise(total, ref, lr=0.1, steps=2000))


def curve(
    name: str, beta: Array, data: Array, size: Array, key: Array, *, steps: int = STEPS
) -> Array:
    """Trains by the printed protocol; returns π every `EVERY` steps, f[points, 3].

    Args:
      name: of the loss.
      beta: strength of the KL penalty.
      data: i32[3, 2], of which the first `size` rows count.
      size: comparisons in the data set.
      key: of the minibatches.
      steps: a multiple of `EVERY`.
    """
    ref, loss = jnp.full(3, -jnp.log(3.0)), common.loss_of(name, {"beta": beta})
    tx = optax.adam(LR)

    def total(theta, drawn):
        logps = jax.nn.log_softmax(theta)
        return loss(common.compare(logps, ref, *data[drawn].T)).mean()

    def step(carry, drawn):
        theta, state = carry
        updates, state = tx.update(jax.grad(total)(theta, drawn), state)
        return (optax.apply_updates(theta, updates), state), None

    def stretch(carry, key):
        drawn = jax.random.randint(key, (EVERY, MINIBATCH), 0, size)
        carry, _ = jax.lax.scan(step, carry, drawn)
        return carry, jax.nn.softmax(carry[0])

    start = jnp.zeros(3)
    keys = jax.random.split(key, steps // EVERY)
    _, points = jax.lax.scan(stretch, (start, tx.init(start)), keys)
    return jnp.concatenate([jax.nn.softmax(start)[None], points])


def compute() -> dict[str, Any]:
    """Trains losses × data sets × β × seeds.

    Returns:
      loss -> π along training, f[data sets, β, seeds, points, 3].
    """
    padded = np.array([(*d, *d[:1])[:3] for d in DATA.values()])
    sizes = np.array([len(d) for d in DATA.values()])
    keys = jax.random.split(jax.random.key(0), SEEDS)

    def runs(name):
        over_seeds = jax.vmap(partial(curve, name), (None, None, None, 0))
        over_betas = jax.vmap(over_seeds, (0, None, None, None))
        over_data = jax.vmap(over_betas, (None, 0, 0, None))
        return jax.jit(over_data)(jnp.asarray(BETAS), padded, sizes, keys)

    return {name: np.asarray(runs(name)) for name in LOSSES}


def closed_form(name: str, beta: float) -> np.ndarray:
    """Returns π of IPO's minimiser on one of the data sets, f[3]."""
    logps = exact.ipo_optimum(np.zeros(3), wins(DATA[name]), beta=beta)
    return np.exp(np.asarray(logps))


def tabulate(results: dict[str, Any]) -> output.Table:
    """Returns the final π, means over the seeds."""
    table = {}
    for loss in LOSSES:
        for d, name in enumerate(DATA):
            for b, beta in enumerate(BETAS):
                final = results[loss][d, b, :, -1].mean(0)
                for arm, value in zip("abc", final, strict=True):
                    table[f"{loss} {name} τ = {beta}", f"π({arm})"] = float(value)
    return table


def draw(results: dict[str, Any]) -> Figure:
    """Draws π along training: means of the seeds, 95 % bands, closed forms dashed."""
    canvas, axes = output.figure(3, 4, 9.0, 5.6)
    steps = np.arange(0, STEPS + 1, EVERY)
    shown = (("ipo", 0), ("ipo", 2), ("dpo", 2))
    for row, (loss, b) in zip(axes, shown, strict=True):
        for d, (name, ax) in enumerate(zip(DATA, row, strict=True)):
            runs = results[loss][d, b]
            mean, spread = runs.mean(0), 1.96 * runs.std(0, ddof=1) / np.sqrt(SEEDS)
            for arm in range(3):
                values, half = mean[:, arm], spread[:, arm]
                ax.plot(steps, values, color=output.color(arm), lw=1.3)
                band = {"color": output.color(arm), "alpha": 0.25, "linewidth": 0}
                ax.fill_between(steps, values - half, values + half, **band)
                if loss == "ipo":
                    level = closed_form(name, BETAS[b])[arm]
                    ax.axhline(level, color=output.color(arm), lw=0.8, ls="--")
            ax.set(ylim=(-0.03, 1.03), xlim=(0, STEPS), xticks=(0, STEPS // 2, STEPS))
            ax.label_outer()
        row[0].set_ylabel(f"{loss.upper()}, τ = {BETAS[b]}\nprobability of an arm")
    titles = {
        "D1": "D1: a≻b, b≻c, a≻c",
        "D2": "D2: a≻b, b≻c, c≻a",
        "D3": "D3 as printed: a≻b, b≻a",
        "D3'": "D3': a≻b, b≻a, b≻c",
    }
    for ax, name in zip(axes[0], DATA, strict=True):
        ax.set_title(titles[name])
    for ax in axes[-1]:
        ax.set_xlabel("step")
    handles = axes[0, 0].lines[::2]
    axes[0, 0].legend(handles, "abc", loc="center right", title="arm")
    return canvas


if __name__ == "__main__":
    output.main(__file__, compute, tabulate, draw)
