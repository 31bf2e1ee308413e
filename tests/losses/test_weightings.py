"""Weights of pairs by hand, and that they get no gradient."""

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.losses.weightings import WEIGHTINGS


def test_wpo_by_hand():
    """Certainties (ln 2, −ln 8) and (ln 2, ln 2): 2/8 = .25 and 4, clamped to 1."""
    chosen = jnp.log(jnp.float32([2.0, 2.0]))
    rejected = jnp.log(jnp.float32([1 / 8, 2.0]))
    plain, clamped = WEIGHTINGS["wpo"], WEIGHTINGS["wpo_clamped"]
    np.testing.assert_allclose(plain(chosen, rejected), [0.25, 4.0], rtol=1e-6)
    np.testing.assert_allclose(clamped(chosen, rejected), [0.25, 1.0], rtol=1e-6)
    for weigh in (plain, clamped):
        slope = jax.grad(lambda x, w=weigh: w(x, rejected).sum())(chosen)
        assert not np.asarray(slope).any()
