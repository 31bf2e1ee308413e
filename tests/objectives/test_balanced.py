"""The routers' loss beside another's: its weight, and what divides a step."""

import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import errors
from dpo_jax.models import hf
from dpo_jax.objectives.balanced import COEF
from dpo_jax.train import step
from dpo_jax.train.leaves import flat
from dpo_jax.types import Columns
from dpo_jax.wiring.objective import with_routers

sys.path.insert(0, str(Path(__file__).parent.parent / "models"))
from family_cases import CONFIGS, LENGTH, drawn, forests  # noqa: E402
from test_moe import drawn_reports  # noqa: E402

SPEC = hf.spec_of(CONFIGS["olmoe"])


class Norms(NamedTuple):
    """The mean square of final norms' scales, of each row alike; nothing couples."""

    couples: bool = False

    def counts(self, batch):
        return {"rows": jnp.float32(len(batch.tokens))}

    def score(self, params, frozen, batch, key, hyper):
        value = jnp.square(params["final_norm"]["scale"]).mean()
        rows = jnp.ones((len(batch.tokens), 1))
        pairs = jnp.zeros((len(rows), 1, 2), jnp.int32)
        columns = Columns(rows, pairs, response={"value": rows * value})
        return columns, drawn_reports(params, batch, SPEC)

    def update(self, columns, stats, hyper):
        return stats

    def of_set(self, whole):
        return {}

    def loss(self, columns, reports, stats, hyper, counts):
        value = columns.response["value"].sum()
        return value / counts["rows"], {"value": (value, counts["rows"])}


def taken(parts, coef):
    """One step's gradient and metrics, of four ragged rows in so many parts."""
    params = jax.tree.map(lambda x: jnp.float32(0.2 * x), drawn(SPEC))
    batch = jax.tree.map(lambda x: x[np.array([0, 1, 2, 4])], forests()[0])
    batch.docs[0, LENGTH // 2 :] = 0
    batch = jax.tree.map(lambda x: x.reshape(parts, 4 // parts, *x.shape[1:]), batch)
    objective = with_routers(Norms(), SPEC, weighted=coef > 0)
    hyper = {COEF: jnp.float32(coef)}

    def run(params, batch, hyper):
        key = jax.random.key(0)
        return step.accumulate(objective, params, {}, {}, batch, key, hyper)

    grads, (loss, sums, _) = jax.jit(run)(params, batch, hyper)
    return grads, loss, {name: s / n for name, (s, n) in sums.items()}


def test_the_loss_of_routers_is_that_of_the_whole_step_however_it_is_divided():
    """Shares of experts are pooled over four ragged rows, not averaged over parts."""
    whole, parts = taken(1, 0.5), taken(4, 0.5)
    np.testing.assert_allclose(parts[1], whole[1], rtol=1e-6)
    np.testing.assert_allclose(
        parts[2]["router/aux_loss"], whole[2]["router/aux_loss"], rtol=1e-6
    )
    ours = flat(whole[0])
    assert jnp.abs(ours["layers/router/kernel"]).max() > 1e-5
    for name, grad in flat(parts[0]).items():
        np.testing.assert_allclose(grad, ours[name], rtol=1e-3, atol=1e-7)


def test_its_weight_is_linear_and_zero_is_the_other_loss_to_the_bit():
    """Routers get no gradient of it then; loads are told all the same."""
    none, half = taken(1, 0.0), taken(1, 0.5)
    np.testing.assert_array_equal(none[1], none[2]["value"])
    assert not flat(none[0])["layers/router/kernel"].any()
    aux = none[2]["router/aux_loss"]
    np.testing.assert_allclose(half[1] - none[1], 0.5 * aux, rtol=1e-5)
    assert aux > 0 and none[2]["router/largest_load"] >= 1


def test_a_weight_without_routers_is_refused():
    llama = hf.spec_of(CONFIGS["llama"])
    objective = Norms()
    assert with_routers(objective, llama, weighted=False) is objective
    with pytest.raises(errors.ConfigError, match="router_aux_coef is of a mixture"):
        with_routers(objective, llama, weighted=True)
