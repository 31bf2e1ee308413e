"""Closed forms by hand, and DPO's convergence to them (X1 and X1b of the plan).

X1b puts a policy that is a table of logits on a trie through the production rows,
log-probs, gathers and loss: a shift by one, a wrong mask or a mean in place of a sum
leads away from the optimum.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpo_jax import exact
from dpo_jax.data import layouts
from dpo_jax.losses import pairwise
from dpo_jax.models.attention import forest_mask
from dpo_jax.objectives import terms
from dpo_jax.objectives.preference import gather_pairs
from dpo_jax.types import Head, PairLogps, Record

PLAIN = {"divergence": "reverse_kl", "divergence_alpha": 1.0, "normalize": "sum"}
WORDS, DEPTH = 3, 4
SEQUENCES = np.array(list(itertools.product(range(WORDS), repeat=DEPTH)), np.int32)
LEVELS = [(WORDS**depth - 1) // (WORDS - 1) for depth in range(DEPTH + 1)]
NODES = LEVELS[DEPTH]  # 1 + 3 + 9 + 27 = 40


def test_optimal_policy_by_hand():
    """ref (.5, .25, .25), r = (0, ln 2, ln 4), β = 1: (.5, .5, 1) / 2."""
    ref, rewards = jnp.log(jnp.array([0.5, 0.25, 0.25])), jnp.log(jnp.array([1, 2, 4]))
    got = exact.optimal_policy(ref, rewards, beta=1.0)
    np.testing.assert_allclose(np.exp(got), [0.25, 0.25, 0.5], rtol=1e-6)


def test_kl_and_expected_reward_by_hand():
    """(1, 0) against (½, ½) is ln 2, and 0·log 0 is 0; ¼·2 + ¾·6 = 5."""
    sure, even = jnp.array([0.0, -jnp.inf]), jnp.log(jnp.array([0.5, 0.5]))
    np.testing.assert_allclose(exact.kl(sure, even), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(exact.kl(even, even), 0.0)
    logps = jnp.log(jnp.array([0.25, 0.75]))
    mean = exact.expected_reward(logps, jnp.array([2.0, 6.0]))
    np.testing.assert_allclose(mean, 5.0, rtol=1e-6)


def test_soft_value_is_what_the_optimum_is_worth():
    """E[r] − β KL at π* equals β log Σ ref·e^(r/β), and no other policy has more."""
    rng = np.random.default_rng(0)
    ref = jax.nn.log_softmax(jnp.asarray(rng.normal(size=5)))
    rewards, beta = jnp.asarray(rng.normal(size=5)), 0.7

    def worth(logps):
        return exact.expected_reward(logps, rewards) - beta * exact.kl(logps, ref)

    best = worth(exact.optimal_policy(ref, rewards, beta=beta))
    value = exact.soft_value(ref, rewards, beta=beta)
    np.testing.assert_allclose(best, value, rtol=1e-5)
    for _ in range(20):
        assert worth(jax.nn.log_softmax(jnp.asarray(rng.normal(size=5)))) < best


def test_bradley_terry_by_hand():
    """σ(ln 3) = ¾."""
    np.testing.assert_allclose(exact.bradley_terry(jnp.log(3.0)), 0.75, rtol=1e-6)


def descend(loss, start, *, lr, steps):
    """Minimises with Adam whose learning rate falls along a cosine to 0."""
    tx = optax.adam(optax.cosine_decay_schedule(lr, steps))

    def one(carry, _):
        theta, state = carry
        updates, state = tx.update(jax.grad(loss)(theta), state)
        return (optax.apply_updates(theta, updates), state), None

    return jax.lax.scan(one, (start, tx.init(start)), None, length=steps)[0][0]


def both_ways(pairs, probability, beta):
    """Expects the DPO loss over the label: `chosen` is preferred with `probability`."""
    swapped = PairLogps(*(pairs[i] for i in (1, 0, 3, 2, 5, 4)))
    options = {"beta": beta, "label_smoothing": 0.0, **PLAIN}
    first, second = pairwise.dpo(pairs, **options), pairwise.dpo(swapped, **options)
    return (probability * first + (1 - probability) * second).mean()


@pytest.mark.parametrize("beta", [0.05, 0.1, 0.5, 1.0, 5.0])
def test_dpo_recovers_the_optimum_over_arms(beta):
    """X1: 8 arms, all pairs under Bradley-Terry; π* within 1e-8 nats."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        rewards = jnp.asarray(rng.normal(size=8))
        ref = jnp.log(jnp.asarray(rng.dirichlet(np.full(8, 2.0))))
        i, j = np.array(list(itertools.combinations(range(8), 2))).T
        probability = exact.bradley_terry(rewards[i] - rewards[j])
        ones = jnp.ones(len(i))

        def loss(theta):
            logps = jax.nn.log_softmax(theta)
            sides = (logps[i], logps[j], ref[i], ref[j], ones, ones)
            return both_ways(PairLogps(*sides), probability, beta)

        theta = jax.jit(lambda ref: descend(loss, ref, lr=0.3, steps=3000))(ref)
        want = exact.optimal_policy(ref, rewards, beta=beta)
        assert np.abs(jax.nn.log_softmax(theta) - want).max() < 1e-8


def node(words):
    """Numbers the trie's nodes: level by level, by the word's digits, base 3."""
    return LEVELS[len(words)] + sum(w * WORDS**i for i, w in enumerate(words))


def trie_apply(table, batch):
    """A model whose hidden state is the one-hot node of what a token sees."""
    seen = forest_mask(batch.docs, batch.branches, batch.positions, window=0)[:, 0]
    depth = batch.positions  # 0 at the prompt's one token, then 1… along a response
    worth = batch.tokens * jnp.where(depth > 0, WORDS ** jnp.maximum(depth - 1, 0), 0)
    level = jnp.array([*LEVELS])[depth]
    nodes = level + (seen * worth[:, None, :]).sum(-1)
    hidden = jax.nn.one_hot(nodes, NODES, dtype=table.dtype)  # [B, T, nodes]
    return hidden, Head(table, None)


def trie_batch(layout):
    """Lays all 81 sequences out behind one prompt token, in every comparison.

    The comparisons are put in by hand, because a record of 81 responses, or of one, has
    no pair of its own.
    """
    prompt = np.zeros(1, np.int32)
    if layout == "prefix_shared":
        records = [Record(0, prompt, tuple(SEQUENCES))]
    else:
        records = [Record(i, prompt, (s,)) for i, s in enumerate(SEQUENCES)]
    lengths = [layouts.lengths_of(record) for record in records]
    row_tokens = layouts.longest_document(layout, lengths) + 2  # some padding
    if layout == "packed":
        row_tokens = 32  # 6 documents of 5 tokens, and 2 of padding
    rows = layouts.LAYOUTS[layout](lengths, row_tokens)
    shape = layouts.measure(rows, lengths, row_tokens)
    batch = layouts.fill(rows, records, shape)
    members = [(d.record, r) for row in rows for d in row for r in d.responses]
    flat = [
        b * shape.slots + slot
        for b, row in enumerate(rows)
        for slot in range(sum(len(d.responses) for d in row))
    ]
    place = {sum(member): at for member, at in zip(members, flat, strict=True)}
    places = np.array([place[i] for i in range(len(SEQUENCES))])
    first, second = np.array(list(itertools.combinations(range(81), 2)), np.int32).T
    compared = np.stack([places[first], places[second]], -1)
    pairs = np.full((shape.rows, -(-len(compared) // shape.rows), 2), -1, np.int32)
    pairs.reshape(-1, 2)[: len(compared)] = compared
    return batch._replace(pairs=pairs), places, first, second


def table_logps(table):
    """Sums a table's log-probs along each sequence: an independent formula."""
    logps = np.asarray(jax.nn.log_softmax(table))
    return np.array(
        [sum(logps[node(s[:t]), s[t]] for t in range(DEPTH)) for s in SEQUENCES]
    )


def first_word(ref_table, rewards, beta):
    """Solves the soft-Bellman equations backwards; returns log π*(first word)."""
    ref = np.asarray(jax.nn.log_softmax(ref_table))
    leaf = {tuple(s): r for s, r in zip(SEQUENCES.tolist(), rewards, strict=True)}

    def value(words):
        if len(words) == DEPTH:
            return leaf[words]
        below = np.array([value((*words, w)) for w in range(WORDS)])
        return exact.soft_value(ref[node(words)], below, beta=beta)

    below = np.array([value((w,)) for w in range(WORDS)])
    return ref[node(())] + (below - value(())) / beta


@pytest.mark.parametrize("layout", ["padded", "packed", "prefix_shared"])
def test_sequence_log_probs_of_a_trie(layout):
    """Every layout gives each of the 81 sequences the sum of its own four entries."""
    with jax.enable_x64(True):
        table = jnp.asarray(np.random.default_rng(3).normal(size=(NODES, WORDS)))
        batch, places, *_ = trie_batch(layout)
        columns = terms.columns(terms.token_stats(trie_apply, table, batch, 7), batch)
        got = np.asarray(columns.logps).reshape(-1)[places]
        np.testing.assert_allclose(got, table_logps(table), rtol=1e-12)
        assert abs(np.exp(got).sum() - 1) < 1e-12
        assert (columns.lengths.reshape(-1)[places] == DEPTH).all()


def test_dpo_recovers_the_optimum_over_sequences():
    """X1b: π* over 81 sequences within 1e-8, its first word as soft Bellman says."""
    beta = 0.3
    with jax.enable_x64(True):
        rng = np.random.default_rng(2)
        ref_table = jnp.asarray(rng.normal(size=(NODES, WORDS)))
        rewards = jnp.asarray(rng.normal(size=len(SEQUENCES)))
        batch, places, i, j = trie_batch("prefix_shared")
        annotated = terms.token_stats(trie_apply, ref_table, batch, 512).logps
        batch = jax.tree.map(jnp.asarray, batch._replace(ref_token_logps=annotated))
        probability = exact.bradley_terry(rewards[i] - rewards[j])

        def logps(table):
            stats = terms.token_stats(trie_apply, table, batch, 512)
            return terms.columns(stats, batch)

        def loss(table):
            pairs = gather_pairs(logps(table))
            assert pairs.mask.shape == probability.shape
            return both_ways(pairs, probability, beta)

        table = jax.jit(lambda t: descend(loss, t, lr=0.1, steps=4000))(ref_table)
        got = np.asarray(logps(table).logps).reshape(-1)[places]
        want = exact.optimal_policy(table_logps(ref_table), rewards, beta=beta)
        assert np.abs(got - want).max() < 1e-8
        np.testing.assert_allclose(
            jax.nn.log_softmax(table)[node(())],
            first_word(ref_table, rewards, beta),
            atol=1e-8,
        )
