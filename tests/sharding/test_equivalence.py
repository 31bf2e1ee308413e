"""Layouts × microbatches × meshes: the same losses, gradients and parameters.

Everything is held against one device, padded rows, one microbatch. The gradients ride
out of the compiled step in the optimizer's state, so each place compiles once, without
the code generator's optimizations: what is tested comes before them. A quarter of the
places always runs: each layout with either number of microbatches, every mesh among
them. The others run every night.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from dpo_jax.data.loader import Loader, Settings, train_steps
from dpo_jax.losses import LOSSES
from dpo_jax.models.decoder import Decoder, abstract_params, init_params
from dpo_jax.models.spec import preset
from dpo_jax.objectives import preference
from dpo_jax.objectives.judged import Judged
from dpo_jax.objectives.terms import Scorer
from dpo_jax.sharding import arrays, rules
from dpo_jax.sharding import mesh as mesh_lib
from dpo_jax.train import annotate, optimizer, step
from dpo_jax.types import Record

pytestmark = pytest.mark.usefixtures("quick_compilations")
MESHES = {"1": (1, 1, 1), "8x1x1": (8, 1, 1), "2x4x1": (2, 4, 1), "2x2x2": (2, 2, 2)}
LAYOUTS = ("padded", "packed", "prefix_shared")
VOCAB, LONGEST, PAIRS, LR = 64, 32, 8, 0.5
SPEC = preset("tiny", vocab=VOCAB, max_positions=LONGEST)
OPTIONS = {"divergence": "reverse_kl", "divergence_alpha": 1.0, "normalize": "sum"}
PACE = optimizer.pace(warmup_steps=0, total_steps=1)
HYPER = {"beta": 0.1, "label_smoothing": 0.0, "lr": LR, **PACE}


def records():
    """Eight pairs of ragged lengths: prompts of 1–12 tokens, responses of 1–20."""
    rng = np.random.default_rng(5)
    ids = lambda n: rng.integers(1, VOCAB, n).astype(np.int32)  # noqa: E731
    sizes = [(1, 1, 20), (12, 20, 1), (7, 3, 3), (2, 19, 2), (5, 11, 6)]
    sizes += [(9, 1, 2), (3, 8, 17), (4, 2, 13)]
    rows = [(ids(p), (ids(c), ids(r))) for p, c, r in sizes]
    return [Record(i, *row, comparisons=((0, 1),)) for i, row in enumerate(rows)]


def keep_gradient():
    """Descends along the gradient and keeps it in the optimizer's state."""
    return optax.trace(decay=0.0)


def lay_out(sizes):
    devices = jax.devices()[: int(np.prod(sizes))]
    auto = (AxisType.Auto,) * 3
    return jax.make_mesh(sizes, mesh_lib.AXES, axis_types=auto, devices=devices)


@functools.cache
def start():
    """Draws the policy and another model as the reference, on the host."""
    draw = jax.jit(init_params, static_argnums=0)
    return jax.device_get([draw(SPEC, jax.random.key(seed)) for seed in (0, 1)])


def compile_run(mesh):
    """Compiles annotation and step together over a mesh."""
    constrain = arrays.constrain_rows
    module = Decoder(SPEC, constrain=constrain)

    def apply(params, batch):
        return *module.apply({"params": params}, batch), {}

    take = functools.partial(
        step.train_step,
        objective=Judged(
            preference.PAIRS,
            Scorer(apply, 8),
            (LOSSES["dpo"].bind({**HYPER, **OPTIONS}),),
        ),
        tx=lambda hyper: keep_gradient(),
        lr_factor=optimizer.schedule("constant"),
    )

    def whole(state, frozen, batch, hyper):
        scored = annotate.ref_logps(frozen["ref"], batch, apply=apply, chunk=8)
        return take(state, frozen, annotate.with_tokens(batch, scored), hyper)

    make = functools.partial(step.init_state, tx=keep_gradient(), seed=0)
    abstract = jax.eval_shape(make, abstract_params(SPEC))
    places = rules.shardings(abstract, mesh, rules.STATE_RULES)
    rows = arrays.row_sharding(mesh, leading=1)
    compiled = step.compile_step(
        whole,
        state_shardings=places,
        frozen_shardings={"ref": places.params},
        batch_sharding=rows,
        scalar=arrays.replicated(mesh),
        dtype="float32",
    )

    def run(batch, params, ref_params):
        state = jax.device_put(make(params), places)
        frozen = {"ref": jax.device_put(ref_params, places.params)}
        hyper = {name: jnp.float32(value) for name, value in HYPER.items()}
        batch = arrays.to_global(batch, rows)
        state, metrics = compiled(state, frozen, batch, hyper)
        grads = state.opt_state.trace
        return jax.device_get((metrics, grads, state.params))

    return run


@functools.cache
def results(layout, microbatches, name):
    """Runs one step from another reference, and one from the policy as its own."""
    mesh = lay_out(MESHES[name])
    settings = Settings(PAIRS, microbatches, layout, 0, mesh_lib.row_shards(mesh))
    order = train_steps(PAIRS, pairs=PAIRS, steps=1, seed=0, shuffle=True)
    batch = Loader(records(), order, settings).batch_at(0)
    policy, other = start()
    with jax.set_mesh(mesh):
        run = compile_run(mesh)
        return run(batch, policy, other), run(batch, policy, policy)[0]


def places():
    for axes in itertools.product(enumerate(LAYOUTS), (1, 2), enumerate(MESHES)):
        (i, layout), microbatches, (j, name) = axes
        always = (i + microbatches + j) % len(MESHES) == 1
        marks = () if always else pytest.mark.nightly
        yield pytest.param(layout, microbatches, name, marks=marks)


@pytest.mark.parametrize("layout, microbatches, name", places())
def test_the_same_step_everywhere(layout, microbatches, name):
    """Losses to 1e-6, metrics to 1e-5; gradients' mean residual to 1e-7."""
    (metrics, grads, params), equal = results(layout, microbatches, name)
    (want, wanted_grads, wanted_params), _ = results("padded", 1, "1")
    assert metrics["ok"] and want["grad_norm"] > 0.1
    np.testing.assert_allclose(metrics["loss"], want["loss"], rtol=1e-6)
    assert metrics.keys() == want.keys()
    for key, value in want.items():
        np.testing.assert_allclose(
            metrics[key], value, rtol=1e-5, atol=1e-6, err_msg=key
        )
    residuals = jax.tree.map(
        lambda a, b: float(np.abs(a - b).mean()), grads, wanted_grads
    )
    assert max(jax.tree.leaves(residuals)) <= 1e-7, residuals
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        (grads, params),
        (wanted_grads, wanted_params),
    )
    assert abs(equal["loss"] - np.log(2)) <= 1e-6  # policy = reference


def test_the_reference_run_is_one_that_moves():
    """Guards the comparison: rows are ragged, gradients differ from leaf to leaf."""
    (metrics, grads, params), _ = results("padded", 1, "1")
    assert abs(metrics["loss"] - np.log(2)) > 1e-4
    policy = start()[0]
    jax.tree.map(
        lambda p, q, g: np.testing.assert_allclose(p, q - LR * g, atol=1e-6),
        params,
        policy,
        grads,
    )
    assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(grads))
