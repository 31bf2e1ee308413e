"""Attention by the Pallas kernel that jax ships for TPUs.

Where documents hold one response each, the mask is causal within a document, which the
kernel knows as segments; shared prefixes and windows of positions need the mask itself,
as an array. Blocks without a visible key are skipped either way. This file knows
nothing of parameters.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernels,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
)
from jax.sharding import PartitionSpec as P

from dpo_jax.sharding.arrays import ROW_AXES
from dpo_jax.types import Array

BLOCK = 128  # tokens, of queries and of keys; the kernel's lanes
SIZES = kernels.BlockSizes(
    block_q=BLOCK,
    block_kv=BLOCK,
    block_q_dkv=BLOCK,
    block_kv_dkv=BLOCK,
    block_q_dq=BLOCK,
    block_kv_dq=BLOCK,
)
HEAD_AXIS = "tensor"


def by_documents(
    q: Array,
    k: Array,
    v: Array,
    docs: Array,
    scale: float,
    softcap: float,
    interpret: bool = False,
) -> Array:
    """Attends causally within documents; padding is a document like any other.

    Args:
      q: [B, T, H, E] queries.
      k: [B, T, K, E] keys; query head h reads kv head h // (H / K).
      v: [B, T, K, E] values.
      docs: i32[B, T] document of each token; 0 = padding.
      scale: multiplies the queries in float32, before they are rounded again.
      softcap: logits are cut to softcap·tanh(logits / softcap); 0 = off.
      interpret: whether the kernel is only imitated, which runs anywhere.

    Returns:
      [B, T, H, E] in the dtype of `q`.
    """

    def one(q: Array, k: Array, v: Array, docs: Array) -> Array:
        heads, length = q.shape[1:3]
        mask = masks.MultiHeadMask([masks.CausalMask((length, length))] * heads)
        run = _kernel(mask, softcap, interpret)
        segments = kernels.SegmentIds(docs, docs)
        return jax.vmap(lambda q, k, v: run(q, k, v, segment_ids=segments))(q, k, v)

    return _on_rows(one, q, k, v, docs, scale)


def by_mask(
    q: Array,
    k: Array,
    v: Array,
    mask: Array,
    scale: float,
    softcap: float,
    interpret: bool = False,
) -> Array:
    """Attends to what a mask bool[B, 1, T, T] shows, else as `by_documents`.

    Every token sees itself here, padding too: the kernel divides by what is seen.
    """

    def one(q: Array, k: Array, v: Array, mask: Array) -> Array:
        heads, length = q.shape[1:3]
        mask = mask[:, :length] | jnp.eye(length, dtype=bool)
        mask = jnp.broadcast_to(mask, (heads, length, length))
        run = _dynamic(_kernel(mask, softcap, interpret))
        return jax.vmap(run)(q, k, v)

    columns = ((0, 0), (0, 0), (0, -mask.shape[-1] % BLOCK))
    return _on_rows(one, q, k, v, jnp.pad(mask[:, 0], columns), scale)


def _kernel(mask: Any, softcap: float, interpret: bool) -> Any:
    """Makes the kernel of a kv head: [H / K, T, E] and twice [T, E] -> as the first."""
    return kernels.make_splash_mqa(
        mask,
        block_sizes=SIZES,
        attn_logits_soft_cap=softcap or None,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name="attention",  # `decoder.REMATS` keeps it
        interpret=interpret,
    )


def _dynamic(kernel: Any) -> Any:
    """Says of a kernel's mask that it is data.

    jax makes an array of this flag where it makes arrays of the mask's blocks, and
    under jit then cannot read it (in 0.10.2 and in 0.12.0.1).
    """
    parts = kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info
    parts = (part._replace(is_dynamic_mask=True) for part in parts)
    return kernels.SplashAttentionKernel(*parts, **kernel.kwargs)


def _on_rows(
    one: Callable, q: Array, k: Array, v: Array, seen: Array, scale: float
) -> Array:
    """Runs `one` on every row, each device on its own rows and heads.

    Rows are padded to whole blocks. `one` maps [K, H / K, T, E], [K, T, E] twice, and
    what is seen to averages in the shape of the first. The compiler cannot split a
    kernel over a mesh, so all axes are split here.
    """
    (rows, length, _, width), kv_heads = q.shape, k.shape[2]
    q = (q.astype(jnp.float32) * scale).astype(q.dtype)
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1
    for axis in ROW_AXES:
        shards *= mesh.shape.get(axis, 1)

    def fit(x: Array) -> Array:
        sides = ((0, -rows % shards), (0, -length % BLOCK))
        return jnp.pad(x, sides + ((0, 0),) * (x.ndim - 2))

    def run(q: Array, k: Array, v: Array, seen: Array) -> Array:
        k, v = (x.transpose(0, 2, 1, 3) for x in (k, v))  # [B, K, T, E]
        q = q.transpose(0, 2, 1, 3).reshape(len(q), k.shape[1], -1, *k.shape[2:])
        out = jax.vmap(one)(q, k, v, seen)
        return out.reshape(len(q), -1, *k.shape[2:]).transpose(0, 2, 1, 3)

    if mesh.size > 1:
        row = tuple(axis for axis in ROW_AXES if axis in mesh.axis_names)
        split = HEAD_AXIS in mesh.axis_names and kv_heads % mesh.shape[HEAD_AXIS] == 0
        heads = P(row, None, HEAD_AXIS if split else None)
        run = jax.shard_map(
            run,
            in_specs=(heads, heads, heads, P(row)),
            out_specs=heads,
            check_vma=False,
        )
    assert width == k.shape[3]
    return run(*map(fit, (q, k, v, seen)))[:rows, :length]
