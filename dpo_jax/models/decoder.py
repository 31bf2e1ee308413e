"""The decoder: one block, scanned over stacked layers, for every family.

The tree of parameters (float32; a leaf that the spec does not ask for is absent):

    embed/tokens                       [V, D]
    embed/positions                    [max_positions, D]   learned positions only
    layers/norm1/{scale,bias}          [L, D]               before the attention
    layers/attn/q/{kernel,bias}        [L, D, H·E], [L, H·E]
    layers/attn/{k,v}/{kernel,bias}    [L, D, K·E], [L, K·E]
    layers/attn/o/{kernel,bias}        [L, H·E, D], [L, D]
    layers/norm2/{scale,bias}          [L, D]               before the MLP
    layers/mlp/{gate,up}/{kernel,bias} [L, D, ff], [L, ff]  gate: gated MLPs only
    layers/mlp/down/{kernel,bias}      [L, ff, D], [L, D]
    final_norm/{scale,bias}            [D]
    head/kernel                        [D, V]               absent when tied

Kernels are [in, out]. This file knows nothing of files, meshes or losses.
"""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import errors
from dpo_jax.models import attention as attention_lib
from dpo_jax.models.spec import DecoderSpec
from dpo_jax.types import Batch, Head, Params

Array = Any
Tree = dict[str, Any]

INIT_STD = 0.02


class Leaf(NamedTuple):
    """The shape of a parameter and how it starts.

    Attributes:
      shape: of the array.
      std: standard deviation of its normal start; 0 = the constant `mean`.
      mean: 1 for the scale of a norm, else 0.
    """

    shape: tuple[int, ...]
    std: float
    mean: float = 0.0


def _norm_leaves(spec: DecoderSpec, path: str, lead: tuple[int, ...]) -> dict:
    """Returns the leaves of a norm under `path`."""
    found = {f"{path}/scale": Leaf((*lead, spec.width), 0.0, 1.0)}
    if spec.norm == "layer":
        found[f"{path}/bias"] = Leaf((*lead, spec.width), 0.0)
    return found


def leaves(spec: DecoderSpec) -> dict[str, Leaf]:
    """Returns every parameter of `spec` by its path."""
    lead, width = (spec.layers,), spec.width
    query, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    residual_std = INIT_STD / (2 * spec.layers) ** 0.5  # two branches a layer
    linears = {
        "attn/q": (width, query, INIT_STD, spec.qkv_bias),
        "attn/k": (width, keys, INIT_STD, spec.qkv_bias),
        "attn/v": (width, keys, INIT_STD, spec.qkv_bias),
        "attn/o": (query, width, residual_std, spec.out_bias),
        "mlp/up": (width, spec.ff, INIT_STD, spec.mlp_bias),
        "mlp/down": (spec.ff, width, residual_std, spec.mlp_bias),
    }
    if spec.gated:
        linears["mlp/gate"] = linears["mlp/up"]
    found = {"embed/tokens": Leaf((spec.vocab, width), INIT_STD)}
    if spec.learned_positions:
        found["embed/positions"] = Leaf((spec.max_positions, width), INIT_STD)
    for name, (fan_in, fan_out, std, bias) in linears.items():
        found[f"layers/{name}/kernel"] = Leaf((*lead, fan_in, fan_out), std)
        if bias:
            found[f"layers/{name}/bias"] = Leaf((*lead, fan_out), 0.0)
    found |= _norm_leaves(spec, "layers/norm1", lead)
    found |= _norm_leaves(spec, "layers/norm2", lead)
    found |= _norm_leaves(spec, "final_norm", ())
    if not spec.tie:
        found["head/kernel"] = Leaf((width, spec.vocab), INIT_STD)
    return found


def nest(flat: dict[str, Any]) -> Tree:
    """Turns {'a/b': leaf} into {'a': {'b': leaf}}."""
    tree: Tree = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def flatten(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """Turns {'a': {'b': leaf}} into {'a/b': leaf}."""
    flat = {}
    for name, node in tree.items():
        path = f"{prefix}{name}"
        flat |= flatten(node, f"{path}/") if isinstance(node, dict) else {path: node}
    return flat


def init_params(spec: DecoderSpec, key: Array) -> Params:
    """Draws parameters to train from scratch.

    Kernels and tables are normal(0.02), the projections back into the residual stream
    smaller by √(2L); biases 0, scales 1. A leaf depends on the key and its path alone.

    Args:
      spec: what to build; static under jit.
      key: PRNG key.

    Returns:
      The float32 tree of the module docstring.

    Source: Radford et al. 2019 (GPT-2), section 2.3, as HF implements it.
    """

    def draw(path: str, leaf: Leaf) -> Array:
        if not leaf.std:
            return jnp.full(leaf.shape, leaf.mean, jnp.float32)
        path_key = jax.random.fold_in(key, zlib.crc32(path.encode()) & 0x7FFFFFFF)
        return leaf.std * jax.random.normal(path_key, leaf.shape, jnp.float32)

    return nest({path: draw(path, leaf) for path, leaf in leaves(spec).items()})


def abstract_params(spec: DecoderSpec) -> Params:
    """Returns the tree of `init_params` as `jax.ShapeDtypeStruct`s, at no cost."""
    shape = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32)  # noqa: E731
    return nest({path: shape(leaf) for path, leaf in leaves(spec).items()})


def rope_frequencies(spec: DecoderSpec) -> np.ndarray:
    """Computes the angular frequencies of the rotary pairs.

    Returns:
      f32[E / 2] radians per position, the fastest first.

    Source: arXiv:2104.09864 eq. 15; `llama3` as Meta's Llama 3.1 code ramps it.
    """
    exponents = np.arange(0, spec.head_dim, 2, dtype=np.float32) / spec.head_dim
    frequencies = (1.0 / np.float32(spec.rope_theta) ** exponents).astype(np.float32)
    scaling = spec.rope_scaling
    if scaling is None:
        return frequencies
    stretched = frequencies / np.float32(scaling.factor)
    if scaling.kind == "linear":
        return stretched
    assert scaling.kind == "llama3", scaling.kind
    turns = scaling.original_max_positions * frequencies / (2 * np.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return ((1 - keep) * stretched + keep * frequencies).astype(np.float32)


def rope_table(spec: DecoderSpec, positions: Array, dtype: Any) -> tuple[Array, Array]:
    """Returns cos and sin of each angle, [B, T, 1, E / 2] each, computed in float32."""
    angles = positions.astype(jnp.float32)[..., None] * rope_frequencies(spec)
    angles = angles[:, :, None, :]  # [B, T, 1, E / 2]
    return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Turns the pairs (i, i + E/2) of [B, T, H, E] by their angles."""
    first, second = jnp.split(x, 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=-1)


def normalise(spec: DecoderSpec, w: Tree, x: Array) -> Array:
    """Normalises [B, T, D] in float32 and returns it in the dtype of `x`."""
    wide = x.astype(jnp.float32)
    if spec.norm == "layer":
        wide = wide - wide.mean(-1, keepdims=True)
    variance = jnp.square(wide).mean(-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(variance + spec.norm_eps)
    if spec.norm == "layer":
        return (wide * w["scale"] + w["bias"]).astype(x.dtype)
    return wide.astype(x.dtype) * w["scale"].astype(x.dtype)


def linear(w: Tree, x: Array) -> Array:
    """Returns x·kernel (+ bias) in the dtype of `x`."""
    y = x @ w["kernel"].astype(x.dtype)
    return y + w["bias"].astype(x.dtype) if "bias" in w else y


def self_attention(
    spec: DecoderSpec, w: Tree, x: Array, mask: Array, rope: Any, backend: str
) -> Array:
    """Attends within [B, T, D]."""
    heads = lambda y: y.reshape(*y.shape[:2], -1, spec.head_dim)  # noqa: E731
    q, k, v = (heads(linear(w[name], x)) for name in "qkv")  # [B, T, H or K, E]
    if rope is not None:
        q, k = rotate(q, *rope), rotate(k, *rope)
    scale = spec.head_dim**-0.5
    y = attention_lib.attention(q, k, v, mask, scale=scale, backend=backend)
    return linear(w["o"], y.reshape(*x.shape[:2], -1))


def mlp(spec: DecoderSpec, w: Tree, x: Array) -> Array:
    """Maps [B, T, D] through the hidden layer and back."""
    act = ACTIVATIONS[spec.activation]
    up = linear(w["up"], x)
    return linear(w["down"], act(linear(w["gate"], x)) * up if spec.gated else act(up))


class Decoder(nn.Module):
    """Maps rows of tokens to hidden states; used functionally, by `apply`.

    Attributes:
      spec: what is computed.
      dtype: compute dtype; float32 masters are cast to it where they are used.
      remat: `none` keeps every activation; `block` keeps only the input of each block
        and computes the rest again in the backward pass.
      attention: a key of `attention.BACKENDS`.
      constrain: applied to each [B, T, D] of the residual stream; the place where a
        mesh pins its sharding.
    """

    spec: DecoderSpec
    dtype: Any = jnp.float32
    remat: str = "none"
    attention: str = "xla"
    constrain: Callable[[Array], Array] = lambda x: x

    def __post_init__(self):
        """Refuses unknown options before anything is traced."""
        with errors.collected(errors.ConfigError) as complaints:
            if self.remat not in REMATS:
                complaints.append(errors.unknown("model.remat", self.remat, REMATS))
            if self.attention not in attention_lib.BACKENDS:
                known = attention_lib.BACKENDS
                complaints.append(
                    errors.unknown("model.attention", self.attention, known)
                )
        super().__post_init__()

    @nn.compact
    def __call__(self, batch: Batch) -> tuple[Array, Head]:
        """Computes the hidden states of every token of the rows.

        Args:
          batch: `tokens`, `positions`, `docs`, `branches`, i32[B, T] each, are read.

        Returns:
          [B, T, D] after the final norm, and the head; both in the compute dtype.
        """
        chex.assert_rank([batch.tokens, batch.positions, batch.docs, batch.branches], 2)
        w = self._params()
        x = w["embed"]["tokens"][batch.tokens].astype(self.dtype)  # [B, T, D]
        if self.spec.learned_positions:
            x = x + w["embed"]["positions"][batch.positions].astype(self.dtype)
        x = self._blocks(w["layers"], self.constrain(x), batch)
        x = normalise(self.spec, w["final_norm"], x)
        tied = self.spec.tie
        kernel = w["embed"]["tokens"].T if tied else w["head"]["kernel"]
        return self.constrain(x), Head(kernel.astype(self.dtype), None)

    def _params(self) -> Tree:
        """Declares the tree of the module docstring."""
        start = lambda key, name: init_params(self.spec, key)[name]  # noqa: E731
        names = abstract_params(self.spec)
        return {name: self.param(name, start, name) for name in names}

    def _blocks(self, layers: Tree, x: Array, batch: Batch) -> Array:
        """Scans the block over the layers."""
        spec = self.spec
        mask = attention_lib.forest_mask(
            batch.docs, batch.branches, batch.positions, window=0
        )
        rope = None
        if spec.rope_theta:
            rope = rope_table(spec, batch.positions, self.dtype)

        def block(x: Array, w: Tree) -> tuple[Array, None]:
            h = normalise(spec, w["norm1"], x)
            x = x + self_attention(spec, w["attn"], h, mask, rope, self.attention)
            x = self.constrain(x)
            x = x + mlp(spec, w["mlp"], normalise(spec, w["norm2"], x))
            return self.constrain(x), None

        return jax.lax.scan(REMATS[self.remat](block), x, layers)[0]


def _keep(block: Callable) -> Callable:
    """Keeps every activation of a block."""
    return block


def _recompute(block: Callable) -> Callable:
    """Keeps only the input of a block; scanned, so nothing can be merged away."""
    return jax.checkpoint(block, prevent_cse=False)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}

REMATS: dict[str, Callable[[Callable], Callable]] = {
    "none": _keep,
    "block": _recompute,
}
