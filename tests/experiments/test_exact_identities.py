"""X7 and X9: the frontier's slope, best-of-n, and the paper's derivations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.exact.frontier import run as frontier
from experiments.exact.identities import run as identities

pytestmark = pytest.mark.usefixtures("in_float64")


def test_frontier():
    """X7: dE[r]/dKL = β along π*_β, and the KL falls strictly in β."""
    betas = jnp.asarray(frontier.BETAS)
    slopes = jax.jit(jax.vmap(frontier.slope))(betas)
    np.testing.assert_allclose(slopes, betas, rtol=1e-7)
    grid = jnp.geomspace(0.02, 50.0, 100)
    assert (np.diff(jax.jit(jax.vmap(frontier.place))(grid).kl) < 0).all()


def test_best_of_n():
    """X7: KL ≤ ln n − (n−1)/n, below the frontier, and the plan's four rows."""
    ns = jnp.asarray(frontier.NS, float)
    places, most = jax.jit(jax.vmap(frontier.best_of))(ns)
    assert (places.kl <= np.log(ns) - (ns - 1) / ns).all()
    assert (places.reward < most).all()
    rows = [[0.1887, 0.851], [0.612, 1.354], [1.734, 1.962], [2.908, 2.112]]
    got = np.stack([places.kl, places.reward], -1)
    np.testing.assert_allclose(got, rows, atol=6e-4)
    np.testing.assert_allclose(most, [0.887, 1.391, 1.985, 2.112], atol=1e-3)


def test_derivations():
    """X9: section 4, A.1, A.3, Lemmas 1 and 2, Theorem 1, each to 1e-12."""
    errors = identities.identities()
    assert len(errors) == 11
    for name, error in errors.items():
        assert error < 1e-12, name


def test_gradient_and_the_erratum_of_appendix_a4():
    """X9: §4 agrees with finite differences; A.4's last line does not, at any step."""
    errors = identities.gradient_errors()
    assert errors["section 4"].min() < 1e-10
    assert errors["A.4 as printed"].min() > 1e-3


def test_gradients_of_the_table():
    """X9: every loss of pairs without statistics, against central differences."""
    errors = identities.loss_errors()
    assert {"dpo", "ipo", "hinge", "robust", "dpop", "simpo", "sft"} <= set(errors)
    for name, error in errors.items():
        assert error < 1e-6, name
