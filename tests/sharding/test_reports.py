"""A trunk that reports sums beside its hidden states, over layouts, parts and meshes.

Its tokens see what the forest lets them see; its router's weights touch no hidden
state, so that all their gradient is the cotangent of what is reported. The reports are
sums over scored tokens, of which every layout holds the same ones (a prompt's tokens
stand once or twice).
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpo_jax.data.loader import Loader, Settings, train_steps
from dpo_jax.logps import scored_places
from dpo_jax.losses import LOSSES
from dpo_jax.models import forest
from dpo_jax.objectives import preference
from dpo_jax.objectives.judged import Judged
from dpo_jax.objectives.terms import Scorer
from dpo_jax.sharding import arrays, rules
from dpo_jax.sharding import mesh as mesh_lib
from dpo_jax.train import annotate, optimizer, step
from dpo_jax.types import Head
from tests.sharding.test_equivalence import VOCAB, records

MESHES = {"1": (1, 1), "2": (2, 1), "4": (1, 4), "8": (2, 4)}  # data, fsdp
LAYOUTS = ("padded", "packed", "prefix_shared")
WIDTH, EXPERTS, PAIRS, LR = 8, 4, 8, 0.5
RULES = ((r"router/kernel$", rules.P("fsdp", None)), *rules.STATE_RULES)
OPTIONS = {"beta": 2.0, "dr_beta": 0.5, "label_smoothing": 0.0, "normalize": "sum"}
OPTIONS |= {"divergence": "reverse_kl", "divergence_alpha": 1.0}


def trunk(params, batch):
    """Hidden states, head, and of the scored tokens the experts' loads and Σ log²Z."""
    embedded = params["embed"]["tokens"][batch.tokens]  # [B, T, D]
    cells = forest.cells_of(batch.docs, batch.branches, batch.positions)
    query = jax.tree.map(lambda x: x[:, :, None], cells)
    key = jax.tree.map(lambda x: x[:, None], cells)
    seen = forest.visible(query, key, 0).astype(jnp.float32)  # [B, T, T]
    mixed = seen @ embedded / jnp.maximum(seen.sum(-1, keepdims=True), 1.0)
    hidden = jnp.tanh(embedded + mixed)
    logits = jax.lax.stop_gradient(hidden) @ params["router"]["kernel"]
    logits = jnp.take_along_axis(logits, batch.parents[..., None], axis=1)  # [B, C, X]
    scored = scored_places(batch.slots, batch.ends.shape[-1])[..., None]
    size = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    loads = jnp.where(scored, jnp.exp(logits - size), 0.0).sum((0, 1))
    reports = {"loads": loads, "size": jnp.where(scored, jnp.square(size), 0.0).sum()}
    return hidden, Head(params["head"]["kernel"], None), reports


@dataclasses.dataclass(frozen=True, eq=False)
class Routed(Judged):
    """A loss of pairs, and of each pair's share of log²Z."""

    def routed(self, reports, pairs):
        return reports["size"] / pairs

    def loss(self, columns, reports, stats, hyper, counts):
        loss, sums = super().loss(columns, reports, stats, hyper, counts)
        first = (reports["loads"][0], reports["loads"].sum())
        routed = self.routed(reports, counts["pairs"])
        return loss + routed, sums | {"load": first}


class Balanced(Routed):
    """Likewise, and the squares of the whole step's loads: no part tells them alone."""

    couples = True

    def routed(self, reports, pairs):
        loads = reports["loads"] / pairs
        return super().routed(reports, pairs) + jnp.square(loads).sum()


OBJECTIVES = {"alone": (Routed, "dpo"), "coupled": (Balanced, "dr_dpo")}


@functools.cache
def start():
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    params = {
        "embed": {"tokens": draw(VOCAB, WIDTH)},
        "router": {"kernel": draw(WIDTH, EXPERTS)},
        "head": {"kernel": draw(WIDTH, VOCAB)},
    }
    return params, jax.tree.map(lambda leaf: leaf[::-1].copy(), params)


@functools.cache
def results(kind, layout, microbatches, name):
    """Takes one step; returns metrics, gradient and new parameters."""
    data, fsdp = MESHES[name]
    mesh = mesh_lib.make_mesh(data, fsdp, 1, devices=jax.devices()[: data * fsdp])
    settings = Settings(PAIRS, microbatches, layout, 0, mesh_lib.row_shards(mesh))
    order = train_steps(PAIRS, pairs=PAIRS, steps=1, seed=0, shuffle=True)
    batch = Loader(records(), order, settings).batch_at(0)
    policy, other = start()
    objective, loss = OBJECTIVES[kind]
    bound = LOSSES[loss].bind(OPTIONS)
    descent = optax.trace(decay=0.0)  # keeps the gradient in its state

    def whole(state, frozen, batch, hyper):
        scored = annotate.ref_logps(frozen["ref"], batch, apply=trunk, chunk=8)
        return step.train_step(
            state,
            frozen,
            annotate.with_tokens(batch, scored),
            hyper,
            objective=objective(preference.PAIRS, Scorer(trunk, 8), (bound,)),
            tx=lambda hyper: descent,
            lr_factor=optimizer.schedule("constant"),
        )

    state = step.init_state(policy, descent, seed=0)
    places = rules.shardings(jax.eval_shape(lambda: state), mesh, RULES)
    rows = arrays.row_sharding(mesh, leading=1)
    compiled = step.compile_step(
        whole,
        state_shardings=places,
        frozen_shardings={"ref": places.params},
        batch_sharding=rows,
        scalar=arrays.replicated(mesh),
        dtype="float32",
    )
    pace = optimizer.pace(warmup_steps=0, total_steps=1)
    hyper = {"beta": OPTIONS["beta"], "lr": LR, **bound.hyper, **pace}
    state, metrics = compiled(
        jax.device_put(state, places),
        {"ref": jax.device_put(other, places.params)},
        arrays.to_global(batch, rows),
        {name: jnp.float32(value) for name, value in hyper.items()},
    )
    return jax.device_get((metrics, state.opt_state.trace, state.params))


def cases():
    """Each mesh with each layout, one in two coupled; in two parts but every third."""
    for i, (name, layout) in enumerate(itertools.product(MESHES, LAYOUTS)):
        yield ("alone", "coupled")[i % 2], layout, 1 if i % 3 == i // 3 % 3 else 2, name


@pytest.mark.parametrize("kind, layout, microbatches, name", cases())
def test_reports_are_the_same_everywhere(kind, layout, microbatches, name):
    metrics, grads, params = results(kind, layout, microbatches, name)
    want, wanted_grads, wanted_params = results(kind, "padded", 1, "1")
    assert metrics.keys() == want.keys() and metrics["ok"]
    for key, value in want.items():
        np.testing.assert_allclose(metrics[key], value, rtol=1e-5, err_msg=key)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        (grads, params),
        (wanted_grads, wanted_params),
    )


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_the_router_learns_of_reports_alone(kind):
    """Of log²Z/n, and of the loads' squares where they are part of the loss."""
    metrics, grads, _ = results(kind, "padded", 1, "1")
    batch = Loader(
        records(),
        train_steps(PAIRS, pairs=PAIRS, steps=1, seed=0, shuffle=True),
        Settings(PAIRS, 1, "padded", 0, 1),
    ).batch_at(0)
    rows = jax.tree.map(lambda leaf: leaf[0], batch)
    params = start()[0]

    def routed(kernel):
        reports = trunk(params | {"router": {"kernel": kernel}}, rows)[2]
        loads = jnp.square(reports["loads"] / PAIRS).sum() * (kind == "coupled")
        return reports["size"] / PAIRS + loads, reports

    slope, reports = jax.grad(routed, has_aux=True)(params["router"]["kernel"])
    assert np.abs(slope).min() > 1e-3
    np.testing.assert_allclose(grads["router"]["kernel"], slope, rtol=1e-4, atol=1e-5)
    scored = sum(len(r) for record in records() for r in record.responses)
    np.testing.assert_allclose(reports["loads"].sum(), scored, rtol=1e-6)
    np.testing.assert_allclose(metrics["load"], reports["loads"][0] / scored, rtol=1e-5)
