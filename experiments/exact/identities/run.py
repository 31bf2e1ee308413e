"""X9: the DPO paper's derivations as numbers, and an erratum in its appendix A.4.

`python -m experiments.exact.identities.run --out=DIR`

Section 4 weighs an example by σ(r̂_l − r̂_w), which is right; the last line printed in
A.4 carries σ(r̂_w − r̂_l). Source: arXiv:2305.18290 §4, A.1, A.3, A.4, A.5, A.6.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from dpo_jax import exact
from dpo_jax.losses import LOSSES, find, options
from dpo_jax.types import Array, ListLogps, PairLogps
from experiments.exact import common, output

RESPONSES, BETA, PAIRS = 6, 0.4, 16
STEPS = np.geomspace(1e-9, 1.0, 28)  # of the finite differences
# Of the losses' own options, in the usual setting.
OPTIONS: dict[str, Any] = {
    "discopop_tau": 0.05,
    "dpop_lambda": 50.0,
    "length_alpha": 0.1,
    "tdpo_alpha": 0.5,
    "odpo_alpha": 1.0,
    "mmpo_gamma": 1.0,
    "chi_clip": 10.0,
    "shift_lambda": 0.75,
    "dr_beta": 1.0,
    "gamma": 1.0,
    "alpha_po_alpha": 0.25,
    "nll_weight": 1.0,
    "slic_margin": 1.0,
    "unlikelihood_alpha": 0.5,
}


def draw_world(seed: int) -> tuple[Array, Array, Array]:
    """Draws (logits, log ref, rewards), f[6] each."""
    rng = np.random.default_rng(seed)
    logits, ref, rewards = rng.normal(size=(3, RESPONSES))
    return jnp.asarray(logits), jax.nn.log_softmax(jnp.asarray(ref)), rewards


def one_pair(logits: Array, ref: Array) -> Array:
    """Returns DPO's loss of response 0 over response 1."""
    loss = common.loss_of("dpo", {"beta": BETA})
    logps = jax.nn.log_softmax(logits)
    return loss(common.compare(logps, ref, np.array([0]), np.array([1])))[0]


def by_hand(logits: Array, ref: Array, *, printed: bool) -> Array:
    """Returns −β σ(r̂_l − r̂_w)(∇log π_w − ∇log π_l); with the sign of A.4 if printed."""
    logps = jax.nn.log_softmax(logits)
    rewards = BETA * (logps - ref)
    margin = rewards[0] - rewards[1]
    slopes = jax.jacobian(jax.nn.log_softmax)(logits)
    weight = jax.nn.sigmoid(margin if printed else -margin)
    return -BETA * weight * (slopes[0] - slopes[1])


def differences(logits: Array, ref: Array, step: Array) -> Array:
    """Returns DPO's gradient by central differences."""

    def one(direction):
        ahead = one_pair(logits + step * direction, ref)
        return (ahead - one_pair(logits - step * direction, ref)) / (2 * step)

    return jax.vmap(one)(jnp.eye(RESPONSES))


def gradient_errors() -> dict[str, Array]:
    """Returns max |formula − finite difference| along the step, f[steps] each."""
    logits, ref, _ = draw_world(0)
    along = jax.jit(jax.vmap(partial(differences, logits, ref)))
    measured = along(jnp.asarray(STEPS))
    return {
        name: jnp.abs(by_hand(logits, ref, printed=printed) - measured).max(-1)
        for name, printed in (("section 4", False), ("A.4 as printed", True))
    }


def random_pairs() -> PairLogps:
    """Draws 16 pairs that have everything a loss may read."""
    rng = np.random.default_rng(3)
    sides = -jnp.asarray(rng.uniform(2.0, 12.0, size=(4, PAIRS)))
    lengths = jnp.asarray(rng.integers(3, 9, size=(2, PAIRS)), float)
    ratings = jnp.asarray(rng.uniform(size=(2, PAIRS)))
    kls = jnp.asarray(rng.uniform(size=(2, PAIRS)))
    mask = jnp.ones(PAIRS, bool)
    return PairLogps(*sides, *lengths, mask, ratings[0] + 1, ratings[1], *kls)


def loss_errors(*, step: float = 1e-5) -> dict[str, float]:
    """Returns for every loss of pairs the relative error of its gradient.

    Autograd against central differences, at 16 random pairs, in the log-probs of the
    policy. Losses that keep statistics are left out: they stop gradients on purpose.
    """
    pairs = random_pairs()
    errors = {}
    for name in LOSSES:
        row = find(name, LOSSES)
        if row.takes != "pairs" or row.running is not None or row.token_weights:
            continue
        used = {key: OPTIONS[key] for key in options(row) if key in OPTIONS}
        loss = common.loss_of(name, used)

        def total(logps, loss=loss):
            seen = pairs._replace(chosen=logps[0], rejected=logps[1])
            return loss(seen).sum()

        errors[name] = float(_relative_error(total, pairs, step))
    return errors


def _relative_error(total: Any, pairs: PairLogps, step: float) -> Array:
    at = jnp.stack([pairs.chosen, pairs.rejected])
    directions = jnp.eye(at.size).reshape(-1, *at.shape)

    def slope(direction):
        ahead, behind = total(at + step * direction), total(at - step * direction)
        return (ahead - behind) / (2 * step)

    @jax.jit
    def compare():
        exactly = jax.grad(total)(at).reshape(-1)
        measured = jax.vmap(slope)(directions)
        return jnp.abs(exactly - measured).max() / jnp.abs(exactly).max()

    return compare()


def identities() -> dict[str, float]:
    """Returns the largest error of each identity over 20 random worlds."""
    worlds = [jnp.stack(x) for x in zip(*map(draw_world, range(20)), strict=True)]
    errors = jax.jit(jax.vmap(_identities))(*worlds)
    return {name: float(values.max()) for name, values in errors.items()}


def _identities(logits: Array, ref: Array, rewards: Array) -> dict[str, Array]:
    """Returns |left − right| of each identity in one world."""
    logps, beta = jax.nn.log_softmax(logits), BETA
    best = exact.optimal_policy(ref, rewards, beta=beta)
    value = exact.soft_value(ref, rewards, beta=beta)
    worth = exact.objective(logps, ref, rewards, beta=beta)
    ratios = logps - ref
    ranked = ListLogps(ratios[None], jnp.ones((1, RESPONSES), bool))
    two = ListLogps(ratios[None, :2], jnp.ones((1, 2), bool))
    plackett_luce = partial(find("plackett_luce", LOSSES), options={"beta": beta})
    remaining = sum(-jax.nn.log_softmax(beta * ratios[k:])[0] for k in range(RESPONSES))
    shifted, projected = rewards + 3.7, exact.project(ref, rewards, beta=beta)
    ranking = exact.plackett_luce(rewards)
    errors = {
        "§4: gradient": jax.grad(one_pair)(logits, ref)
        - by_hand(logits, ref, printed=False),
        "A.1: J(π) = β log Z − β KL(π‖π*)": worth
        + beta * exact.kl(logps, best)
        - value,
        "A.3: Plackett-Luce of 2 is DPO": plackett_luce(two)[0] - one_pair(logits, ref),
        "A.3: eq. 20 = Σ cross-entropies": plackett_luce(ranked)[0] - remaining,
        "A.3: eq. 20 = −log p(ranking)": plackett_luce(ranked)[0]
        + exact.plackett_luce(beta * ratios),
        "Lemma 1: same preferences": exact.plackett_luce(shifted) - ranking,
        "Lemma 2: same optimum": exact.optimal_policy(ref, shifted, beta=beta) - best,
        "Theorem 1: projection of r + c": exact.project(ref, shifted, beta=beta)
        - projected,
        "Theorem 1: idempotent": exact.project(ref, projected, beta=beta) - projected,
        "Prop. 1: E_ref[exp(f/β)] = 1": jnp.exp(ref + projected / beta).sum() - 1,
        "Theorem 1: f(r) = β log π*/ref": projected - beta * (best - ref),
    }
    return {name: jnp.abs(error).max() for name, error in errors.items()}


def compute() -> dict[str, Any]:
    """Computes all errors."""
    return {
        "identities": identities(),
        "gradient": gradient_errors(),
        "losses": loss_errors(),
    }


def tabulate(results: dict[str, Any]) -> output.Table:
    """Returns the largest error of every identity and of every loss's gradient."""
    table = {(name, "error"): value for name, value in results["identities"].items()}
    for name, errors in results["gradient"].items():
        table[f"{name} against finite differences", "error"] = float(errors.min())
    for name, error in results["losses"].items():
        table[f"gradient of `{name}`", "error"] = error
    return table


def draw(results: dict[str, Any]) -> Figure:
    """Draws both formulas against finite differences, and every loss's gradient."""
    canvas, (left, right) = output.figure(1, 2, 9.0, 4.4)
    for index, (name, errors) in enumerate(results["gradient"].items()):
        left.plot(STEPS, errors, "o-", ms=3, color=output.color(index), label=name)
    left.set(xscale="log", yscale="log", xlabel="step of the finite difference")
    left.set(ylabel="max |formula − finite difference|")
    left.set_title("DPO's gradient: §4 is right, A.4's last line is not")
    left.legend(loc=(0.05, 0.78))
    losses = results["losses"]
    places = np.arange(len(losses))[::-1]
    right.plot(list(losses.values()), places, "o", ms=4, color=output.color(0))
    right.set_yticks(places, list(losses), fontsize=7)
    right.set(xscale="log", xlim=(1e-12, 1e-6))
    right.set(xlabel="relative error of autograd against finite differences")
    right.set_title("Losses of the table, 16 random pairs")
    right.grid(True, axis="y")
    return canvas


if __name__ == "__main__":
    output.main(__file__, compute, tabulate, draw)
