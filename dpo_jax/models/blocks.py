"""What one layer computes: norms, attention, MLP, and how they are joined.

Parameters of one layer in, the residual stream out. This file knows nothing of scans,
of the tree of a whole model or of files.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from dpo_jax.models import attention as attention_lib
from dpo_jax.models import cache as cache_lib
from dpo_jax.models import moe
from dpo_jax.models import rope as rope_lib
from dpo_jax.models.attention import Backend
from dpo_jax.models.cache import Kept
from dpo_jax.models.spec import DecoderSpec
from dpo_jax.sharding import mesh
from dpo_jax.types import Array, Reports

Tree = dict[str, Any]
Map = Callable[[Array], Array]
Said = tuple[Array, Reports]


class Past(NamedTuple):
    """What a layer kept of the tokens before, where it reads one token at a time.

    Attributes:
      kept: [B, K, S, E] keys and values.
      positions: i32[B] of the new tokens.
    """

    kept: Kept
    positions: Array


class Context(NamedTuple):
    """What a layer sees beside its input.

    Attributes:
      seen: who sees whom, as the backend reads it; with a past a mask bool[B, 1, T, S].
      rope: cos and sin, f32[B, T, 1, pairs] each; None without rotary positions.
      past: of the tokens before; None where the rows hold all that is seen.
      query_scale: f32[B, T, 1, 1] that queries are multiplied by; None = 1.
      counted: f32[B, T] how often each token counts in what routers report; None =
        nobody asks.
    """

    seen: Any
    rope: tuple[Array, Array] | None
    past: Past | None = None
    query_scale: Array | None = None
    counted: Array | None = None


def normalise(spec: DecoderSpec, w: Tree, x: Array) -> Array:
    """Normalises the last axis in float32 and returns it in the dtype of `x`."""
    wide = x.astype(jnp.float32)
    if spec.norm == "layer":
        wide = wide - wide.mean(-1, keepdims=True)
    variance = jnp.square(wide).mean(-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(variance + spec.norm_eps)
    if spec.norm == "layer":
        return (wide * w["scale"] + w["bias"]).astype(x.dtype)
    if spec.norm == "rms":
        return wide.astype(x.dtype) * w["scale"].astype(x.dtype)
    scale = w["scale"].astype(jnp.float32)
    return (wide * (1 + scale if spec.norm == "rms_plus_one" else scale)).astype(
        x.dtype
    )


@jax.custom_vjp
def turned_product(x: Array, kernel: Array) -> Array:
    """Returns x·kernel; for the kernel's gradient, an operand is turned in memory.

    XLA on CPU multiplies by a transposed view at half the speed, and what it fuses into
    the transposition runs slower still. The narrower operand is turned.
    """
    return x @ kernel


def _turned_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _turned_backward(saved: tuple[Array, Array], d_y: Array) -> tuple[Array, Array]:
    x, kernel = saved
    rows, d_rows = (values.reshape(-1, values.shape[-1]) for values in (x, d_y))
    if rows.shape[1] <= d_rows.shape[1]:
        d_kernel = _turned(rows) @ d_rows
    else:
        d_kernel = (_turned(d_rows) @ rows).T
    return jnp.einsum("...N,DN->...D", d_y, kernel), d_kernel


def _turned(rows: Array) -> Array:
    return jax.lax.optimization_barrier(rows.T)  # an array of its own


turned_product.defvjp(_turned_forward, _turned_backward)


def product(x: Array, kernel: Array) -> Array:
    """Returns x·kernel, [..., D] and [D, N] -> [..., N]; `decoder.REMATS` keeps it."""
    on_cpu = mesh.platform() == "cpu"
    y = turned_product(x, kernel) if on_cpu else x @ kernel
    return checkpoint_name(y, "product")


def linear(w: Tree, x: Array) -> Array:
    """Returns x·kernel (+ the adapter's x·a·b) (+ bias) in the dtype of `x`.

    A tree laid out for decoding has `transposed`, [out, in], in place of `kernel`: for
    a few tokens XLA on CPU is up to twice as fast where the weights lead the product.
    """
    if "transposed" in w:
        y = jnp.einsum("ND,BTD->NBT", w["transposed"].astype(x.dtype), x)
        y = y.transpose(1, 2, 0)
    else:
        y = product(x, w["kernel"].astype(x.dtype))
    if "a" in w:
        y = y + (x @ w["a"].astype(x.dtype)) @ w["b"].astype(x.dtype)
    return y + w["bias"].astype(x.dtype) if "bias" in w else y


def self_attention(
    spec: DecoderSpec, w: Tree, x: Array, context: Context, backend: Backend
) -> tuple[Array, Kept]:
    """Attends within [B, T, D], or to the past; also returns keys and values.

    They are [B, T, K, E], or with a past the [B, K, S, E] that now holds them too.
    """

    def heads(name: str) -> Array:  # [B, T, H or K, E]
        y = linear(w[name], x)
        if spec.qk_norm == "full" and name != "v":
            y = normalise(spec, w[f"{name}_norm"], y)
        y = y.reshape(*y.shape[:2], -1, spec.head_dim)
        if spec.qk_norm == "head" and name != "v":
            y = normalise(spec, w[f"{name}_norm"], y)
        if context.rope is not None and name != "v":
            y = rope_lib.rotate(y, *context.rope, interleaved=spec.rope_interleaved)
        if context.query_scale is not None and name == "q":
            y = y * context.query_scale.astype(y.dtype)
        return y

    kept = Kept(heads("k"), heads("v"))
    attend = functools.partial(attention_lib.attention, backend=backend)
    if context.past is not None:
        kept = cache_lib.put(context.past.kept, kept, context.past.positions)
        attend = attention_lib.over_past
    y = attend(
        heads("q"),
        *kept,
        context.seen,
        scale=spec.attn_scale or spec.head_dim**-0.5,
        softcap=spec.attn_softcap,
    )
    return linear(w["o"], y.reshape(*x.shape[:2], -1)), kept


def mlp(spec: DecoderSpec, w: Tree, x: Array) -> Array:
    """Maps [B, T, D] through the hidden layer and back."""
    act = ACTIVATIONS[spec.activation]
    up = linear(w["up"], x)
    return linear(w["down"], act(linear(w["gate"], x)) * up if spec.gated else act(up))


def mixture(spec: DecoderSpec, w: Tree, x: Array, context: Context) -> Said:
    """Maps [B, T, D] through the experts that each token is sent to."""
    routed = moe.route(spec, w["router"], x)
    y = moe.experts(w["experts"], x, routed, ACTIVATIONS[spec.activation])
    counted = context.counted
    return y, {} if counted is None else moe.report(routed, counted)


def block(
    spec: DecoderSpec,
    w: Tree,
    x: Array,
    context: Context,
    *,
    backend: Backend,
    pin: Map,
) -> tuple[Array, Kept, Reports]:
    """Runs one layer on [B, T, D].

    Args:
      spec: of the decoder.
      w: parameters of this layer.
      x: [B, T, D] residual stream.
      context: mask and angles of this layer.
      backend: from `attention.fitting`; not read with a past.
      pin: applied to the residual stream; where a mesh pins its sharding.

    Returns:
      [B, T, D], the keys and values of `self_attention`, and what a router reports.
    """
    kept, reports = [], {}

    def attend(y: Array) -> Array:  # once in every layout
        y, keys_values = self_attention(spec, w["attn"], y, context, backend)
        kept.append(keys_values)
        return scaled(y)

    def scaled(y: Array) -> Array:
        scale = spec.residual_scale
        return y if scale == 1 else y * jnp.asarray(scale, y.dtype)

    def feed(y: Array) -> Array:  # likewise
        if not spec.experts:
            return scaled(mlp(spec, w["mlp"], y))
        y, told = mixture(spec, w, y, context)
        reports.update(told)
        return scaled(y)

    norm = lambda n, y: normalise(spec, w[f"norm{n}"], y)  # noqa: E731
    x = RESIDUALS[spec.layout](x, attend, feed, norm, pin)
    return x, kept[0], reports


def _pre(x: Array, attend: Map, feed: Map, norm: Callable, pin: Map) -> Array:
    x = pin(x + attend(norm(1, x)))
    return pin(x + feed(norm(2, x)))


def _post(x: Array, attend: Map, feed: Map, norm: Callable, pin: Map) -> Array:
    x = pin(x + norm(1, attend(x)))
    return pin(x + norm(2, feed(x)))


def _sandwich(x: Array, attend: Map, feed: Map, norm: Callable, pin: Map) -> Array:
    x = pin(x + norm(2, attend(norm(1, x))))
    return pin(x + norm(4, feed(norm(3, x))))


def _parallel(x: Array, attend: Map, feed: Map, norm: Callable, pin: Map) -> Array:
    return pin(x + attend(norm(1, x)) + feed(norm(2, x)))


def _parallel_shared(
    x: Array, attend: Map, feed: Map, norm: Callable, pin: Map
) -> Array:
    normed = norm(1, x)
    return pin(x + attend(normed) + feed(normed))


# Keys: spec.LAYOUT_NORMS, which says how many norms each has.
RESIDUALS: dict[str, Callable[[Array, Map, Map, Callable, Map], Array]] = {
    "parallel": _parallel,
    "parallel_shared": _parallel_shared,
    "post": _post,
    "pre": _pre,
    "sandwich": _sandwich,
}

ACTIVATIONS: dict[str, Map] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}
