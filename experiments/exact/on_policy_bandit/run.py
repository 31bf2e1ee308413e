"""X8: when data must come from the policy itself; the bandit of Tajwar et al.

`python -m experiments.exact.on_policy_bandit.run --out=DIR`

100 arms, a reference whose mass lies low, and a reward that peaks where the reference
has little mass (`far`, arm 70) or much (`near`, arm 20). Each round draws 10 arms for
every context from the policy and takes gradient steps on them; offline is one round
from the reference. Source: arXiv:2404.14367 §5 and its code.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from dpo_jax import exact
from dpo_jax.types import Array, PairLogps
from experiments.exact import common, output

ARMS, CONTEXTS, DRAWS, THRESHOLD = 100, 100, 10, 0.2
LOCATION, SCALE = -0.7, 0.4  # of the Cauchy whose tanh the reference is
PEAKS = {"far": 70.0, "near": 20.0}
LAYERS = (100, 50, 256, 256, 100)
BETA = 10.0
BETAS = (1.0, 0.3, 0.1, 0.05, 0.02)  # of the exact optima
METHODS = ("best of 10", "ipo", "dpo")


class Schedule(NamedTuple):
    """How data is gathered: contexts and steps a round, rounds, rate; seeds to run."""

    contexts: int
    steps: int
    rounds: int
    lr: float
    seeds: int


SCHEDULES = {
    "offline": Schedule(CONTEXTS, 200, 1, 3e-3, 10),
    "on-policy": Schedule(10, 15, 100, 3e-3, 3),
}


def reference() -> np.ndarray:
    """Returns log ref over 100 bins of [−1, 1], from its distribution function."""
    inner = np.arctanh(np.linspace(-1.0, 1.0, ARMS + 1)[1:-1])
    below = 0.5 + np.arctan((inner - LOCATION) / SCALE) / np.pi
    return np.log(np.diff(np.concatenate([[0.0], below, [1.0]])))


def rewards(peak: Array | float) -> Array:
    """Returns e^(−((arm − peak)/10)²), f[100]."""
    return jnp.exp(-jnp.square((jnp.arange(ARMS) - peak) / 10.0))


def start(key: Array) -> list[Array]:
    """Draws the network's kernels; the last is 0, so that training starts at ref."""
    sizes = list(zip(LAYERS[:-1], LAYERS[1:], strict=True))
    keys = jax.random.split(key, len(sizes))
    kernels = [
        jax.random.normal(k, size, jnp.float32) * (2.0 / size[0]) ** 0.5
        for k, size in zip(keys, sizes, strict=True)
    ]
    return [*kernels[:-1], jnp.zeros_like(kernels[-1])]


def policy(kernels: list[Array], contexts: Array) -> Array:
    """Returns log π(arm | context), f32[contexts, 100]."""
    first, *others = kernels
    hidden = contexts @ first
    hidden = hidden - hidden.mean(-1, keepdims=True)
    hidden = hidden / jnp.sqrt(jnp.square(hidden).mean(-1, keepdims=True) + 1e-5)
    for kernel in others:
        hidden = jax.nn.relu(hidden) @ kernel
    return jax.nn.log_softmax(hidden + jnp.asarray(reference(), jnp.float32))


def distil(logps: Array, arms: Array, reward: Array) -> Array:
    """Returns −log π of the best of the draws, a mean over contexts.

    Args:
      logps: f32[contexts, 100].
      arms: i32[contexts, draws].
      reward: f[100].
    """
    place = jnp.argmax(reward[arms], -1)[:, None]
    best = jnp.take_along_axis(arms, place, -1)
    return -jnp.take_along_axis(logps, best, -1).mean()


def contrast(name: str, logps: Array, arms: Array, reward: Array) -> Array:
    """Returns a loss over all pairs of draws whose rewards differ by > 0.2."""
    i, j = common.all_pairs(DRAWS)
    first, second = arms[:, i], arms[:, j]
    better = reward[first] > reward[second]
    chosen = jnp.where(better, first, second)
    rejected = jnp.where(better, second, first)
    counts = reward[chosen] - reward[rejected] > THRESHOLD
    ref = jnp.broadcast_to(jnp.asarray(reference(), logps.dtype), logps.shape)
    sides = [
        jnp.take_along_axis(x, arm, -1).reshape(-1)
        for x in (logps, ref)
        for arm in (chosen, rejected)
    ]
    ones = jnp.ones_like(sides[0])
    losses = common.loss_of(name, {"beta": BETA})(PairLogps(*sides, ones, ones))
    counts = counts.reshape(-1)
    return jnp.where(counts, losses, 0).sum() / jnp.maximum(counts.sum(), 1)


LOSSES = {
    "best of 10": distil,
    "ipo": partial(contrast, "ipo"),
    "dpo": partial(contrast, "dpo"),
}


def worth(kernels: list[Array], contexts: Array, reward: Array) -> tuple[Array, Array]:
    """Returns (E[r], KL(π‖ref)), means over the contexts, computed in full."""
    logps = policy(kernels, contexts)
    spent = exact.kl(logps, jnp.asarray(reference(), logps.dtype))
    return exact.expected_reward(logps, reward).mean(), spent.mean()


def run(
    method: str, schedule: Schedule, peak: Array, kernels: list[Array], key: Array
) -> dict[str, Array]:
    """Trains a method; returns E[r] and KL before and after every round, f[rounds + 1].

    Args:
      method: a name of `LOSSES`.
      schedule: how data is gathered.
      peak: of the reward.
      kernels: to start from; an argument, because XLA's CPU compiler returns garbage
        for a batched product with the constant zeros of the last one (jax 0.10.2).
      key: of contexts and draws.
    """
    context_key, key = jax.random.split(key)
    shape = (CONTEXTS, LAYERS[0])
    contexts = jax.random.uniform(context_key, shape, jnp.float32)
    reward = rewards(peak)
    tx = optax.adam(schedule.lr)

    def loss(kernels, seen, arms):
        return LOSSES[method](policy(kernels, seen), arms, reward)

    def round_of(carry, key):
        kernels, state = carry
        pick, draw = jax.random.split(key)
        size = (schedule.contexts,)
        seen = contexts[jax.random.choice(pick, CONTEXTS, size, replace=False)]
        shape = (DRAWS, schedule.contexts)
        arms = jax.random.categorical(draw, policy(kernels, seen), shape=shape).T

        def step(carry, _):
            kernels, state = carry
            updates, state = tx.update(jax.grad(loss)(kernels, seen, arms), state)
            return (optax.apply_updates(kernels, updates), state), None

        carry, _ = jax.lax.scan(step, (kernels, state), length=schedule.steps)
        return carry, worth(carry[0], contexts, reward)

    keys = jax.random.split(key, schedule.rounds)
    _, after = jax.lax.scan(round_of, (kernels, tx.init(kernels)), keys)
    before = worth(kernels, contexts, reward)
    points = [jnp.append(b, a) for b, a in zip(before, after, strict=True)]
    return dict(zip(("reward", "kl"), points, strict=True))


def runs(method: str, schedule: str, peak: str) -> dict[str, np.ndarray]:
    """Trains all seeds at once; f[seeds, rounds + 1] each."""
    seeds = SCHEDULES[schedule].seeds
    keys = jax.random.split(jax.random.key(0), seeds)
    kernels = jax.vmap(start)(jax.random.split(jax.random.key(1), seeds))
    each = partial(run, method, SCHEDULES[schedule], jnp.asarray(PEAKS[peak]))
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(each))(kernels, keys))


def compute() -> dict[tuple[str, str, str], dict[str, np.ndarray]]:
    """Trains methods × schedules × peaks."""
    return {
        (peak, schedule, method): runs(method, schedule, peak)
        for peak in PEAKS
        for schedule in SCHEDULES
        for method in METHODS
    }


def best_of_ten(peak: float) -> float:
    """Returns E[r] of the best of 10 draws from the reference."""
    reward, ref = rewards(peak), reference()
    best = exact.best_of_n(ref, reward, n=DRAWS)
    return float(exact.expected_reward(best, reward))


def tabulate(results: dict[tuple[str, str, str], Any]) -> output.Table:
    """Returns exact references and the end of every run, means over the seeds."""
    table: output.Table = {}
    ref = reference()
    for peak, at in PEAKS.items():
        reward = rewards(at)
        case = f"{peak}, reference"
        table[case, "E[r]"] = float(exact.expected_reward(ref, reward))
        for beta in BETAS:
            place = exact.frontier(ref, reward, beta=beta)
            table[f"{peak}, π*, β = {beta}", "E[r]"] = float(place.reward)
            table[f"{peak}, π*, β = {beta}", "KL"] = float(place.kl)
        table[f"{peak}, best of 10, exact", "E[r]"] = best_of_ten(at)
    for (peak, schedule, method), curves in results.items():
        case = f"{peak}, {method}, {schedule}"
        table[case, "E[r]"] = float(curves["reward"][:, -1].mean())
        table[case, "KL"] = float(curves["kl"][:, -1].mean())
    return table


def draw(results: dict[tuple[str, str, str], Any]) -> Figure:
    """Draws reference and rewards, and the reward over rounds for both peaks."""
    canvas, (left, *panels) = output.figure(1, 3, 10.4, 3.5)
    mass = np.exp(reference())
    left.fill_between(
        range(ARMS), mass / mass.max(), color=output.INK, alpha=0.25, lw=0
    )
    left.annotate("reference", (20, 0.35), color=output.INK)
    for index, (name, at) in enumerate(PEAKS.items()):
        left.plot(rewards(at), color=output.color(5 + index))
        left.annotate(f"reward `{name}`", (at - 4, 1.02), color=output.color(5 + index))
    left.set(xlabel="arm", ylabel="reward; reference mass (scaled)", ylim=(0, 1.12))
    for ax, (name, at) in zip(panels, PEAKS.items(), strict=True):
        draw_rounds(ax, results, name)
        ax.axhline(best_of_ten(at), color=output.INK, lw=0.8, ls=":")
        ax.set(xlabel="rounds of data from the policy", ylabel="E[r]", ylim=(0, 1.02))
        ax.set_title(f"reward `{name}`")
    panels[0].annotate("best of 10 from ref, exact", (20, 0.33), fontsize=8)
    panels[1].legend(loc=(0.4, 0.42), fontsize=8)
    return canvas


def draw_rounds(ax: Any, results: dict[tuple[str, str, str], Any], peak: str) -> None:
    """Draws on-policy runs as curves and offline ends as dashed levels."""
    for index, method in enumerate(METHODS):
        ink = output.color(index)
        curves = results[peak, "on-policy", method]["reward"]
        name = method if method.startswith("best") else method.upper()
        ax.plot(curves.mean(0), color=ink, label=f"{name}, on-policy")
        level = results[peak, "offline", method]["reward"][:, -1].mean()
        ax.axhline(level, color=ink, lw=1, ls="--", label=f"{name}, offline")


if __name__ == "__main__":
    output.main(__file__, compute, tabulate, draw)
