"""Mixtures of experts: each token through the few MLPs that a router picks, none lost.

Tokens are sorted by expert and multiplied raggedly, so an expert takes as many as there
are: what a token gets depends on no other. The router computes in float32 whatever the
dtype of the rest, since near-equal scores would else pick other experts.

Parameters of one layer, X experts:

    router/kernel              [D, X]
    experts/{gate,up}/kernel   [X, D, ff]
    experts/down/kernel        [X, ff, D]

Source: arXiv:2101.03961 (Switch), arXiv:2401.04088 (Mixtral).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from dpo_jax.models.spec import DecoderSpec
from dpo_jax.sharding.arrays import ROW_AXES
from dpo_jax.types import Array, Reports

Tree = dict[str, Any]

EXPERT_AXIS = "tensor"  # of the mesh, over which experts lie
LOADS, PROBS, TOKENS = "router_loads", "router_probs", "router_tokens"


class Routed(NamedTuple):
    """Where tokens go.

    Attributes:
      experts: i32[B, T, k] picked, the likeliest first.
      weights: f32[B, T, k] that what they say is multiplied by.
      probs: f32[B, T, X] of all experts.
    """

    experts: Array
    weights: Array
    probs: Array


def route(spec: DecoderSpec, w: Tree, x: Array) -> Routed:
    """Picks the likeliest experts of each token of [B, T, D].

    A softmax over all experts, then the top k, whose weights are made to sum to 1 where
    the spec says so.
    """
    wide, kernel = x.astype(jnp.float32), w["kernel"].astype(jnp.float32)
    logits = jnp.einsum("BTD,DX->BTX", wide, kernel, precision="highest")
    probs = jax.nn.softmax(logits, axis=-1)
    weights, experts = jax.lax.top_k(probs, spec.experts_per_token)
    if spec.norm_expert_weights:
        weights = weights / weights.sum(-1, keepdims=True)
    return Routed(experts, weights, probs)


def report(routed: Routed, counted: Array) -> Reports:
    """Sums what the router did; parts of a batch add up.

    Args:
      routed: of a layer.
      counted: f32[B, T] how often each token counts.

    Returns:
      f32[X] tokens that each expert got (no gradient) and their probabilities, summed.
    """
    picked = jax.nn.one_hot(routed.experts, routed.probs.shape[-1]).sum(-2)
    return {
        LOADS: jnp.einsum("BTX,BT->X", picked, counted),
        PROBS: jnp.einsum("BTX,BT->X", routed.probs, counted),
    }


def experts(w: Tree, x: Array, routed: Routed, act: Callable[[Array], Array]) -> Array:
    """Runs each token of [B, T, D] through its experts and adds up what they say.

    Every device takes its own rows; over `EXPERT_AXIS` it has some of the experts, if
    their number divides, and the sums of all are added.
    """
    names = ("gate", "up", "down")
    kernels = tuple(w[name]["kernel"].astype(x.dtype) for name in names)
    mesh = jax.sharding.get_abstract_mesh()
    weights = routed.weights.astype(x.dtype)
    if mesh.empty or mesh.size == 1:
        return _through(x, routed.experts, weights, kernels, act)
    rows, shards = tuple(axis for axis in ROW_AXES if axis in mesh.axis_names), 1
    for axis in rows:
        shards *= mesh.shape[axis]
    parts = mesh.shape.get(EXPERT_AXIS, 1)
    split = parts > 1 and len(kernels[0]) % parts == 0

    def run(x: Array, picked: Array, weights: Array, *kernels: Array) -> Array:
        if split:
            picked = picked - jax.lax.axis_index(EXPERT_AXIS) * len(kernels[0])
        y = _through(x, picked, weights, kernels, act)
        return jax.lax.psum(y, EXPERT_AXIS) if split else y

    fit = lambda y: jnp.pad(y, ((0, -len(x) % shards), (0, 0), (0, 0)))  # noqa: E731
    spread = P(EXPERT_AXIS) if split else P()
    run = jax.shard_map(
        run, in_specs=(P(rows),) * 3 + (spread,) * 3, out_specs=P(rows), check_vma=False
    )
    return run(fit(x), fit(routed.experts), fit(weights), *kernels)[: len(x)]


def _through(
    x: Array,
    picked: Array,
    weights: Array,
    kernels: tuple[Array, ...],
    act: Callable[[Array], Array],
) -> Array:
    """Sorts tokens by expert, multiplies, and puts them back.

    Args:
      x: [B, T, D].
      picked: i32[B, T, k] experts; beyond 0 … X − 1 are others', which give 0 here.
      weights: [B, T, k].
      kernels: gate, up, down of X experts.
      act: between them.
    """
    count, k = len(kernels[0]), picked.shape[-1]
    flat = picked.reshape(-1)
    flat = jnp.where((flat >= 0) & (flat < count), flat, count)
    order = jnp.argsort(flat, stable=True)
    mine = flat[order] < count
    sizes = jnp.bincount(flat, length=count + 1)[:count].astype(jnp.int32)

    def product(rows: Array, kernel: Array) -> Array:  # behind the groups lies anything
        y = jax.lax.ragged_dot(rows, kernel, sizes)
        return checkpoint_name(jnp.where(mine[:, None], y, 0), "product")

    gate, up, down = kernels
    rows = x.reshape(-1, x.shape[-1])[order // k]
    said = product(act(product(rows, gate)) * product(rows, up), down)
    back = said[jnp.argsort(order)].reshape(*picked.shape, -1)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    summed = jnp.einsum("BTkD,BTk->BTD", back, weights, preferred_element_type=wide)
    return summed.astype(x.dtype)


def balance(reports: Reports) -> Array:
    """Returns the load-balancing loss of the layers together: k if all are even.

    X·Σ_e f_e·p_e with f_e the share of tokens that expert e got (they sum to k) and p_e
    its mean probability, both over all layers and tokens.

    Args:
      reports: f32[L, X] loads and probabilities, f32[] tokens.

    Source: arXiv:2101.03961 eq. 4, as HF implements it.
    """
    loads, probs = (reports[name] for name in (LOADS, PROBS))
    rows = jnp.maximum(reports[TOKENS] * loads.shape[0], 1.0)
    return loads.shape[1] * (loads.sum(0) / rows * probs.sum(0) / rows).sum()


def largest_load(reports: Reports) -> Array:
    """Returns the share of tokens of the busiest expert of any layer, 1 = even."""
    loads = reports[LOADS]
    even = jnp.maximum(loads.sum(-1, keepdims=True) / loads.shape[-1], 1.0)
    return (loads / even).max()
