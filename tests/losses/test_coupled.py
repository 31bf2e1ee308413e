"""Masks of the losses that couple the batch, and running statistics."""

import jax
import numpy as np
import pytest
from loss_cases import OPTIONS, PAIRS, SINGLES, value_and_grads

from dpo_jax.losses import LOSSES, find, keywords
from dpo_jax.types import PairLogps

COUPLED = ["aot", "aot_unpaired", "beta_dpo", "alpha_dpo", "dr_dpo"]
RUNNING = [name for name in LOSSES if find(name, LOSSES).running]
PLACES = [(6, 7, 8), (0, 1, 2), (0, 4, 8)]  # of what does not count, among nine
GARBAGE = np.float64([np.inf, np.nan, -np.inf])


def padded(record, places, garbage=GARBAGE):
    """Puts three elements that do not count among the six of a record."""
    rest = np.setdiff1d(np.arange(9), places)

    def spread(column):
        if column is None:
            return None
        out = np.zeros(9, column.dtype)
        floats = column.dtype == np.float64
        out[rest], out[list(places)] = column, garbage if floats else (1, 0, -1)
        return out

    filled = type(record)(*(spread(column) for column in record))
    return filled._replace(mask=np.isin(np.arange(9), rest)), rest


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("name", [*COUPLED, "kto", "bco"])
def test_masked_elements_have_no_influence_wherever_they_stand(name, places):
    record = SINGLES if find(name, LOSSES).takes == "singles" else PAIRS
    want, slopes = value_and_grads(name, record, label_smoothing=0.1)
    more, rest = padded(record, places)
    values, grads = value_and_grads(name, more, label_smoothing=0.1)
    np.testing.assert_allclose(values[rest], want, rtol=1e-12)
    np.testing.assert_array_equal(values[list(places)], 0)
    for field, grad in grads.items():
        np.testing.assert_allclose(grad[rest], slopes[field], rtol=1e-12, atol=1e-15)
        np.testing.assert_array_equal(grad[list(places)], 0)


@pytest.mark.parametrize("name", [*COUPLED, "kto", "bco"])
def test_a_batch_in_which_nothing_counts_gives_zeros(name):
    record = SINGLES if find(name, LOSSES).takes == "singles" else PAIRS
    empty = padded(record, (0, 1, 2))[0]._replace(mask=np.zeros(9, bool))
    values, grads = value_and_grads(name, empty)
    np.testing.assert_array_equal(values, 0)
    assert all(not grad.any() for grad in grads.values())


def test_the_reference_of_alpha_dpo_has_no_gradient():
    function = find("alpha_dpo", LOSSES).fn
    given = {key: OPTIONS[key] for key in keywords(function)}

    def total(ref_chosen):
        return function(PAIRS._replace(ref_chosen=ref_chosen), **given).sum()

    assert not jax.jit(jax.grad(total))(PAIRS.ref_chosen).any()


def update(name, record, stats):
    running = find(name, LOSSES).running
    given = {key: OPTIONS[key] for key in keywords(running.update)}
    with jax.enable_x64(True):
        new = jax.jit(running.update)(record, stats, **given)
    return {key: float(value) for key, value in new.items()}


def start(name):
    return dict(find(name, LOSSES).running.start)


def halves(record):
    """Cuts six elements into four and two; columns that are None stay."""
    return [
        type(record)(*(v if v is None else v[part] for v in record))
        for part in (slice(0, 4), slice(4, 6))
    ]


@pytest.mark.parametrize("name, record", [("bco_pair", PAIRS), ("bco", SINGLES)])
def test_mean_of_rewards_counts_every_reward_once(name, record):
    """Two unequal batches, one with masked garbage: the mean over all rewards."""
    first, second = halves(record)
    with_garbage, _ = padded(record, (0, 4, 8))
    stats = update(name, second, update(name, first, start(name)))
    if name == "bco":
        rewards = (record.logps - record.ref_logps)[record.labels != 0]
    else:
        ratios = (
            record.chosen - record.ref_chosen,
            record.rejected - record.ref_rejected,
        )
        rewards = np.concatenate(ratios)
    assert stats["reward_count"] == rewards.size
    np.testing.assert_allclose(stats["reward_mean"], 0.1 * rewards.mean(), rtol=1e-9)
    once = update(name, with_garbage, start(name))
    np.testing.assert_allclose(once["reward_mean"], stats["reward_mean"], rtol=1e-9)


def batch_statistics(name, pairs):
    a, b = pairs.chosen - pairs.ref_chosen, pairs.rejected - pairs.ref_rejected
    if name == "beta_dpo":
        return {"gap_mean": (a - b).mean(), "gap_std": (a - b).std(ddof=1)}
    g = a / pairs.chosen_lengths - b / pairs.rejected_lengths
    return {"spread_mean": g.mean(), "spread_std": g.std(ddof=1)}


@pytest.mark.parametrize("name", ["beta_dpo", "alpha_dpo"])
def test_first_batch_sets_moving_statistics_and_the_next_moves_them(name):
    """After two batches 0.9·first + 0.1·second."""
    first, second = halves(PAIRS)
    stats = update(name, first, start(name))
    want = batch_statistics(name, first)
    for key, value in want.items():
        np.testing.assert_allclose(stats[key], value, rtol=1e-9)
    moved = update(name, second, stats)
    for key, value in batch_statistics(name, second).items():
        np.testing.assert_allclose(moved[key], 0.9 * want[key] + 0.1 * value, rtol=1e-9)
    masked, _ = padded(PAIRS, (0, 4, 8))
    assert update(name, masked, stats) == pytest.approx(update(name, PAIRS, stats))


@pytest.mark.parametrize("name", RUNNING)
def test_a_batch_in_which_nothing_counts_moves_no_statistics(name):
    record = SINGLES if name == "bco" else PAIRS
    stats = update(name, record, start(name))
    empty = padded(record, (0, 1, 2))[0]._replace(mask=np.zeros(9, bool))
    assert update(name, empty, stats) == stats
    assert update(name, empty, start(name)) == start(name)


@pytest.mark.parametrize("name", RUNNING)
def test_statistics_have_no_gradient(name):
    """The gradient through an update in the same step is that of constants."""
    record = SINGLES if name == "bco" else PAIRS
    field = "logps" if name == "bco" else "chosen"
    row = find(name, LOSSES)
    given = {**OPTIONS, "baseline": "running"}

    def total(x, stats=None):
        moved = record._replace(**{field: x})
        if stats is None:
            own = {key: given[key] for key in keywords(row.running.update)}
            stats = row.running.update(moved, start(name), **own)
        return row(moved, {**given, **stats}).sum()

    slope = jax.jit(jax.grad(total))
    with jax.enable_x64(True):
        x = getattr(record, field)
        through = slope(x)
        constant = slope(x, update(name, record, start(name)))
    np.testing.assert_allclose(through, constant, rtol=1e-12)


def test_before_the_first_batch_statistics_are_well_defined():
    """alpha_dpo: no normalised term; beta_dpo: the batch's own mean stands for M."""
    unseen, _ = value_and_grads("alpha_dpo", PAIRS, **start("alpha_dpo"))
    plain, _ = value_and_grads("alpha_dpo", PAIRS, alpha=0.0)
    np.testing.assert_allclose(unseen, plain, rtol=1e-12)
    unseen, _ = value_and_grads("beta_dpo", PAIRS, **start("beta_dpo"))
    own = batch_statistics("beta_dpo", PAIRS)
    same, _ = value_and_grads("beta_dpo", PAIRS, **own)
    np.testing.assert_allclose(unseen, same, rtol=1e-12)


def test_beta_dpo_draws_by_gaussian_weights():
    """Of two pairs one is kept, with odds e^(−½·0) : e^(−½·2²) = 1 : .1353.

    Δ = 0 and 2 around M = 0 with s = 1; 4000 draws, so four deviations are .02.
    """
    zeros, gaps = np.zeros(2), np.float64([0, 2])
    pairs = PairLogps(gaps, zeros, zeros, zeros, zeros + 1, zeros + 1)
    noise = np.random.default_rng(3).uniform(size=(4000, 2))
    given = {"beta": 1.0, "beta_scale": 0.0, "keep_fraction": 0.5}
    stats = {"gap_mean": 0.0, "gap_std": 1.0, "gap_seen": 1.0}

    @jax.jit
    @jax.vmap
    def drawn(noise):
        options = {**given, **stats, "filter": "draw"}
        return find("beta_dpo", LOSSES)(pairs._replace(noise=noise), options)

    kept = np.asarray(drawn(noise)) > 0
    assert (kept.sum(1) == 1).all()
    far = 1 / (1 + np.exp(2))
    np.testing.assert_allclose(kept[:, 1].mean(), far, atol=0.02)
    options = {**given, **stats, "filter": "nearest"}
    near = find("beta_dpo", LOSSES)(pairs._replace(noise=noise[0]), options)
    assert (np.asarray(near) > 0).tolist() == [True, False]


def test_beta_dpo_keeps_at_least_one_pair():
    values, _ = value_and_grads("beta_dpo", PAIRS, keep_fraction=1e-3)
    assert np.count_nonzero(values) == 1


def test_equal_policies_have_a_gradient_after_their_first_update():
    """All g = 0, so s = 0; nothing is divided by it."""
    equal = PAIRS._replace(chosen=PAIRS.ref_chosen, rejected=PAIRS.ref_rejected)
    stats = update("alpha_dpo", equal, start("alpha_dpo"))
    assert stats == {"spread_mean": 0.0, "spread_std": 0.0, "spread_seen": 1.0}
    _, grads = value_and_grads("alpha_dpo", equal, **stats)
    assert np.isfinite(grads["chosen"]).all() and (grads["chosen"] < 0).all()
