"""X1 and X1b: what DPO, IPO and hinge converge to when they see every label.

`python -m experiments.exact.optimal_policy.run --out=DIR`

Population losses: every pair, weighted by its Bradley-Terry probability.
Source: arXiv:2305.18290 eq. 4 and 7; arXiv:2310.12036 eq. 17.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from dpo_jax import exact
from dpo_jax.objectives import terms
from dpo_jax.objectives.preference import gather_pairs
from dpo_jax.types import Array
from experiments.exact import common, output
from experiments.exact.optimal_policy import trie

BETAS = (0.05, 0.1, 0.5, 1.0, 5.0)
ARMS = 8
TRIE_BETA = 0.3
LABEL_PROBABILITIES = np.linspace(0.05, 0.95, 18)


def arms() -> tuple[np.ndarray, np.ndarray]:
    """Draws (log ref, rewards), f[8] each: Dirichlet(2) and N(0, 1)."""
    rng = np.random.default_rng(1)
    rewards = rng.normal(size=ARMS)
    return np.log(rng.dirichlet(np.full(ARMS, 2.0))), rewards


def fit_arms(name: str, beta: Array | float, *, steps: int = 3000) -> Array:
    """Minimises a loss over all labels of the 8 arms; returns log π, f[8]."""
    ref, rewards = map(jnp.asarray, arms())
    first, second = common.all_pairs(ARMS)
    probability = exact.bradley_terry(rewards[first] - rewards[second])
    loss = common.loss_of(name, {"beta": beta})

    def total(theta):
        pairs = common.compare(jax.nn.log_softmax(theta), ref, first, second)
        return common.over_labels(loss, pairs, probability).mean()

    return jax.nn.log_softmax(common.minimise(total, ref, lr=0.3, steps=steps))


def ipo_arms(beta: float) -> Array:
    """Returns the closed form of IPO over the same labels, f[8] nats."""
    ref, rewards = arms()
    wins = exact.bradley_terry(rewards[:, None] - rewards)
    return exact.ipo_optimum(ref, wins * (1 - np.eye(ARMS)), beta=beta)


def fit_trie(*, steps: int = 4000) -> dict[str, Array]:
    """Minimises DPO over all labels of the 81 sequences, through the production path.

    Returns:
      `logps` f[81] and `first_word` f[3] of the trained table, and their closed forms
      `optimal_logps` and `optimal_first_word`, nats.
    """
    rng = np.random.default_rng(2)
    ref_table = jnp.asarray(rng.normal(size=(trie.NODES, trie.WORDS)))
    rewards = jnp.asarray(rng.normal(size=len(trie.SEQUENCES)))
    batch, places, first, second = trie.rows("prefix_shared")
    annotated = terms.token_stats(trie.apply, ref_table, batch, 512)[0].logps
    batch = jax.tree.map(jnp.asarray, batch._replace(token={"ref_logps": annotated}))
    probability = exact.bradley_terry(rewards[first] - rewards[second])
    loss = common.loss_of("dpo", {"beta": TRIE_BETA})

    def total(table):
        pairs = gather_pairs(terms.score(trie.apply, table, batch, 512))
        return common.over_labels(loss, pairs, probability).mean()

    fit = jax.jit(partial(common.minimise, total, lr=0.1, steps=steps))
    table = fit(ref_table)
    scored = jax.jit(partial(terms.score, trie.apply, batch=batch, chunk=512))(table)
    ref_logps = trie.sequence_logps(ref_table)
    return {
        "logps": np.asarray(scored.response["logps"]).reshape(-1)[places],
        "optimal_logps": exact.optimal_policy(ref_logps, rewards, beta=TRIE_BETA),
        "first_word": jax.nn.log_softmax(table)[trie.node(())],
        "optimal_first_word": trie.first_word(ref_table, rewards, TRIE_BETA),
    }


def fit_two_arms(name: str, probability: Array) -> Array:
    """Returns the log-ratio difference δ of two arms that a loss settles on, β = 1."""
    loss = common.loss_of(name, {"beta": 1.0})
    even = jnp.zeros(2)

    def total(delta):
        pairs = common.compare(jnp.stack([delta, 0.0]), even, *np.array([[0], [1]]))
        return common.over_labels(loss, pairs, probability)[0]

    return common.zoom(total, -5.0, 5.0)


def compute() -> dict[str, Any]:
    """Runs everything; see `table` for what is in it."""
    betas = jnp.asarray(BETAS)
    probabilities = jnp.asarray(LABEL_PROBABILITIES)
    ref, rewards = arms()
    return {
        "dpo": jax.jit(jax.vmap(partial(fit_arms, "dpo")))(betas),
        "ipo": jax.jit(jax.vmap(partial(fit_arms, "ipo")))(betas),
        "optimal": [exact.optimal_policy(ref, rewards, beta=b) for b in BETAS],
        "ipo_optimum": [ipo_arms(b) for b in BETAS],
        "trie": fit_trie(),
        "margins": {
            name: jax.jit(jax.vmap(partial(fit_two_arms, name)))(probabilities)
            for name in ("dpo", "ipo", "hinge")
        },
    }


def distance(logps: Array, want: Array) -> float:
    """Returns max |log π − log π*|, nats."""
    return float(jnp.abs(jnp.asarray(logps) - jnp.asarray(want)).max())


def tabulate(results: dict[str, Any]) -> output.Table:
    """Returns how far each loss ended from its closed form and from π*."""
    table = {}
    for i, beta in enumerate(BETAS):
        dpo, ipo, optimal = results["dpo"][i], results["ipo"][i], results["optimal"][i]
        case = f"8 arms, β = {beta}"
        table[case, "DPO to π*"] = distance(dpo, optimal)
        table[case, "IPO to its closed form"] = distance(ipo, results["ipo_optimum"][i])
        table[case, "IPO to π*"] = distance(ipo, optimal)
    fit = results["trie"]
    case = f"81 sequences, β = {TRIE_BETA}"
    table[case, "DPO to π*"] = distance(fit["logps"], fit["optimal_logps"])
    case = f"first word of 81 sequences, β = {TRIE_BETA}"
    table[case, "DPO to π*"] = distance(fit["first_word"], fit["optimal_first_word"])
    return table


def draw(results: dict[str, Any]) -> Figure:
    """Draws π against π* over sequences, and what a margin of two arms becomes."""
    canvas, (left, right) = output.figure(1, 2, 8.0, 3.6)
    fit = results["trie"]
    left.plot(*[[-18, 0]] * 2, color=output.INK, linewidth=0.8, zorder=1)
    left.plot(fit["optimal_logps"], fit["logps"], "o", ms=4, color=output.color(0))
    left.set(
        xlabel="log π*(sequence), closed form [nats]",
        ylabel="log π(sequence), trained with DPO [nats]",
        title="81 sequences, through the production log-probs",
    )
    labels = np.linspace(0.02, 0.98, 200)
    curves = {
        "dpo": ("DPO: log p/(1 − p)", np.log(labels / (1 - labels))),
        "ipo": ("IPO: p − ½", labels - 0.5),
        "hinge": ("hinge: sign(p − ½)", np.sign(labels - 0.5)),
    }
    for index, (name, (formula, values)) in enumerate(curves.items()):
        right.plot(labels, values, color=output.color(index), label=formula)
        margin = results["margins"][name]
        right.plot(LABEL_PROBABILITIES, margin, "o", ms=3.5, color=output.color(index))
    right.set(
        xlabel="probability p that the first response is preferred",
        ylabel="δ, difference of the two log-ratios [nats]",
        title="Two responses, β = 1: the margin a loss asks for",
    )
    right.legend(loc="upper left")
    return canvas


if __name__ == "__main__":
    output.main(__file__, compute, tabulate, draw)
