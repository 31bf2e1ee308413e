"""X2 to X6: bandits whose optima are known in closed form."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import exact
from experiments.exact import common
from experiments.exact.displacement import run as displacement
from experiments.exact.existence import run as existence
from experiments.exact.ipo_bandit import run as ipo_bandit
from experiments.exact.label_noise import run as label_noise
from experiments.exact.misspecified import run as misspecified

pytestmark = pytest.mark.usefixtures("in_float64")
PRINTED = {  # X2, digits as published or derived
    ("D1", 0.1): (0.9644, 0.0344, 0.0012),
    ("D1", 0.5): (0.5627, 0.2889, 0.1483),
    ("D1", 1.0): (0.4484, 0.3213, 0.2302),
    ("D3'", 0.1): (0.4983, 0.4983, 0.0034),
    ("D3'", 0.5): (0.4223, 0.4223, 0.1554),
    ("D3'", 1.0): (0.3837, 0.3837, 0.2327),
}


def fits(name):
    """Trains on all data sets at the three τ in one program; {data: f[3, 3]}."""
    wins = jnp.stack([ipo_bandit.wins(data) for data in ipo_bandit.DATA.values()])
    over_betas = jax.vmap(partial(ipo_bandit.fit, name), (None, 0))
    train = jax.jit(jax.vmap(over_betas, (0, None)))
    policies = np.exp(train(wins, jnp.asarray(ipo_bandit.BETAS)))
    return dict(zip(ipo_bandit.DATA, policies, strict=True))


def test_ipo_bandit():
    """X2: IPO's closed forms by hand, by the Laplacian and by training.

    D1 ∝ (e^(2/(3τ)), e^(1/(3τ)), 1); D2 and, erratum, D3 uniform (θ_c has no gradient);
    D3' = D3 + (b, c) ∝ (1, 1, e^(−1/(2τ))).
    """
    trained = fits("ipo")
    for data, (t, tau) in itertools.product(trained, enumerate(ipo_bandit.BETAS)):
        scores = {
            "D1": (2 / (3 * tau), 1 / (3 * tau), 0),
            "D2": (0, 0, 0),
            "D3": (0, 0, 0),
            "D3'": (0, 0, -1 / (2 * tau)),
        }[data]
        want = np.exp(scores) / np.exp(scores).sum()
        closed = ipo_bandit.closed_form(data, tau)
        np.testing.assert_allclose(closed, want, atol=1e-12)
        np.testing.assert_allclose(trained[data][t], want, atol=1e-8)
        if (data, tau) in PRINTED:
            np.testing.assert_allclose(want, PRINTED[data, tau], atol=6e-5)


def test_dpo_bandit():
    """X2: DPO goes to (1, 0, 0) on D1, drops c on D3', and stays put on D2 and D3."""
    trained = fits("dpo")
    assert (trained["D1"][:, 0] > 1 - 1e-3).all()
    for data in ("D2", "D3"):
        np.testing.assert_allclose(trained[data], 1 / 3, atol=1e-8)
    dropped = trained["D3'"]
    assert (dropped[:, 2] < 1e-2).all()
    np.testing.assert_allclose(dropped[:, 0], dropped[:, 1], rtol=0.05)


def test_the_printed_protocol_never_moves_the_uncompared_arm():
    """X2, erratum: along noisy training on D3 the logit of c stays where it was.

    The logits a and b move by opposite amounts d, so π_c = 1/(1 + 2 cosh d) exactly.
    """
    data = np.array([(0, 1), (1, 0), (0, 1)])
    curve = jax.jit(partial(ipo_bandit.curve, "ipo", steps=1_000))
    points = np.asarray(curve(0.5, data, 2, jax.random.key(0)))
    assert np.ptp(points[:, 0]) > 1e-3
    d = np.log(points[:, 0] / points[:, 1]) / 2
    np.testing.assert_allclose(points[:, 2], 1 / (1 + 2 * np.cosh(d)), rtol=1e-9)


def test_dpo_cannot_tell_policies_that_the_objective_separates():
    """X3: L = log(1 + (b/a)^β) at ref (½, ½, ε), whatever lies on y₃; J differs."""
    dpo = jax.jit(jax.vmap(existence.dpo, (0, None)))
    policies = np.log(np.array(list(existence.POLICIES.values())))
    gaps = []
    for epsilon in existence.EPSILONS:
        ref = existence.reference(epsilon)
        losses = dpo(policies, ref)
        np.testing.assert_allclose(losses, 0, atol=1e-25)
        best, spread = existence.worth(policies, epsilon)
        assert best > spread
        gaps.append(best - spread)
    assert gaps == sorted(gaps)  # KL → ∞ as ε → 0
    ref = existence.reference(1e-8)
    for ratio in existence.RATIOS:
        line = jax.vmap(existence.spread_out, (None, 0))(
            ratio, np.linspace(0.01, 0.9, 9)
        )
        want = np.log1p(ratio**existence.BETA)
        np.testing.assert_allclose(dpo(line, ref), want)


def test_training_raises_some_cell_that_no_pair_contains():
    """X3 on 8 × 8: at least one such cell rises, though their mass falls."""
    keys = jax.random.split(jax.random.key(0), existence.SEEDS)
    cells = jax.tree.map(np.asarray, jax.jit(jax.vmap(existence.unseen_cells))(keys))
    unseen_a_prompt = existence.SIZE - existence.REJECTED - 1
    assert (cells["unseen"].sum(-1) == unseen_a_prompt).all()
    assert np.nanmax(existence.raised(cells)) > 1
    start, end = ((cells[m] * cells["unseen"]).sum() for m in ("start", "end"))
    assert end < start


def test_misspecified_dpo_ends_below_its_reference():
    """X4: signs of θ and E_DPO < E_ref < E_RLHF, with the plan's digits."""
    betas = jnp.asarray(misspecified.BETAS)
    solve = {
        name: jax.jit(jax.vmap(partial(misspecified.solve, name)))(betas)
        for name in misspecified.OBJECTIVES
    }
    (dpo_theta, dpo), (rlhf_theta, rlhf) = solve["DPO"], solve["RLHF"]
    assert (dpo_theta > 0).all() and (rlhf_theta < 0).all()
    assert (dpo < 1).all() and (rlhf > 1).all()  # E_ref = (1 + 2 + 0)/3
    at = misspecified.BETAS.index(10.0)
    np.testing.assert_allclose(dpo_theta[at], 0.0911, atol=5e-5)
    np.testing.assert_allclose(rlhf_theta[at], -0.0526, atol=5e-5)
    np.testing.assert_allclose(dpo, [0.846, 0.945, 0.971, 0.994], atol=6e-4)
    np.testing.assert_allclose(rlhf, [1.4185, 1.039, 1.018, 1.003], atol=6e-4)


def test_label_noise():
    """X5: rDPO finds π* under flips; DPO fits p'; cDPO is more conservative still."""
    measured = jax.jit(
        lambda noise: {
            name: label_noise.measure(label_noise.fit(name, noise, steps=1_500))
            for name in label_noise.LOSSES
        }
    )(0.2)
    ref, rewards = label_noise.responses()
    best = exact.optimal_policy(ref, rewards, beta=label_noise.BETA)
    rdpo, dpo, cdpo = (measured[name] for name in ("rDPO", "DPO", "cDPO"))
    assert abs(rdpo["KL(π*‖π)"]) < 1e-6
    np.testing.assert_allclose(rdpo["E[r]"], exact.expected_reward(best, rewards), 1e-6)
    assert cdpo["KL(π‖ref)"] < dpo["KL(π‖ref)"] < rdpo["KL(π‖ref)"]
    assert cdpo["E[r]"] < dpo["E[r]"] < rdpo["E[r]"]
    np.testing.assert_allclose(dpo["KL(π*‖π)"], 0.127, atol=5e-4)
    np.testing.assert_allclose(cdpo["KL(π*‖π)"], 0.253, atol=5e-4)
    got = [measured[name]["E[r]"] for name in ("DPO", "cDPO", "rDPO")]
    np.testing.assert_allclose(got, [0.774, 0.530, 1.277], atol=5e-4)


def test_dpo_under_flips_is_the_likelihood_of_the_flipped_probability():
    """X5, two responses: βδ = logit((1 − 2ε)p + ε) for DPO, twice flipped for cDPO."""
    p, noise, beta = 0.9, 0.2, 1.0
    even, sides = jnp.zeros(2), np.array([[0], [1]])
    once = label_noise.flip(p, noise)
    wants = {"DPO": once, "cDPO": label_noise.flip(once, noise), "rDPO": p}
    for name, want in wants.items():
        smoothing = 0.0 if name == "DPO" else noise
        options = {"beta": beta, "label_smoothing": smoothing}
        loss = common.loss_of(label_noise.LOSSES[name], options)

        def total(delta, loss=loss):
            pairs = common.compare(jnp.stack([delta, 0.0]), even, *sides)
            return common.over_labels(loss, pairs, once)[0]

        got = jax.jit(partial(common.zoom, total, -6.0, 6.0))()
        np.testing.assert_allclose(got, np.log(want / (1 - want)), atol=1e-6)


def test_displacement():
    """X6: the chosen response falls under DPO while its margin grows, not under DPOP.

    d log π_chosen/dθ at the reference is 1 − mean(1, 0, 5) = −1.
    """
    results = displacement.compute()
    np.testing.assert_allclose(results["slope"][0], -1.0, atol=1e-12)
    path = np.asarray(results["path"])
    assert (np.diff(path[:, 0]) < 0).all()
    assert (np.diff(path[:, 0] - path[:, 1]) > 0).all()
    assert np.exp(path[-1, 2]) > 1 - 1e-6
    dpo, *dpop = results["best"]
    np.testing.assert_allclose(dpo, displacement.HIGH)  # the end of the bracket
    for theta in dpop:
        np.testing.assert_allclose(theta, 0.0, atol=1e-8)
        assert displacement.policy(theta)[0] >= displacement.policy(0.0)[0] - 1e-8
