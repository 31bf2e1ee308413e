"""The decoder: one block, scanned over stacked layers, for every family.

The tree of parameters (float32; a leaf that the spec does not ask for is absent):

    embed/tokens                       [V, D]
    embed/positions                    [max_positions, D]   learned positions only
    layers/norm{1,2,3,4}/{scale,bias}  [L, D]               as the layout numbers them
    layers/attn/q/{kernel,bias}        [L, D, H·E], [L, H·E]
    layers/attn/{k,v}/{kernel,bias}    [L, D, K·E], [L, K·E]
    layers/attn/{q,k}_norm/scale       [L, E]; if `full` [L, H·E], [L, K·E]
    layers/attn/o/{kernel,bias}        [L, H·E, D], [L, D]
    layers/mlp/{gate,up}/{kernel,bias} [L, D, ff], [L, ff]  gate: gated MLPs only
    layers/mlp/down/{kernel,bias}      [L, ff, D], [L, D]
    layers/router/kernel               [L, D, X]            experts: no mlp then
    layers/experts/{gate,up}/kernel    [L, X, D, ff]
    layers/experts/down/kernel         [L, X, ff, D]
    final_norm/{scale,bias}            [D]
    head/kernel                        [D, V]               absent when tied
    head/bias                          [V]
    score/kernel                       [D, 1]               scalar; no head then

Kernels are [in, out]. Beside one may lie an adapter, `a` and `b`, where the tree of
`lora` has it. This file knows nothing of files, meshes or losses.
"""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from dpo_jax.models import attention as attention_lib
from dpo_jax.models import blocks, forest, lora, moe, vocabulary
from dpo_jax.models import rope as rope_lib
from dpo_jax.models.cache import Kept
from dpo_jax.models.spec import LAYOUT_NORMS, DecoderSpec
from dpo_jax.types import Array, Batch, Head, Params, Reports

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


def _norm_leaves(spec: DecoderSpec, path: str, shape: tuple[int, ...]) -> dict:
    """Returns the leaves of a norm under `path`."""
    neutral = 0.0 if spec.norm == "rms_plus_one" else 1.0
    named = {f"{path}/scale": Leaf(shape, 0.0, neutral)}
    if spec.norm == "layer":
        named[f"{path}/bias"] = Leaf(shape, 0.0)
    return named


def _head_leaves(spec: DecoderSpec) -> dict[str, Leaf]:
    """Returns the leaves of what stands on the trunk.

    A score starts with variance 1 / (D + 1).

    Source: arXiv:2009.01325 appendix B.1 (the score).
    """
    if spec.scalar:
        return {"score/kernel": Leaf((spec.width, 1), (spec.width + 1) ** -0.5)}
    named = {}
    if not spec.tie:
        named["head/kernel"] = Leaf((spec.width, spec.rows), INIT_STD)
    if spec.head_bias:
        named["head/bias"] = Leaf((spec.rows,), 0.0)
    return named


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
    }
    up = (width, spec.ff, INIT_STD, spec.mlp_bias)
    mlp = {"up": up, "down": (spec.ff, width, residual_std, spec.mlp_bias)}
    if spec.gated:
        mlp["gate"] = up
    room = "experts" if spec.experts else "mlp"
    linears |= {f"{room}/{name}": sizes for name, sizes in mlp.items()}
    if spec.experts:
        assert spec.gated and not spec.mlp_bias, spec
        linears["router"] = (width, spec.experts, INIT_STD, False)
    named = {"embed/tokens": Leaf((spec.rows, width), INIT_STD)}
    if spec.learned_positions:
        named["embed/positions"] = Leaf((spec.max_positions, width), INIT_STD)
    for name, (fan_in, fan_out, std, bias) in linears.items():
        each = (*lead, spec.experts) if name.startswith("experts/") else lead
        named[f"layers/{name}/kernel"] = Leaf((*each, fan_in, fan_out), std)
        if bias:
            named[f"layers/{name}/bias"] = Leaf((*lead, fan_out), 0.0)
    for n in range(LAYOUT_NORMS[spec.layout]):
        named |= _norm_leaves(spec, f"layers/norm{n + 1}", (*lead, width))
    normed = {"q": query, "k": keys} if spec.qk_norm else {}
    for name, full in normed.items():
        size = full if spec.qk_norm == "full" else spec.head_dim
        named |= _norm_leaves(spec, f"layers/attn/{name}_norm", (*lead, size))
    named |= _norm_leaves(spec, "final_norm", (width,))
    return named | _head_leaves(spec)


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

    ours = leaves(vocabulary.unpadded(spec))
    drawn = {
        path: vocabulary.grown(path, draw(path, leaf), spec)
        for path, leaf in ours.items()
    }
    return traverse_util.unflatten_dict(drawn, sep="/")


def abstract_params(spec: DecoderSpec) -> Params:
    """Returns the tree of `init_params` as `jax.ShapeDtypeStruct`s, at no cost."""
    shape = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32)  # noqa: E731
    shapes = {path: shape(leaf) for path, leaf in leaves(spec).items()}
    return traverse_util.unflatten_dict(shapes, sep="/")


class Layer(NamedTuple):
    """What varies from layer to layer beside the weights; leading axis L if stacked.

    Attributes:
      window: i32[] tokens that a query sees, itself included; 0 = all.
      pairs: f32[pairs] radians per position of each rotary pair.
      magnitude: f32[] that cosines and sines are multiplied by.
    """

    window: Any
    pairs: Any
    magnitude: Any


def layers_of(spec: DecoderSpec, length: int) -> Layer:
    """Returns what each layer of `spec` does, in NumPy, stacked."""
    pairs, magnitude = np.zeros((spec.layers, 0)), np.ones(spec.layers)
    if spec.rope_theta:
        pairs, magnitude = rope_lib.per_layer(spec, length)
    windows = np.asarray(spec.windows or [0] * spec.layers, np.int32)
    return Layer(windows, pairs.astype(np.float32), magnitude.astype(np.float32))


def context_of(
    spec: DecoderSpec,
    seen: Any,
    positions: Array,
    layer: Layer,
    past: blocks.Past | None = None,
) -> blocks.Context:
    """Says what a layer sees of tokens at i32[B, T] positions."""
    if not spec.rope_theta:
        return blocks.Context(seen, None, past)
    rope = rope_lib.table(positions, layer.pairs, layer.magnitude)
    return blocks.Context(seen, rope, past, rope_lib.query_scale(spec, positions))


class Decoder(nn.Module):
    """Maps rows of tokens to hidden states; used functionally, by `apply`.

    Attributes:
      spec: what is computed.
      dtype: compute dtype; float32 masters are cast to it where they are used.
      remat: what the backward pass computes again: `none`; `elementwise`, all but
        matrix products and attention; `block`, all but the input of each block.
      attention: a key of `attention.BACKENDS`, or `auto`, which becomes one of them.
      length: tokens of the longest text of the run, for rope scalings that depend on
        it; 0 = `spec.max_positions`. One length a run: a token's angle never depends on
        its batch.
      shared: whether a document may hold several responses; where none does, and no
        layer has a window, a kernel need not be told the mask.
      constrain: applied to each [B, T, D] of the residual stream; the place where a
        mesh pins its sharding.
      scales: of adapters, where there are any.
    """

    spec: DecoderSpec
    dtype: Any = jnp.float32
    remat: str = "none"
    attention: str = "xla"
    length: int = 0
    shared: bool = True
    constrain: Callable[[Array], Array] = lambda x: x
    scales: lora.Scales = ()

    @nn.compact
    def __call__(self, batch: Batch) -> tuple[Array, Head]:
        """Computes the hidden states of every token of the rows.

        Args:
          batch: `tokens`, `positions`, `docs`, `branches`, i32[B, T] each, are read.

        Returns:
          [B, T, D] after the final norm, and the head; both in the compute dtype. The
          head of a scalar spec is [D, 1].
        """
        hidden, head, *_ = self.forward(self._params(), batch, keep=lambda kept: None)
        return hidden, head

    @nn.nowrap
    def forward(
        self, w: Tree, batch: Batch, *, keep: Callable[[Kept], Any]
    ) -> tuple[Array, Head, Any, Reports]:
        """Computes what `__call__` returns from given parameters.

        Args:
          w: the tree of the module docstring.
          batch: as in `__call__`.
          keep: what is kept of each layer's keys and values.

        Returns:
          Hidden states, the head, what was kept, stacked over the layers, and what the
          routers of experts report: sums of `moe.report`, [L, X], and the tokens that
          they are of; {} without experts.
        """
        chex.assert_rank([batch.tokens, batch.positions, batch.docs, batch.branches], 2)
        x = self.embed(w, batch.tokens, batch.positions)
        layers = lora.spread(w["layers"], self.scales)
        x, kept, reports = self._blocks(layers, self.constrain(x), batch, keep)
        return self.constrain(self.final(w, x)), self.head(w), kept, reports

    @nn.nowrap
    def embed(self, w: Tree, tokens: Array, positions: Array) -> Array:
        """Looks up i32[B, T] ids at i32[B, T] positions: [B, T, D]."""
        x = w["embed"]["tokens"][tokens].astype(self.dtype)
        if self.spec.embed_scale != 1:
            x = x * jnp.asarray(self.spec.embed_scale, self.dtype)
        if self.spec.learned_positions:
            x = x + w["embed"]["positions"][positions].astype(self.dtype)
        return x

    @nn.nowrap
    def final(self, w: Tree, x: Array) -> Array:
        """Normalises the stream for the head, so that no path leaves logits undivided.

        Args:
          w: with `final_norm`.
          x: [B, T, D].
        """
        x = blocks.normalise(self.spec, w["final_norm"], x)
        if self.spec.logit_divisor != 1 and not self.spec.scalar:
            x = x / jnp.asarray(self.spec.logit_divisor, x.dtype)
        return x

    @nn.nowrap
    def head(self, w: Tree) -> Head:
        """Returns the head in the compute dtype."""
        if self.spec.scalar:
            return Head(w["score"]["kernel"].astype(self.dtype), None)
        tied, head = self.spec.tie, w.get("head", {})
        kernel = w["embed"]["tokens"].T if tied else head["kernel"]
        bias = head["bias"].astype(self.dtype) if self.spec.head_bias else None
        vocab = self.spec.vocab if self.spec.rows > self.spec.vocab else 0
        softcap = self.spec.final_softcap
        return Head(kernel.astype(self.dtype), bias, softcap, vocab)

    def _params(self) -> Tree:
        """Declares the tree of the module docstring."""
        start = lambda key, name: init_params(self.spec, key)[name]  # noqa: E731
        names = abstract_params(self.spec)
        return {name: self.param(name, start, name) for name in names}

    @nn.nowrap
    def _blocks(
        self, layers: Tree, x: Array, batch: Batch, keep: Callable[[Kept], Any]
    ) -> tuple[Array, Any, Reports]:
        """Scans the block over the layers.

        What varies from layer to layer is scanned with the weights, so that one layer
        is compiled; what does not is computed once.
        """
        spec, positions = self.spec, batch.positions
        counted = None
        if spec.experts:
            counted = forest.times_read(batch.docs, batch.branches)
        cells = forest.cells_of(batch.docs, batch.branches, positions)
        each = layers_of(spec, self.length or spec.max_positions)
        windowed = bool(each.window.any())
        backend = attention_lib.fitting(
            self.attention,
            tokens=positions.shape[1],
            shared=self.shared,
            windowed=windowed,
            dtype=self.dtype,
            softcap=spec.attn_softcap,
        )

        def context(layer: Layer) -> blocks.Context:
            seen = backend.seen(cells, layer.window if windowed else 0)
            return context_of(spec, seen, positions, layer)._replace(counted=counted)

        alike = all((field == field[:1]).all() for field in each)
        first = Layer(int(each.window[0]), each.pairs[0], each.magnitude[0])
        shared = context(first) if alike else None

        def block(x: Array, xs: tuple[Tree, Layer]) -> tuple[Array, tuple]:
            w, layer = xs
            seen = shared if shared is not None else context(layer)
            pin = self.constrain
            x, kept, told = blocks.block(spec, w, x, seen, backend=backend, pin=pin)
            return x, (keep(kept), told)

        scanned = REMATS[self.remat](block)
        x, (kept, reports) = jax.lax.scan(scanned, x, (layers, each))
        if counted is not None:
            reports |= {moe.TOKENS: counted.sum()}
        return x, kept, reports


def _keep(block: Callable) -> Callable:
    """Keeps every activation of a block."""
    return block


def _keep_products(block: Callable) -> Callable:
    """Keeps what is dear to compute; norms, rotations and activations are cheap."""
    policy = jax.checkpoint_policies.save_only_these_names("product", "attention")
    return jax.checkpoint(block, policy=policy, prevent_cse=False)


def _recompute(block: Callable) -> Callable:
    """Keeps only the input of a block; scanned, so nothing can be merged away."""
    return jax.checkpoint(block, prevent_cse=False)


REMATS: dict[str, Callable[[Callable], Callable]] = {
    "none": _keep,
    "elementwise": _keep_products,
    "block": _recompute,
}
