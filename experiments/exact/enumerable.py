"""A language model small enough to enumerate, and preference training on it.

One prompt, V words, responses of L words: V^L sequences. The policy is a bigram with
tables of its own at every position (210 logits for V = 10, L = 3), and the true reward
adds up over words, so the optimum of reward and KL lies in the policy's class. Only the
training pairs are sampled; what a policy is worth is computed, not estimated.

    world = enumerable.make_world(seed=19, vocabulary=10, length=3, scale=1.25)
    pairs = enumerable.sample_pairs(key, world, groups=960, labels="bradley_terry")
    method = enumerable.method("dpo", {"beta": 1.0}, world)
    tables = enumerable.train(world, pairs, method, key, lr=0.03, steps=1500, batch=256)
    enumerable.evaluate(world, enumerable.sequence_logps(tables))   # kl, reward, gap

Everything but `make_world` and `method` traces, so a grid over seeds and real-valued
hyper-parameters is one `jax.vmap` of a function that makes the method and trains (an
`in_axes` of None for `pairs` and `key` is some ten times faster: gathers are shared).
The dtype of the world is the dtype of everything.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dpo_jax import exact
from dpo_jax.losses import LOSSES, find, keywords
from dpo_jax.losses.tokens import WEIGHTS
from dpo_jax.types import Array, ListLogps, PairLogps, SingleLogps, TokenPlaces
from experiments.exact import common

TIE = 1e-6  # rewards that differ by less are equal
FLIPPED = 0.2  # share of labels that the regime `flipped` turns round

Tables = tuple[Array, ...]  # logits: [V] for the first word, then [V, V] by the last
Stats = dict[str, Array]


class World(NamedTuple):
    """The environment.

    Attributes:
      ref: logits of the reference.
      ref_logps: f[S] nats of all S = V^L sequences, in lexicographic order.
      rewards: f[S], the true rewards.
    """

    ref: Tables
    ref_logps: Array
    rewards: Array


class Pairs(NamedTuple):
    """Comparisons of sequences of one world.

    Attributes:
      chosen: i32[N] sequences.
      rejected: i32[N] sequences.
      mask: bool[N], False for ties, which do not count.
    """

    chosen: Array
    rejected: Array
    mask: Array


class Method(NamedTuple):
    """What training minimises.

    Attributes:
      start: running statistics before the first step; {} for none.
      weights: f[L], on the tokens of both responses, in policy and reference.
      loss: `(pairs, stats) -> (mean loss, stats)`.
    """

    start: Mapping[str, float]
    weights: Array
    loss: Callable[[PairLogps, Stats], tuple[Array, Stats]]


class Worth(NamedTuple):
    """What a policy is worth; no number here is estimated.

    Attributes:
      kl: KL(π‖ref), nats.
      reward: E_π[r].
      gap: the frontier's reward at this KL − E_π[r], ≥ 0.
    """

    kl: Array
    reward: Array
    gap: Array


def make_world(*, seed: int, vocabulary: int, length: int, scale: float) -> World:
    """Draws a world in jax's default float.

    Args:
      seed: of the reference's logits.
      vocabulary: words; their rewards lie evenly in [−1.5, 1.5].
      length: words of a sequence.
      scale: standard deviation of the reference's logits.
    """
    rng = np.random.default_rng(seed)
    shapes = [(vocabulary,), *[(vocabulary, vocabulary)] * (length - 1)]
    ref = tuple(jnp.asarray(scale * rng.normal(size=shape), float) for shape in shapes)
    word = np.linspace(-1.5, 1.5, vocabulary)
    rewards = exact.chain([word.reshape((1,) * t + (-1,)) for t in range(length)])
    return World(ref, sequence_logps(ref), rewards)


def conditionals(tables: Tables) -> list[Array]:
    """Returns next-word log-probs as `exact.chain` takes them, nats."""
    return [
        jax.nn.log_softmax(table).reshape((1,) * (t + 1 - table.ndim) + table.shape)
        for t, table in enumerate(tables)
    ]


def sequence_logps(tables: Tables) -> Array:
    """Returns log π of all sequences, f[S] nats."""
    return exact.chain(conditionals(tables))


def label_probabilities(margins: Array) -> dict[str, Array]:
    """Returns by labelling regime how likely the first response is preferred.

    `bradley_terry`: σ(margin); `deterministic`: the greater reward always, as in the
    DPO paper's sentiment task; `flipped`: Bradley-Terry, a fifth turned round.

    Args:
      margins: f[N], rewards of the first less those of the second responses.
    """
    fair = exact.bradley_terry(margins)
    return {
        "bradley_terry": fair,
        "deterministic": jnp.heaviside(margins, 0.5),
        "flipped": (1 - FLIPPED) * fair + FLIPPED * (1 - fair),
    }


def sample_pairs(
    key: Array, world: World, *, groups: int, labels: str, completions: int = 4
) -> Pairs:
    """Draws groups of completions from the reference and labels all pairs of a group.

    Args:
      key: of the draws.
      world: the environment.
      groups: of completions; 4 completions give 6 pairs a group.
      labels: a regime of `label_probabilities`.
      completions: of a group, ≥ 2.
    """
    draw_key, label_key = jax.random.split(key)
    uniform = jax.random.uniform(draw_key, (groups, completions))
    below = jnp.cumsum(jnp.exp(world.ref_logps))  # inverts the distribution function
    drawn = jnp.searchsorted(below, uniform * below[-1], side="right")
    i, j = np.triu_indices(completions, 1)
    first, second = drawn[:, i].reshape(-1), drawn[:, j].reshape(-1)
    margins = world.rewards[first] - world.rewards[second]
    probability = label_probabilities(margins)[labels]
    kept = jax.random.uniform(label_key, margins.shape) < probability
    chosen, rejected = jnp.where(kept, first, second), jnp.where(kept, second, first)
    return Pairs(chosen, rejected, jnp.abs(margins) > TIE)


def method(name: str, chosen: Mapping[str, Any], world: World) -> Method:
    """Builds what to minimise from a row of the table of losses.

    Single responses are both responses of each pair and, as the mismatched ones, the
    neighbour's; a ranking is a pair.

    Args:
      name: of a loss of pairs, singles or lists.
      chosen: options, as in `common.settings`; real-valued ones may be traced.
      world: the environment.
    """
    row, given = find(name, LOSSES), common.settings(name, chosen)
    view = VIEWS[row.takes]
    weights = jnp.ones(len(world.ref), world.rewards.dtype)
    if row.token_weights:
        weigh = WEIGHTS[row.token_weights]
        used = {option: given[option] for option in keywords(weigh)}
        weights = weigh(_places(len(world.ref)), **used)[0].astype(weights.dtype)

    def loss(pairs, stats):
        record, counts = view(pairs)
        if row.running is not None:
            used = {option: given[option] for option in keywords(row.running.update)}
            stats = row.running.update(record, stats, **used)
        values = row(record, {**given, **stats})
        return jnp.where(counts, values, 0).sum() / jnp.maximum(counts.sum(), 1), stats

    return Method(row.running.start if row.running else {}, weights, loss)


def _places(length: int) -> TokenPlaces:
    index = jnp.arange(length)[None]
    tokens = jnp.full((1, length), float(length))
    return TokenPlaces(index, index, tokens, tokens)


def _as_singles(pairs: PairLogps) -> tuple[SingleLogps, Array]:
    logps = [pairs.chosen, pairs.rejected]
    ref_logps = [pairs.ref_chosen, pairs.ref_rejected]
    again = [jnp.roll(x, 1) for x in (*logps, *ref_logps, pairs.mask)]
    size = len(pairs.chosen)
    labels = jnp.repeat(jnp.array([1, -1, 0, 0]), size, total_repeat_length=4 * size)
    mask = jnp.concatenate([pairs.mask, pairs.mask, again[4], again[4]])
    singles = SingleLogps(
        jnp.concatenate([*logps, *again[:2]]),
        jnp.concatenate([*ref_logps, *again[2:4]]),
        labels,
        mask,
    )
    return singles, mask & (labels != 0)


def _as_lists(pairs: PairLogps) -> tuple[ListLogps, Array]:
    ratios = [pairs.chosen - pairs.ref_chosen, pairs.rejected - pairs.ref_rejected]
    ratios = jnp.stack(ratios, -1)
    mask = jnp.broadcast_to(jnp.asarray(pairs.mask)[:, None], ratios.shape)
    return ListLogps(ratios, mask), jnp.asarray(pairs.mask)


# What a loss takes -> (PairLogps -> (its record, which of its elements count)).
VIEWS: dict[str, Callable[[PairLogps], tuple[Any, Array]]] = {
    "pairs": lambda pairs: (pairs, pairs.mask),
    "singles": _as_singles,
    "lists": _as_lists,
}


def gather(world: World, tables: Tables, weights: Array, pairs: Pairs) -> PairLogps:
    """Computes what a loss sees of comparisons; ratings are the true rewards.

    Args:
      world: the environment.
      tables: logits of the policy.
      weights: f[L] on the tokens.
      pairs: N comparisons.
    """
    policy, ref = conditionals(tables), conditionals(world.ref)

    def weighted(steps):
        return exact.chain([w * step for w, step in zip(weights, steps, strict=True)])

    def kl_at(step, ref_step):  # KL(ref‖π) of the next word, by the words before
        return jnp.broadcast_to(exact.kl(ref_step, step)[..., None], step.shape)

    logps, ref_logps = weighted(policy), weighted(ref)
    kls = exact.chain([kl_at(p, r) for p, r in zip(policy, ref, strict=True)])
    chosen, rejected, mask = pairs
    lengths = jnp.full(chosen.shape, len(tables), logps.dtype)
    return PairLogps(
        chosen=logps[chosen],
        rejected=logps[rejected],
        ref_chosen=ref_logps[chosen],
        ref_rejected=ref_logps[rejected],
        chosen_lengths=lengths,
        rejected_lengths=lengths,
        mask=mask,
        chosen_ratings=world.rewards[chosen],
        rejected_ratings=world.rewards[rejected],
        chosen_kls=kls[chosen],
        rejected_kls=kls[rejected],
    )


def train(
    world: World,
    pairs: Pairs,
    method: Method,
    key: Array,
    *,
    lr: Array | float,
    steps: int,
    batch: int,
    points: int = 1,
    first: Array | int | None = None,
) -> Tables:
    """Trains with Adam from the reference, on minibatches drawn with replacement.

    Args:
      world: the environment.
      pairs: the training set.
      method: what to minimise.
      key: of the minibatches.
      lr: falls along a cosine to 0 at the last step.
      steps: of the optimizer; a multiple of `points`.
      batch: pairs of a minibatch.
      points: how many policies along the way to return, evenly spaced; 1 = the last.
      first: train on so many pairs, from the first; None = all. May be traced.

    Returns:
      Logits, [points, …] each.
    """
    assert steps % points == 0, (steps, points)
    size = len(pairs.chosen) if first is None else first
    adam = optax.scale_by_adam()

    def total(tables, drawn, stats):
        seen = gather(world, tables, method.weights, Pairs(*(x[drawn] for x in pairs)))
        return method.loss(seen, stats)

    def step(carry, count):
        tables, state, stats = carry
        uniform = jax.random.uniform(jax.random.fold_in(key, count), (batch,))
        drawn = jnp.minimum((uniform * size).astype(int), size - 1)
        grads, stats = jax.grad(total, has_aux=True)(tables, drawn, stats)
        updates, state = adam.update(grads, state)
        rate = lr * 0.5 * (1 + jnp.cos(jnp.pi * count / steps))
        tables = jax.tree.map(
            lambda x, up: (x - rate * up).astype(x.dtype), tables, updates
        )
        return (tables, state, stats), None

    def stretch(carry, start):
        carry, _ = jax.lax.scan(step, carry, start + jnp.arange(steps // points))
        return carry, carry[0]

    dtype = world.rewards.dtype
    stats = {name: jnp.asarray(value, dtype) for name, value in method.start.items()}
    starts = jnp.arange(0, steps, steps // points)
    begin = (world.ref, adam.init(world.ref), stats)
    return jax.lax.scan(stretch, begin, starts)[1]


def evaluate(world: World, logps: Array) -> Worth:
    """Computes what a policy is worth.

    Args:
      world: the environment.
      logps: f[S] nats of all sequences.
    """
    return Worth(
        exact.kl(logps, world.ref_logps),
        exact.expected_reward(logps, world.rewards),
        exact.frontier_gap(logps, world.ref_logps, world.rewards),
    )


def worth_of(world: World, tables: Tables) -> Worth:
    """Evaluates policies whose logits carry one leading axis, as `train` returns."""
    return jax.vmap(lambda t: evaluate(world, sequence_logps(t)))(tables)
