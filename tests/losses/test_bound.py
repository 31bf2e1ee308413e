"""A loss with its options: what it reads, what is traced, what it keeps."""

import jax
import numpy as np
import pytest
from loss_cases import OPTIONS, PAIRS, STATS, value

from dpo_jax import schema
from dpo_jax.losses import LOSSES, find

GIVEN = schema.base().loss.to_dict()


def test_float_options_are_traced_and_others_are_not():
    dpo = find("dpo", LOSSES).bind(GIVEN)
    assert dpo.hyper == {"beta": 0.1, "label_smoothing": 0.0}
    score = {"divergence": "reverse_kl", "divergence_alpha": 1.0, "normalize": "sum"}
    assert dpo.fixed == score


def test_a_sweep_over_beta_compiles_once():
    dpo, traces = find("dpo", LOSSES).bind(GIVEN), []

    @jax.jit
    def total(hyper):
        traces.append(hyper)
        return dpo.loss(PAIRS, dpo.options(hyper)).sum()

    values = [total({**dpo.hyper, "beta": beta}) for beta in (0.1, 0.2, 0.4)]
    assert len(traces) == 1 and len(set(map(float, values))) == 3


def test_an_option_of_one_loss_goes_before_that_of_all():
    """SimPO at its own β = 2 beside DPO at 0.1; γ is that of all."""
    simpo = find("simpo", LOSSES).bind(GIVEN, {"beta": 2}, name="simpo", weight=0.5)
    dpo = find("dpo", LOSSES).bind(GIVEN, name="dpo", weight=1.0)
    assert simpo.hyper["simpo.beta"] == 2.0 and "beta" not in simpo.hyper
    hyper = {**simpo.hyper, **dpo.hyper}
    assert simpo.options(hyper)["beta"] == 2.0 and dpo.options(hyper)["beta"] == 0.1
    assert simpo.options(hyper)["gamma"] == OPTIONS["gamma"]
    assert simpo.weight(hyper) == 0.5 and dpo.weight(hyper) == 1.0
    want = value("simpo", PAIRS, beta=2.0)
    np.testing.assert_allclose(simpo.loss(PAIRS, simpo.options(hyper)), want, rtol=1e-5)


@pytest.mark.parametrize("baseline, kept", [("none", False), ("running", True)])
def test_bco_pair_keeps_statistics_only_where_they_are_read(baseline, kept):
    bound = find("bco_pair", LOSSES).bind({**GIVEN, "baseline": baseline})
    assert bound.couples == kept
    start = {name: STATS[name] for name in bound.loss.running.start}
    moved = bound.update(PAIRS, start, bound.hyper)
    assert (moved != start) == kept
    values = bound.loss(PAIRS, bound.options(bound.hyper) | (start if kept else {}))
    shift = STATS["reward_mean"] if kept else 0.0
    a, b = PAIRS.chosen - PAIRS.ref_chosen, PAIRS.rejected - PAIRS.ref_rejected
    want = np.logaddexp(0, shift - 0.1 * a) + np.logaddexp(0, 0.1 * b - shift)
    np.testing.assert_allclose(values, want, rtol=1e-6)


def test_an_option_of_a_users_function_that_no_key_names_keeps_its_default():
    def mine(logps, *, beta, zeta=3.0):
        return beta * zeta * logps.rejected

    bound = find("mine", {"mine": mine}).bind(GIVEN)
    values = bound.loss(PAIRS, bound.options(bound.hyper))
    np.testing.assert_allclose(values, 0.3 * PAIRS.rejected, rtol=1e-6)
