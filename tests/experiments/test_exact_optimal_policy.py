"""X1 and X1b: DPO's population loss leads to π*, through the production path."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import exact
from dpo_jax.losses.lists import plackett_luce
from dpo_jax.objectives import terms
from dpo_jax.types import ListLogps
from experiments.exact import common
from experiments.exact.optimal_policy import run, trie

pytestmark = pytest.mark.usefixtures("in_float64")


def test_dpo_and_ipo_recover_their_closed_forms_over_arms():
    """X1: 8 arms, all pairs under Bradley-Terry; within 1e-8 nats at every β."""
    ref, rewards = run.arms()
    betas = jnp.asarray(run.BETAS)
    both = jax.jit(lambda b: [jax.vmap(partial(run.fit_arms, n))(b) for n in NAMES])
    for name, fits in zip(NAMES, both(betas), strict=True):
        for beta, logps in zip(run.BETAS, fits, strict=True):
            optimum = exact.optimal_policy(ref, rewards, beta=beta)
            want = optimum if name == "dpo" else run.ipo_arms(beta)
            assert run.distance(logps, want) < 1e-8
            if name == "ipo":  # a different optimum, and far from π*
                assert run.distance(logps, optimum) > 0.1


NAMES = ("dpo", "ipo")


def test_rankings_recover_the_optimum():
    """X1 with Plackett-Luce over all rankings of 4 arms: π* within 1e-8 nats."""
    ref, rewards = (x[:4] for x in run.arms())
    ref, beta = ref - np.log(np.exp(ref).sum()), 0.5
    rankings = np.array(np.meshgrid(*[range(4)] * 4)).reshape(4, -1).T
    rankings = rankings[[len(set(r)) == 4 for r in rankings.tolist()]]
    probability = np.exp(exact.plackett_luce(jnp.asarray(rewards[rankings])))
    np.testing.assert_allclose(probability.sum(), 1.0)

    def total(theta):
        ratios = (jax.nn.log_softmax(theta) - ref)[rankings]
        lists = ListLogps(ratios, jnp.ones_like(rankings, dtype=bool))
        return (probability * plackett_luce(lists, beta=beta)).sum()

    fit = jax.jit(partial(common.minimise, total, lr=0.3, steps=2000))
    got = jax.nn.log_softmax(fit(jnp.asarray(ref)))
    want = exact.optimal_policy(ref, rewards, beta=beta)
    assert run.distance(got, want) < 1e-8


def test_two_arms_settle_on_the_margin_of_each_loss():
    """β = 1: log p/(1−p) for DPO, p − ½ for IPO, sign(p − ½) for hinge."""
    p = jnp.array([0.2, 0.6, 0.9])
    want = {"dpo": np.log(p / (1 - p)), "ipo": p - 0.5, "hinge": np.sign(p - 0.5)}
    for name, margins in want.items():
        got = jax.jit(jax.vmap(partial(run.fit_two_arms, name)))(p)
        np.testing.assert_allclose(got, margins, atol=1e-6)


@pytest.mark.parametrize("layout", ["padded", "packed", "prefix_shared"])
def test_sequence_log_probs_of_a_trie(layout):
    """Every layout gives each of the 81 sequences the sum of its own four entries."""
    shape = (trie.NODES, trie.WORDS)
    table = jnp.asarray(np.random.default_rng(3).normal(size=shape))
    batch, places, *_ = trie.rows(layout)

    @jax.jit
    def score(table, batch):
        stats, _ = terms.token_stats(trie.apply, table, batch, 7)
        return terms.columns(stats, batch)

    columns = score(table, batch)
    got = np.asarray(columns.response["logps"]).reshape(-1)[places]
    np.testing.assert_allclose(got, trie.sequence_logps(table), rtol=1e-12)
    assert abs(np.exp(got).sum() - 1) < 1e-12
    assert (columns.lengths.reshape(-1)[places] == trie.DEPTH).all()


def test_dpo_recovers_the_optimum_over_sequences():
    """X1b: π* over 81 sequences within 1e-8, its first word as soft Bellman says."""
    fit = run.fit_trie(steps=1_000)
    assert run.distance(fit["logps"], fit["optimal_logps"]) < 1e-8
    assert run.distance(fit["first_word"], fit["optimal_first_word"]) < 1e-8
