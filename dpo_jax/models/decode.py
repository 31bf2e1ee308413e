"""The decoder one token at a time: a pass over the prompts, then steps over a cache.

The layer is that of `blocks`, the same as in training; only what it may look at
differs. Nothing is trained here: weights are cast, transposed and split by layer once,
so that a step reads each of them once, as they lie, and copies none. This file knows
nothing of how tokens are picked.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from dpo_jax.models import blocks, cache, lora
from dpo_jax.models.attention import DENSE
from dpo_jax.models.cache import Cache, Kept
from dpo_jax.models.decoder import Decoder, Layer, context_of, layers_of
from dpo_jax.types import Array, Batch, Head, Params

Weights = dict[str, Any]


def ready(module: Decoder, params: Params) -> Weights:
    """Casts weights to the compute dtype, transposes them and splits them by layer.

    Norms and routers stay float32, in which they are computed. This is a second copy of
    the layers, in the compute dtype, whose kernels lie as [out, in] under the name
    `transposed`, but for those of experts.

    Args:
      module: the decoder.
      params: its float32 masters.

    Returns:
      The tree of the parameters, so laid out, `layers` a tuple of L trees.
    """
    assert not module.spec.scalar, "a score continues no text"

    def cast(path: tuple, leaf: Array) -> Array:
        wide = any("norm" in str(key) or "router" in str(key) for key in path)
        return leaf if wide else leaf.astype(module.dtype)

    params = {**params, "layers": lora.spread(params["layers"], module.scales)}
    w = _transpose(jax.tree_util.tree_map_with_path(cast, params))
    layers = w["layers"]
    w["layers"] = tuple(
        jax.tree.map(lambda leaf: leaf[i], layers)  # noqa: B023 (used at once)
        for i in range(module.spec.layers)
    )
    return w


def _transpose(w: Weights) -> Weights:
    """Renames every `kernel` […, in, out] to `transposed` […, out, in]."""
    turned = {}
    for name, node in w.items():
        if name in ("router", "experts"):  # whose products are ragged
            turned[name] = node
        elif name == "kernel":
            turned["transposed"] = node.swapaxes(-1, -2)
        else:
            turned[name] = _transpose(node) if isinstance(node, dict) else node
    return turned


def _head(module: Decoder, w: Weights) -> Head:
    """Returns the head of transposed weights, a view of them."""
    head = {"bias": w["head"]["bias"]} if module.spec.head_bias else {}
    if not module.spec.tie:
        head["kernel"] = w["head"]["transposed"].T
    return module.head(w | {"head": head})


def prefill(
    module: Decoder,
    params: Params,
    batch: Batch,
    lengths: Array,
    *,
    tokens: int,
    dtype: jnp.dtype | None = None,
) -> tuple[Array, Head, Cache]:
    """Runs over whole prompts and keeps their keys and values.

    Args:
      module: the decoder.
      params: its float32 masters.
      batch: one left-aligned document a row.
      lengths: i32[B] tokens of each, ≥ 1.
      tokens: of the longest text that will follow, prompt included.
      dtype: of the cache; None = that of the computation.

    Returns:
      [B, D] hidden states of the last tokens, the head, and the cache.
    """
    chex.assert_rank([batch.tokens, lengths], [2, 1])
    hidden, head, fresh, _ = module.forward(params, batch, keep=lambda kept: kept)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    filled = tuple(
        cache.fill(jax.tree.map(lambda x: x[i], fresh), lengths, slots, dtype)  # noqa: B023
        for i, slots in enumerate(cache.slots_of(module.spec, tokens))
    )
    return last, head, filled


def step(
    module: Decoder, w: Weights, tokens: Array, positions: Array, cached: Cache
) -> tuple[Array, Head, Cache]:
    """Reads one more token of each row.

    Args:
      module: the decoder.
      w: from `ready`.
      tokens: i32[B] ids.
      positions: i32[B] of these tokens.
      cached: keys and values of all tokens before.

    Returns:
      [B, D] hidden states, the head, and the cache with these tokens in it.
    """
    chex.assert_rank([tokens, positions], 1)
    spec, at = module.spec, positions[:, None]

    @jax.jit  # traced and lowered once for all layers whose arrays are alike
    def block(w: Weights, x: Array, layer: Layer, old: Kept, positions: Array):
        seen = cache.held(positions, old.keys.shape[2]) >= 0
        past, at = blocks.Past(old, positions), positions[:, None]
        context = context_of(spec, seen[:, None, None, :], at, layer, past)
        pin = module.constrain  # one query a row: there is nothing to skip
        return blocks.block(spec, w, x, context, backend=DENSE, pin=pin)

    x = module.embed(w, tokens[:, None], at)  # [B, 1, D]
    each, kept = layers_of(spec, module.length or spec.max_positions), []
    for i, old in enumerate(cached):
        layer = jax.tree.map(lambda field: field[i], each)  # noqa: B023 (used at once)
        x, new, _ = block(w["layers"][i], x, layer, old, positions)
        kept.append(new)
    return module.constrain(module.final(w, x))[:, 0], _head(module, w), tuple(kept)
