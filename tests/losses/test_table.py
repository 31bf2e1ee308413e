"""What every row of the table owes, table-driven."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
from loss_cases import (
    OPTIONS,
    PAIRS,
    RECORDS,
    SINGLES,
    VARIED,
    results,
    value_and_grads,
)
from loss_formulas import FORMULAS

from dpo_jax import schema
from dpo_jax.losses import LOSSES, as_markdown, find, keywords, options, tokens
from dpo_jax.types import ListLogps, PairLogps, PairScores, SingleLogps

SMOOTHED = {"beta": 0.7, "label_smoothing": 0.1}
CASES = [(name, SMOOTHED) for name in LOSSES] + [
    ("dpo", {**SMOOTHED, "divergence": "forward_kl", "normalize": "mean"}),
    ("ipo", {**SMOOTHED, "divergence": "alpha", "divergence_alpha": 0.5}),
    ("hinge", {**SMOOTHED, "divergence": "js"}),
    ("exo_pair", {**SMOOTHED, "normalize": "mean"}),
    ("robust", {**SMOOTHED, "divergence": "forward_kl"}),
    ("discopop", {**SMOOTHED, "normalize": "mean", "discopop_tau": 0.5}),
    ("bco_pair", {**SMOOTHED, "baseline": "running"}),
    ("beta_dpo", {"beta": 0.7, "beta_scale": 50.0, "gap_mean": 0.5}),  # β at its floor
    ("chi_po", {"beta": 0.7, "chi_clip": 0.3}),  # some are clipped
    ("dpop", {"beta": 0.7, "dpop_lambda": 2.0}),
    ("dr_dpo", {"beta": 0.7, "dr_beta": 0.05}),
    ("kto", {"beta": 0.7, "desirable_weight": 1.5, "undesirable_weight": 0.7}),
    ("alpha_po", {**SMOOTHED, "alpha_po_alpha": -0.4}),
    ("cpo", {"beta": 0.7, "nll_weight": 0.3, "likelihood": "sum"}),
    ("orpo", {"beta": 0.7, "likelihood": "tokens"}),
    ("sft", {"likelihood": "responses"}),
    ("arpo", {"beta": 0.7, "arpo_scale": 1.5, "arpo_rate": 0.8}),
    ("rpo", {"beta": 0.7, "rating_scale": 0.3, "rpo_distance": "forward"}),
    ("rpo", {"beta": 0.7, "rating_scale": 0.3, "rpo_distance": "squared"}),
    ("rebel", {"rating_scale": 0.3}),
    ("nca", {"beta": 0.7, "temperature": 3.0}),
]


def case_name(case):
    return f"{case[0]}-" + "-".join(str(v) for v in case[1].values())


def numeric_gradient(formula, record, field, given, step=1e-5):
    """Central differences of the sum; where the loss stops gradients, none flow."""
    point = getattr(record, field)
    out = np.zeros_like(point)
    for i in np.ndindex(point.shape):
        sides = []
        for sign in (1, -1):
            moved = point.copy()
            moved[i] += sign * step
            value = formula(record._replace(**{field: moved}), record, given)
            sides.append(value.sum() if np.ndim(value) else value * len(point))
        out[i] = (sides[0] - sides[1]) / (2 * step)
    return out


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_golden_value_and_gradient(case):
    """Float64, against an independent formula and its central differences."""
    name, changed = case
    takes = find(name, LOSSES).takes
    record, formula = RECORDS[takes], FORMULAS[name]
    given = SimpleNamespace(**{**OPTIONS, **changed})
    want = np.asarray(formula(record, record, given))
    values, grads = value_and_grads(name, record, **changed)
    assert values.dtype == np.float64 and values.shape == record[0].shape[:1]
    if want.ndim:
        np.testing.assert_allclose(values, want, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(values.mean(), want.mean(), rtol=1e-10)
    for field in VARIED[takes]:
        expected = numeric_gradient(formula, record, field, given)
        np.testing.assert_allclose(grads[field], expected, rtol=1e-6, atol=1e-8)


def extremes(takes):
    """Log-ratios of −1e4, 0 and 1e4 in all combinations, certainty included."""
    high, low = np.float32(np.meshgrid([-2e4, -1e4, 0], [-2e4, -1e4, 0])).reshape(2, -1)
    ref, ones = np.full(9, -1e4, np.float32), np.ones(9, np.float32)
    if takes == "pairs":
        ratings, drift = np.float32([-1e4, 0, 1e4] * 3), np.float32([0, 1e4, 0] * 3)
        columns = (ratings, 0 * ratings, drift, drift[::-1].copy())
        return PairLogps(high, low, ref, ref, ones, 2 * ones, None, *columns)
    if takes == "singles":
        labels = np.int32([1] * 3 + [-1] * 3 + [0] * 3)
        return SingleLogps(high, ref, labels, np.ones(9, bool))
    if takes == "lists":
        ratio = np.stack([high - ref, low - ref, ref], 1)
        ratings = np.float32([[1e4, 0, -1e4]] * 9)
        return ListLogps(ratio, np.ones((9, 3), bool), ratings)
    return PairScores(high - ref, low - ref, np.float32([0, 1e4, 1] * 3))


@functools.cache
def at_extremes(beta):
    cases = {}
    for name in LOSSES:
        row = find(name, LOSSES)
        small = {key: 1e-3 for key in row.positive}
        changed = {"beta": beta, "spread_std": 0.0, "baseline": "running", **small}
        cases[name] = extremes(row.takes), changed
    return results(cases)


@pytest.mark.parametrize("beta", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("name", LOSSES)
def test_finite_at_extreme_margins(name, beta):
    values, grads = at_extremes(beta)[name]
    assert values.dtype == np.float32 and np.isfinite(values).all(), values
    for field, grad in grads.items():
        assert np.isfinite(grad).all(), (field, grad)


@pytest.mark.parametrize("divergence", ["forward_kl", "alpha"])
@pytest.mark.parametrize("name", ["exo_pair", "robust", "discopop"])
def test_finite_under_unbounded_divergences(name, divergence):
    alpha = 2.0 if divergence == "alpha" else 1.0
    changed = {"label_smoothing": 1e-3, "divergence_alpha": alpha}
    values, grads = value_and_grads(
        name, extremes("pairs"), divergence=divergence, **changed
    )
    assert np.isfinite(values).all()
    assert all(np.isfinite(grad).all() for grad in grads.values())


SIGNS = {
    "sft": (-1, 0),
    "apo_down": (1, 1),
    "sppo": (-1, -1),
}  # of ∂/∂chosen, ∂/∂rejected
AT = {
    "slic_hf": {"slic_margin": 9.0},
    "arpo": {"arpo_scale": 4.0},  # κ = 1
    "beta_dpo": {"keep_fraction": 1.0},
    "discopop": {"beta": 40.0},  # β·0.03 lies behind the loss's bump at 0
}
PAIRED = [n for n in LOSSES if find(n, LOSSES).takes in ("pairs", "scores")]


@pytest.mark.parametrize("name", PAIRED)
def test_signs_of_the_gradient(name):
    """Chosen up, rejected down, near the reference; both down for `apo_down`.

    `sppo` takes the ratings, all above ½ here, for probabilities: both up.
    """
    record = RECORDS[find(name, LOSSES).takes]
    if isinstance(record, PairLogps):
        chosen, rejected = record.ref_chosen + 0.02, record.ref_rejected - 0.01
        record = record._replace(chosen=chosen, rejected=rejected)
    changed = {"label_smoothing": 0.01, **AT.get(name, {})}
    _, grads = value_and_grads(name, record, **changed)
    up, down = SIGNS.get(name, (-1, 1))
    np.testing.assert_array_equal(np.sign(grads["chosen"]), up)
    np.testing.assert_array_equal(np.sign(grads["rejected"]), down)


@pytest.mark.parametrize(
    "name, edge, signs",
    [
        ("nca_pair", np.log(2), (-1, 1)),  # σ(a) = 2/3
        ("sppo_hard", 0.5, (-1, 1)),  # 1/(2β)
        ("discopop", 0.0, (1, 1)),  # its bump at δ = 0
        ("discopop", -1.0, (-1, -1)),
        ("discopop", 1.0, (-1, -1)),
    ],
)
def test_regions_where_the_chosen_response_is_pushed_down(name, edge, signs):
    """β = 1 and b = 0: the gradient's sign just below and above a = edge."""
    for shift, sign in zip((-0.01, 0.01), signs, strict=True):
        chosen = PAIRS.ref_chosen + edge + shift
        moved = PAIRS._replace(chosen=chosen, rejected=PAIRS.ref_rejected)
        _, grads = value_and_grads(name, moved, beta=1.0)
        np.testing.assert_array_equal(np.sign(grads["chosen"]), sign)


@pytest.mark.parametrize("name", ["kto", "bco", "apo_zero_unpaired"])
def test_signs_by_label(name):
    """Desirable up (a negative gradient), undesirable down, label 0 untouched."""
    _, grads = value_and_grads(name, SINGLES)
    np.testing.assert_array_equal(np.sign(grads["logps"]), -SINGLES.labels)


@pytest.mark.parametrize("name", ["plackett_luce", "infonca", "nca"])
def test_a_ranking_raises_its_first_and_lowers_its_last(name):
    _, grads = value_and_grads(name, RECORDS["lists"])
    grad = np.asarray(grads["ratios"])
    assert grad[0, 0] < 0 < grad[0, 3] and grad[1, 0] < 0 < grad[1, 2]
    assert not grad[1, 3] and not grad[2, 1:].any()
    assert name == "nca" or not grad[2, 0]  # a list of one says nothing, but to NCA


COLUMNS = {"ratings", "kls", "mismatched"}


@pytest.mark.parametrize("name", LOSSES)
def test_row_is_complete(name):
    row = find(name, LOSSES)
    assert name in FORMULAS
    assert row.formula and "|" not in row.formula and "arXiv:" in row.source
    defaults = schema.base().loss.to_dict()
    assert set(options(row)) <= set(defaults)
    assert set(row.usual) <= set(options(row))
    assert all(defaults[key] != value for key, value in row.usual.items())
    assert row.takes in RECORDS and set(row.columns) <= COLUMNS
    assert set(row.positive) <= set(options(row))
    if row.running is not None:
        assert set(row.running.start) <= set(keywords(row.fn))
        assert not set(row.running.start) & set(options(row))
    if row.token_weights:
        assert set(keywords(tokens.WEIGHTS[row.token_weights])) <= set(options(row))
    assert f"| `{name}` | {row.formula} |" in as_markdown(LOSSES)


def test_every_option_of_the_configuration_is_some_loss_or_the_objectives():
    used = {key for name in LOSSES for key in options(find(name, LOSSES))}
    objectives = {"name", "options", "weights", "weighting", "ld_alpha", "margin"}
    assert set(schema.base().loss.to_dict()) == used | objectives
