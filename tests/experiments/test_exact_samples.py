"""X8 and X10: what finite samples do, and the enumerable environment itself."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import exact
from dpo_jax.errors import ConfigError
from experiments.exact import common, enumerable
from experiments.exact.how_many_pairs import run as how_many_pairs
from experiments.exact.on_policy_bandit import run as on_policy_bandit

pytestmark = pytest.mark.usefixtures("in_float64")


def small_world():
    return enumerable.make_world(seed=0, vocabulary=3, length=3, scale=1.0)


def test_the_world_by_enumeration():
    """Log-probs and rewards of all 27 sequences, word by word."""
    world = small_world()
    tables = [jax.nn.log_softmax(np.asarray(table)) for table in world.ref]
    words = np.array([-1.5, 0.0, 1.5])
    for i, s in enumerate(itertools.product(range(3), repeat=3)):
        want = tables[0][s[0]] + tables[1][s[0], s[1]] + tables[2][s[1], s[2]]
        np.testing.assert_allclose(world.ref_logps[i], want, rtol=1e-12)
        np.testing.assert_allclose(world.rewards[i], words[list(s)].sum(), atol=1e-12)


def test_the_optimum_lies_in_the_class():
    """Soft-Bellman backups give bigram tables whose sequences have π*'s log-probs."""
    world, beta = small_world(), 0.7
    words, value, best = np.array([-1.5, 0.0, 1.5]), np.zeros(3), []
    for table in reversed(world.ref):
        best.append(jax.nn.log_softmax(table) + (words + value) / beta)
        value = beta * jax.nn.logsumexp(best[-1], axis=-1)
    got = enumerable.sequence_logps(tuple(reversed(best)))
    want = exact.optimal_policy(world.ref_logps, world.rewards, beta=beta)
    np.testing.assert_allclose(got, want, atol=1e-12)
    assert abs(enumerable.evaluate(world, got).gap) < 1e-9


@pytest.mark.parametrize("labels", ["bradley_terry", "deterministic", "flipped"])
def test_labels_follow_their_regime(labels):
    """Shares of labels within 4 standard errors; the pairs come from the reference."""
    world, groups = small_world(), 20_000
    pairs = enumerable.sample_pairs(
        jax.random.key(0), world, groups=groups, labels=labels, completions=2
    )
    drawn = np.concatenate([pairs.chosen, pairs.rejected])
    shares = np.bincount(drawn, minlength=27) / len(drawn)
    np.testing.assert_allclose(shares, np.exp(world.ref_logps), atol=4 * 0.5 / 200)
    margins = np.asarray(world.rewards[pairs.chosen] - world.rewards[pairs.rejected])
    assert (np.asarray(pairs.mask) == (abs(margins) > 1e-6)).all()
    fair = 1 / (1 + np.exp(-1.5))
    want = {
        "bradley_terry": fair,
        "deterministic": 1.0,
        "flipped": 0.8 * fair + 0.2 * (1 - fair),
    }[labels]
    at = np.isclose(abs(margins), 1.5)
    spread = 4 * np.sqrt(want * (1 - want) / at.sum())
    np.testing.assert_allclose((margins[at] > 0).mean(), want, atol=spread + 1e-12)


def test_what_a_loss_sees_of_the_world():
    """Lengths, ratings, and Σ_t KL(ref‖π) along a sequence, by hand for one of 27."""
    world = small_world()
    other = enumerable.make_world(seed=1, vocabulary=3, length=3, scale=1.0).ref
    pairs = enumerable.Pairs(jnp.array([5]), jnp.array([0]), jnp.array([True]))
    seen = enumerable.gather(world, other, jnp.ones(3), pairs)  # 5 is the words 0 1 2
    ref, policy = (
        [np.asarray(jax.nn.log_softmax(t)) for t in x] for x in (world.ref, other)
    )
    rows = [(x[0], x[1][0], x[2][1]) for x in (ref, policy)]
    want = sum((np.exp(r) * (r - p)).sum() for r, p in zip(*rows, strict=True))
    np.testing.assert_allclose(seen.chosen_kls, [want], rtol=1e-12)
    np.testing.assert_allclose(seen.chosen_lengths, [3.0])
    np.testing.assert_allclose(seen.chosen_ratings, world.rewards[5:6])


def test_options_that_a_loss_does_not_use_are_refused():
    with pytest.raises(ConfigError, match="does not use|not \\['dpop_lambda'\\]"):
        common.settings("dpo", {"dpop_lambda": 1.0})


@pytest.mark.parametrize(
    "name, options",
    [
        ("kto", {"beta": 0.5, "desirable_weight": 1.0, "undesirable_weight": 1.0}),
        ("plackett_luce", {"beta": 0.5}),
        ("bco_pair", {"beta": 0.5, "baseline": "running"}),
        ("d2po", {"beta": 0.5, "decay": 0.98}),
    ],
)
def test_every_kind_of_loss_trains_upwards(name, options):
    """Singles, lists, running statistics and token weights: reward rises."""
    world = small_world()
    key = jax.random.key(0)

    @jax.jit
    def fit(key):
        pairs = enumerable.sample_pairs(
            key, world, groups=100, labels="deterministic", completions=2
        )
        method = enumerable.method(name, options, world)
        setting = {"lr": 0.03, "steps": 60, "batch": 32, "points": 2}
        tables = enumerable.train(world, pairs, method, key, **setting)
        return enumerable.worth_of(world, tables)

    start = exact.expected_reward(world.ref_logps, world.rewards)
    worth = fit(key)
    assert worth.reward[-1] > worth.reward[0] > start
    assert (worth.gap > 0).all()


def gaps(labels, numbers, betas=(1.0,), seed=0):
    world = how_many_pairs.make_world()

    @jax.jit
    def run():
        pairs = how_many_pairs.pairs_of_seed(world, seed, labels, max(numbers))
        grid = jnp.asarray(betas), jnp.asarray(numbers)
        key = jax.random.key(100)
        steps = how_many_pairs.STEPS
        return how_many_pairs.fit(world, pairs, key, *grid, steps=steps)

    return run()


def test_more_pairs_close_the_gap():
    """X10 reduced: β = 1, Bradley-Terry, 5.8k and 23k pairs; slope in [−1.4, −.6]."""
    gap = np.asarray(gaps("bradley_terry", (5_760, 23_040)).gap[0])
    assert (gap > -1e-3).all()
    assert gap[1] <= 0.03
    assert -1.4 < np.log(gap[1] / gap[0]) / np.log(4) < -0.6


@pytest.mark.nightly
def test_how_many_pairs():
    """X10 in full: slope of the gap, deterministic labels' KL, unlikelihood, ascent."""
    results = how_many_pairs.compute()
    fair, sure = (results["grid"][labels] for labels in how_many_pairs.LABELS)
    one = how_many_pairs.BETAS.index(1.0)
    mean = fair.gap.mean(0)[one]
    assert mean[how_many_pairs.NUMBERS.index(23_040)] <= 0.03
    slope = np.polyfit(np.log(how_many_pairs.NUMBERS), np.log(mean), 1)[0]
    assert -1.4 < slope < -0.6
    assert (sure.kl[:, one].mean(0) > 2 * fair.kl[:, one].mean(0))[1:].all()
    assert sure.kl[:, one, -1].mean() > 2 * fair.kl[:, one, -1].mean()
    for name in ("unlikelihood, α = 0.5", "unlikelihood, α = 1"):
        gap = results["baselines"][name].gap
        assert gap[-1] > gap[len(gap) // 2] > gap[0]
    assert (results["ascent"].gap < 1e-3).all()
    for worth in (*results["grid"].values(), *results["baselines"].values()):
        assert (worth.gap >= -1e-3).all()


def test_the_bandit_starts_at_its_reference():
    """X8: E_ref and best-of-10 near the plan's .040 .384 and .318 .942; KL 0."""
    ref = on_policy_bandit.reference()
    np.testing.assert_allclose(np.exp(ref).sum(), 1.0)
    wants = {"far": (0.040, 0.318), "near": (0.384, 0.942)}
    for peak, (start, best) in wants.items():
        at = on_policy_bandit.PEAKS[peak]
        rewards = np.asarray(on_policy_bandit.rewards(at))
        got = (np.exp(ref) * rewards).sum()
        np.testing.assert_allclose(got, start, atol=0.01)
        np.testing.assert_allclose(on_policy_bandit.best_of_ten(at), best, atol=0.01)


@pytest.mark.nightly
def test_on_policy_data_go_beyond_the_best_of_ten():
    """X8: far, offline best of 10 stays ≤ .33, rounds exceed it; near, one is ≥ .9."""

    def ends(schedule, peak):
        return on_policy_bandit.runs("best of 10", schedule, peak)["reward"]

    offline = ends("offline", "far")
    np.testing.assert_allclose(offline[:, 0], 0.039, atol=1e-3)
    assert offline[:, -1].mean() <= 0.33
    assert (ends("on-policy", "far")[:, 10:].mean(0) > 0.33).all()
    assert ends("offline", "near")[:, -1].mean() >= 0.9
