"""Losses that are each other at some value of an option."""

import numpy as np
import pytest
from loss_cases import PAIRS, SCORES, SINGLES, value, value_and_grads

from dpo_jax.losses import LOSSES, find
from dpo_jax.losses.loss import options
from dpo_jax.types import ListLogps

OFF = [
    ("robust", {"label_smoothing": 0.0}),
    ("dpop", {"dpop_lambda": 0.0}),
    ("r_dpo", {"length_alpha": 0.0}),
    ("tdpo2", {"tdpo_alpha": 0.0}),
    ("odpo", {"odpo_alpha": 0.0}),
    ("mmpo", {"mmpo_gamma": 1e6}),
    ("dpo_shift", {"shift_lambda": 1.0}),
    ("beta_dpo", {"beta_scale": 0.0, "keep_fraction": 1.0}),
    ("d2po", {}),  # their token weights lie outside the functions
    ("sampo", {}),
]


@pytest.mark.parametrize("name, off", OFF, ids=[name for name, _ in OFF])
def test_is_dpo_with_its_option_off(name, off):
    want, slopes = value_and_grads("dpo", PAIRS, beta=0.7)
    got, grads = value_and_grads(name, PAIRS, beta=0.7, **off)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    for field in ("chosen", "rejected"):
        np.testing.assert_allclose(grads[field], slopes[field], rtol=1e-12)


@pytest.mark.parametrize("progress, moved", [(0.0, 0.75), (0.4, 0.85), (1.0, 1.0)])
def test_dpo_shift_moves_its_weight_along_a_line(progress, moved):
    """From .75 to 1: .75 + .25·progress, the weight of a run that keeps it."""
    given = {"beta": 0.7, "shift_lambda": 0.75, "shift_end": 1.0}
    loss = find("dpo_shift", LOSSES)
    got = loss(PAIRS, given | {"progress": progress})
    stays = loss(PAIRS, given | {"shift_lambda": moved, "shift_end": -1.0})
    np.testing.assert_allclose(got, stays, rtol=1e-6)
    assert "progress" not in options(loss)


def test_a_ranking_of_two_is_dpo():
    a, b = PAIRS.chosen - PAIRS.ref_chosen, PAIRS.rejected - PAIRS.ref_rejected
    lists = ListLogps(np.stack([a, b], 1), np.ones((6, 2), bool))
    got = value("plackett_luce", lists, beta=0.7)
    np.testing.assert_allclose(got, value("dpo", PAIRS, beta=0.7), rtol=1e-12)


def test_dr_dpo_tends_to_the_mean_of_dpo():
    """β'·(cumulant generating function) → mean; the difference is Var/(2β')."""
    losses = value("dpo", PAIRS, beta=0.7)
    got = value("dr_dpo", PAIRS, beta=0.7, dr_beta=1e6)
    np.testing.assert_allclose(got, losses.mean(), atol=losses.var() / 1e6)
    small = value("dr_dpo", PAIRS, beta=0.7, dr_beta=10.0)
    expected = losses.mean() - losses.var() / 20
    np.testing.assert_allclose(small, expected, rtol=1e-4)


def test_alpha_po_tends_to_simpo():
    want = value("simpo", PAIRS, beta=2.0)
    zero = value("alpha_po", PAIRS, beta=2.0, alpha_po_alpha=0.0)
    near = value("alpha_po", PAIRS, beta=2.0, alpha_po_alpha=1e-9)
    np.testing.assert_allclose(zero, want, rtol=1e-12)
    np.testing.assert_allclose(near, want, rtol=1e-8)


def test_alpha_dpo_without_alpha_is_simpo():
    np.testing.assert_allclose(
        value("alpha_dpo", PAIRS, alpha=0.0), value("simpo", PAIRS), rtol=1e-12
    )


def test_tdpo_forms_agree_at_alpha_one_but_for_the_gradient():
    one, slopes = value_and_grads("tdpo1", PAIRS)
    two, grads = value_and_grads("tdpo2", PAIRS, tdpo_alpha=1.0)
    np.testing.assert_allclose(one, two, rtol=1e-12)
    assert slopes["chosen_kls"].all() and not grads["chosen_kls"].any()


def test_exo_pair_is_zero_where_the_odds_are_those_of_the_label():
    """σ(βδ) = 1 − ε at βδ = log((1−ε)/ε); a KL, so positive elsewhere."""
    chosen = PAIRS.ref_chosen + np.log(9.0)
    pairs = PAIRS._replace(chosen=chosen, rejected=PAIRS.ref_rejected)
    at = value("exo_pair", pairs, beta=1.0, label_smoothing=0.1)
    np.testing.assert_allclose(at, 0, atol=1e-15)
    assert (value("exo_pair", pairs, beta=0.9, label_smoothing=0.1) > 0).all()


def test_the_gradient_of_kto_vanishes_in_both_saturations():
    """|β(r − z0)| ≫ 1 either way: σ' = 0, however wrong the response is."""
    for shift, low in ((1e4, 0.0), (-1e4, 1.0)):
        far = SINGLES._replace(logps=SINGLES.ref_logps + shift * SINGLES.labels)
        values, grads = value_and_grads("kto", far)
        labelled = SINGLES.labels != 0
        np.testing.assert_allclose(values[labelled], low, atol=1e-12)
        assert not grads["logps"].any()


def test_kto_clips_its_estimate_of_the_kl_at_zero():
    """Mismatched log-ratios of −5: z0 = 0, a = 0.5, 1 − σ(0.05) = 0.48750260."""
    logps = np.where(SINGLES.labels == 0, SINGLES.ref_logps - 5, SINGLES.logps)
    values = value("kto", SINGLES._replace(logps=logps))
    np.testing.assert_allclose(values[0], 0.48750260, rtol=1e-7)


def test_bradley_terry_by_hand():
    """s = (1, 0), margin 0: log(1 + e^−1) + 0.01·1 = 0.32326169."""
    scores = SCORES._replace(chosen=np.ones(6), rejected=np.zeros(6))
    got = value("bradley_terry", scores._replace(margins=np.zeros(6)))
    np.testing.assert_allclose(got, 0.32326169, rtol=1e-7)


def test_odpo_bounds_ratings_that_do_not_differ():
    """s_w ≤ s_l counts as a difference of 1e-6."""
    equal = PAIRS._replace(chosen_ratings=PAIRS.rejected_ratings)
    tiny = PAIRS._replace(chosen_ratings=PAIRS.rejected_ratings + 1e-6)
    np.testing.assert_allclose(value("odpo", equal), value("odpo", tiny), rtol=1e-6)


def test_orpo_of_certainty_is_finite():
    """p̄ = 0 exactly: odds are bounded, the likelihood term is 0."""
    sure = PAIRS._replace(chosen=np.zeros(6))
    values, grads = value_and_grads("orpo", sure)
    assert np.isfinite(values).all() and np.isfinite(grads["chosen"]).all()
