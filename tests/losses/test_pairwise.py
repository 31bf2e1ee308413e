"""Golden values by hand; NumPy stands beside each formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.errors import ConfigError
from dpo_jax.losses import LOSSES, Loss, find, options, pairwise
from dpo_jax.types import PairLogps

# a = -1 − (-2) = 1, b = -4 − (-3) = -1, Δ = 2, lengths 2 and 4.
PAIR = PairLogps(*(np.float32([x]) for x in (-1.0, -4.0, -2.0, -3.0, 2.0, 4.0)))
STATIC = {"divergence": "reverse_kl", "divergence_alpha": 1.0, "normalize": "sum"}


def sigma(x):
    return 1 / (1 + np.exp(-x))


def value(name, pair=PAIR, **changed):
    loss = find(name, LOSSES)
    given = {"beta": 0.5, "label_smoothing": 0.0, **STATIC, **changed}
    return loss(pair, given)


def test_dpo_by_hand():
    """−log σ(0.5·2) = log(1 + e^−1) = 0.31326169."""
    np.testing.assert_allclose(value("dpo"), [0.31326169], rtol=1e-6)


def test_conservative_dpo_by_hand():
    """0.9·0.31326169 + 0.1·(0.31326169 + 1) = 0.41326169."""
    np.testing.assert_allclose(
        value("dpo", label_smoothing=0.1), [0.41326169], rtol=1e-6
    )


def test_ipo_by_hand():
    """(2 − 1/(2·0.5))² = 1; mean form (1/2 + 1/4 − 1)² = 0.0625."""
    np.testing.assert_allclose(value("ipo"), [1.0], rtol=1e-6)
    np.testing.assert_allclose(value("ipo", normalize="mean"), [0.0625], rtol=1e-6)


def test_hinge_by_hand():
    """max(0, 1 − 0.25·2) = 0.5, and 0 once β·Δ ≥ 1."""
    np.testing.assert_allclose(value("hinge", beta=0.25), [0.5], rtol=1e-6)
    np.testing.assert_allclose(value("hinge", beta=0.75), [0.0])


def test_sft_is_the_negative_log_likelihood_of_the_chosen():
    np.testing.assert_allclose(value("sft"), [1.0])
    assert find("sft", LOSSES).per == "chosen_tokens"


@pytest.mark.parametrize(
    "divergence, alpha, f",
    [
        ("reverse_kl", 1.0, lambda a: a),
        ("forward_kl", 1.0, lambda a: 1 - np.exp(-a)),
        ("js", 1.0, lambda a: np.log(2) + np.log(sigma(a))),
        ("alpha", 0.5, lambda a: (np.exp(-0.5 * a) - 1) / -0.5),
        ("alpha", 1.0, lambda a: a),
    ],
)
def test_divergences_against_numpy(divergence, alpha, f):
    want = -np.log(sigma(0.5 * (f(1.0) - f(-1.0))))
    got = value("dpo", divergence=divergence, divergence_alpha=alpha)
    np.testing.assert_allclose(got, [want], rtol=1e-5)


@pytest.mark.parametrize("name", ["dpo", "ipo", "hinge"])
def test_gradient_raises_the_chosen_and_lowers_the_rejected(name):
    def total(chosen, rejected):
        pair = PAIR._replace(chosen=chosen, rejected=rejected)
        return value(name, pair, beta=0.1).sum()

    up, down = jax.grad(total, (0, 1))(PAIR.chosen, PAIR.rejected)
    assert up[0] < 0 < down[0]
    np.testing.assert_allclose(up, -down, rtol=1e-6)


def test_dpo_gradient_by_hand():
    """∂/∂chosen = −β σ(−βΔ) = −0.5·σ(−1) = −0.13447071."""
    grad = jax.grad(lambda x: value("dpo", PAIR._replace(chosen=x)).sum())(PAIR.chosen)
    np.testing.assert_allclose(grad, [-0.13447071], rtol=1e-6)


@pytest.mark.parametrize("name", ["dpo", "ipo", "hinge", "sft"])
@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "js", "alpha"])
@pytest.mark.parametrize("margin", [1e4, -1e4])
def test_finite_at_extreme_margins(name, divergence, margin):
    alpha = 2.0 if divergence == "alpha" else 1.0

    def total(chosen):
        pair = PAIR._replace(chosen=chosen)
        return value(
            name, pair, divergence=divergence, divergence_alpha=alpha, beta=0.1
        ).sum()

    loss, grad = jax.value_and_grad(total)(jnp.float32([margin]))
    assert np.isfinite(loss) and np.isfinite(grad).all()


def test_options_are_the_keyword_parameters():
    assert "label_smoothing" in options(find("dpo", LOSSES))
    assert "label_smoothing" not in options(find("ipo", LOSSES))
    assert options(find("sft", LOSSES)) == ("likelihood",)


def test_a_bare_function_is_a_loss():
    def mine(logps, *, beta):
        return beta * logps.rejected

    row = find("mine", {**LOSSES, "mine": mine})
    assert row == Loss(mine) and options(row) == ("beta",)


def test_unknown_names_say_what_is_known():
    with pytest.raises(ConfigError, match=r"'dpoo'.*did you mean 'dpo'.*hinge"):
        find("dpoo", LOSSES)
    with pytest.raises(ConfigError, match="loss.divergence='js2'.*js"):
        pairwise.check_choices(divergence="js2", divergence_alpha=1.0, normalize="sum")
    with pytest.raises(ConfigError, match="divergence_alpha=0.5 is not used"):
        pairwise.check_choices(divergence="js", divergence_alpha=0.5, normalize="sum")
