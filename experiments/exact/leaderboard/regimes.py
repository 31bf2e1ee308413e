"""The worlds and the data that the losses are compared on.

All have X10's reference and 5,760 pairs a seed; regimes differ in labels, in the true
reward, or in where the pairs come from.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import exact
from dpo_jax.types import Array
from experiments.exact import common, enumerable
from experiments.exact.enumerable import Pairs, World

REGIMES = {
    "bradley_terry": "labels σ(r₁ − r₂), pairs of the reference",
    "deterministic": "the greater reward always wins",
    "flipped": "Bradley-Terry labels, 20 % turned round",
    "misspecified": "the reward has a term of first × last word: π* is in no table",
    "poor_coverage": "pairs of ref³/Z instead of ref, Bradley-Terry labels",
}
LABELS = ("bradley_terry", "deterministic", "flipped")
PAIRS = 5_760
INTERACTION = 1.0  # standard deviation of the term of two words, nats
SHARPNESS = 3.0  # of the policy that `poor_coverage` draws from


def make_world(regime: str) -> World:
    """Makes X10's environment, with another reward if it is to be misspecified."""
    world = enumerable.make_world(seed=19, vocabulary=10, length=3, scale=1.25)
    if regime != "misspecified":
        return world
    words = len(world.ref[0])
    term = INTERACTION * np.random.default_rng(20).normal(size=(words, 1, words))
    rewards = world.rewards.reshape(words, words, words) + term
    return world._replace(rewards=rewards.reshape(-1).astype(world.rewards.dtype))


def sampler(regime: str, world: World) -> World:
    """Returns the world whose reference writes the responses of the pairs."""
    if regime != "poor_coverage":
        return world
    return world._replace(ref_logps=jax.nn.log_softmax(SHARPNESS * world.ref_logps))


def sample(regime: str, world: World, seeds: np.ndarray) -> Pairs:
    """Draws the training sets of all seeds, [seeds, PAIRS] in each field."""
    source = sampler(regime, world)
    labels = regime if regime in LABELS else "bradley_terry"

    def one(seed):
        setting = {"groups": PAIRS, "completions": 2, "labels": labels}
        return enumerable.sample_pairs(jax.random.key(seed), source, **setting)

    return jax.jit(jax.vmap(one))(seeds)


def least_regret(world: World, beta: float) -> Array:
    """Returns the least regret of any policy of the class, by ascent of J itself."""
    best = exact.optimal_policy(world.ref_logps, world.rewards, beta=beta)

    def regret(tables):
        return beta * exact.kl(enumerable.sequence_logps(tables), best)

    return regret(common.minimise(regret, world.ref, lr=0.1, steps=3_000))


def bounds(beta: float) -> dict[str, tuple[float, float]]:
    """Returns by regime the regret of the reference itself, and the class's least."""
    least = jax.jit(least_regret, static_argnames="beta")
    found = {}
    for regime in REGIMES:
        world = make_world(regime)
        best = exact.optimal_policy(world.ref_logps, world.rewards, beta=beta)
        nothing = float(beta * exact.kl(world.ref_logps, best))
        found[regime] = (nothing, max(0.0, float(least(world, beta=beta))))
    return found


def unseen(regime: str, world: World, pairs: Pairs, beta: float) -> float:
    """Returns which share of π*'s mass lies on sequences that a seed never shows."""
    best = exact.optimal_policy(world.ref_logps, world.rewards, beta=beta)
    shown = jnp.zeros(best.shape, bool)
    shown = shown.at[pairs.chosen].set(True).at[pairs.rejected].set(True)
    return float(jnp.where(shown, 0.0, jnp.exp(best)).sum())
