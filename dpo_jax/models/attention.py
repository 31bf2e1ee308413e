"""Attention over token forests: one function, and the backends that compute it.

Who sees whom is the rule of `forest`; a backend turns it into what it reads (a mask, or
the rule's own fields) and averages values by it. This file knows nothing of parameters,
families or data.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from absl import logging
from jax.ad_checkpoint import checkpoint_name

from dpo_jax import errors
from dpo_jax.models import blockwise, forest, splash
from dpo_jax.models.forest import Cells
from dpo_jax.sharding import mesh
from dpo_jax.types import Array

WIDE = jnp.float32  # of logits and their softmax
HALF = (jnp.bfloat16, jnp.float16)  # what cuDNN's attention computes in
MOST_CUDNN_FEATURES = 256  # of a head; older GPUs than Hopper stop at 128
AUTO = "auto"
SHORT_ROW = 2 * blockwise.BLOCK  # tokens; what blocks save up to here, compiling costs


def _mask(cells: Cells, window: int | Array) -> Array:
    """Says which key each query of a row sees: bool[B, 1, T, T], queries first."""
    query = jax.tree.map(lambda x: x[:, None, :, None], cells)
    key = jax.tree.map(lambda x: x[:, None, None, :], cells)
    return forest.visible(query, key, window)


def _dense(
    q: Array, k: Array, v: Array, mask: Array, scale: float, softcap: float
) -> Array:
    """Holds all scores; a query that sees nothing gets a finite average."""
    chex.assert_rank(mask, 4)
    if softcap:
        return _dense_capped(q, k, v, mask, scale, softcap)
    out = jax.nn.dot_product_attention(
        q, k, v, mask=mask, scale=scale, implementation="xla"
    )
    return checkpoint_name(out, "attention")


def _dense_capped(
    q: Array, k: Array, v: Array, mask: Array, scale: float, softcap: float
) -> Array:
    """Cuts the logits to ±softcap before the mask, as Gemma 2 does.

    Source: arXiv:2408.00118 section 2.
    """
    grouped = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[3])  # [B, T, K, H / K, E]
    logits = jnp.einsum("BTKGE,BSKE->BKGTS", grouped, k, preferred_element_type=WIDE)
    logits = softcap * jnp.tanh(scale * logits / softcap)
    logits = jnp.where(mask[:, :, None], logits, jnp.finfo(WIDE).min / 2)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    out = jnp.einsum("BKGTS,BSKE->BTKGE", weights, v).reshape(q.shape)
    return checkpoint_name(out, "attention")


def _cudnn(
    q: Array, k: Array, v: Array, mask: Array, scale: float, softcap: float
) -> Array:
    """Runs cuDNN's fused kernel, which holds the mask but no scores.

    Nobody sees a later token of its row, so half of the blocks are skipped.
    """
    assert not softcap  # `check` refuses it, `auto` does not pick it
    out = jax.nn.dot_product_attention(
        q, k, v, mask=mask, scale=scale, is_causal=True, implementation="cudnn"
    )
    return checkpoint_name(out, "attention")


def _xla(
    q: Array,
    k: Array,
    v: Array,
    seen: tuple[Cells, Array],
    scale: float,
    softcap: float,
) -> Array:
    """Computes the blocks that hold a visible key; a query that sees none gets 0."""
    return blockwise.attend(blockwise.Blocking(scale, softcap), q, k, v, *seen)


class Backend(NamedTuple):
    """How attention is computed.

    Attributes:
      seen: turns the cells of rows and a window into what `attend` reads.
      attend: (q, k, v, seen, scale, softcap) -> averages; see `attention`.
    """

    seen: Callable[[Cells, int | Array], Any]
    attend: Callable[[Array, Array, Array, Any, float, float], Array]


def resolve(name: str, *, dtype: Any, softcap: float = 0.0) -> str:
    """Returns the backend of `model.attention`: itself, or what `auto` picks.

    That goes by the devices of the mesh in `jax.set_mesh`, if there is one.

    Args:
      name: a key of `BACKENDS`, or `auto`.
      dtype: of queries, keys and values.
      softcap: of the logits; 0 = off.
    """
    if name != AUTO:
        return name
    return _picked(mesh.platform(), jnp.dtype(dtype), softcap)


@functools.cache
def _picked(platform: str, dtype: Any, softcap: float) -> str:
    """Picks the fastest backend of a platform that can do it, and says so once."""
    name = BY_PLATFORM.get(platform, "xla")
    if name == "cudnn" and (softcap or dtype not in HALF):
        name = "xla"
    logging.info("model.attention=auto picks %r on %s", name, platform)
    return name


def check(
    name: str, platform: str, *, dtype: Any, head_dim: int, softcap: float = 0.0
) -> None:
    """Refuses a kernel, or a dtype, where it cannot run.

    Args:
      name: `model.attention`.
      platform: of the devices that will run it.
      dtype: of queries, keys and values.
      head_dim: features of a head.
      softcap: of the logits; 0 = off.

    Raises:
      ConfigError: if they are of another kind, or the kernel does not do that.
    """
    if platform == "cpu" and jnp.dtype(dtype) == jnp.float16:
        raise errors.ConfigError(
            "model.dtype='float16' has no matrix products on CPUs; use 'bfloat16' or "
            "'float32'"
        )
    home = {"splash": ("tpu", "TPUs"), "cudnn": ("gpu", "NVIDIA GPUs")}.get(name)
    if home is None:
        return
    complaints = []
    if platform != home[0]:
        complaints.append(
            f"is a kernel for {home[1]}, and these devices are {platform}"
        )
    if name == "cudnn":
        if jnp.dtype(dtype) not in HALF:
            kept = jnp.dtype(dtype).name
            complaints.append(f"computes in bfloat16 or float16, and not in {kept}")
        if softcap:
            complaints.append(
                f"does not cap logits, and this model does, at {softcap:g}"
            )
        if head_dim % 8 or head_dim > MOST_CUDNN_FEATURES:
            complaints.append(
                f"takes heads of 8, 16, …, {MOST_CUDNN_FEATURES} features, and these "
                f"have {head_dim}"
            )
    if complaints:
        raise errors.ConfigError(
            f"model.attention={name!r} {'; it '.join(complaints)}; use 'auto' or 'xla'"
        )


def fitting(
    name: str,
    *,
    tokens: int,
    shared: bool,
    windowed: bool,
    dtype: Any = WIDE,
    softcap: float = 0.0,
) -> Backend:
    """Returns the backend that runs rows of one kind, on the devices in `jax.set_mesh`.

    Args:
      name: a key of `BACKENDS`, or `auto`.
      tokens: T. Of a short row `auto` and `xla` compute all scores at once: that
        compiles in half the time, and there is little to skip. A kernel that was asked
        for by its name runs rows of any length.
      shared: whether a document may hold several responses.
      windowed: whether a layer has a window. Without one, and with nothing shared,
        attention is causal within documents and nothing else.
      dtype: of queries, keys and values.
      softcap: of the logits; 0 = off.
    """
    if tokens <= SHORT_ROW and name in (AUTO, "xla"):
        return DENSE
    picked = resolve(name, dtype=dtype, softcap=softcap)
    plain = not (shared or windowed)
    return BY_DOCUMENTS if picked == "splash" and plain else BACKENDS[picked]


def attention(
    q: Array,
    k: Array,
    v: Array,
    seen: Any,
    *,
    scale: float,
    softcap: float = 0.0,
    backend: Backend,
) -> Array:
    """Averages values with softmax(scale·q·k) over the visible keys.

    Args:
      q: [B, T, H, E] queries.
      k: [B, S, K, E] keys; query head h reads kv head h // (H / K).
      v: [B, S, K, E] values.
      seen: who sees whom, as the backend's own `seen` makes it; for `dense` a mask
        bool[B, 1, T, S], True = visible. S = T for the others.
      scale: multiplies the logits, which with their softmax are float32.
      softcap: logits are cut to softcap·tanh(logits / softcap); 0 = off.
      backend: from `fitting`, or `DENSE`.

    Returns:
      [B, T, H, E] in the dtype of `q`; finite, as are its gradients, where a query sees
      nothing.
    """
    chex.assert_rank([q, k, v], 4)
    return backend.attend(q, k, v, seen, scale, softcap)


def over_past(
    q: Array,
    keys: Array,
    values: Array,
    seen: Array,
    *,
    scale: float,
    softcap: float = 0.0,
) -> Array:
    """Averages values over what a layer kept, for one query a row.

    As `attention` by `DENSE`, but keys and values are read as they lie in the cache,
    and without an axis of queries: XLA on CPU takes half the time.

    Args:
      q: [B, 1, H, E] queries.
      keys: [B, K, S, E], of a dtype of its own.
      values: [B, K, S, E] likewise.
      seen: bool[B, 1, 1, S], True = visible; of some key.
      scale: as for `attention`.
      softcap: likewise.

    Returns:
      [B, 1, H, E] in the dtype of `q`.
    """
    chex.assert_shape(q, (None, 1, None, None))
    grouped = q.reshape(len(q), keys.shape[1], -1, q.shape[3])  # [B, K, H / K, E]
    keys, values = keys.astype(q.dtype), values.astype(q.dtype)
    logits = jnp.einsum("BKGE,BKSE->BKGS", grouped, keys, preferred_element_type=WIDE)
    logits = scale * logits
    if softcap:
        logits = softcap * jnp.tanh(logits / softcap)
    logits = jnp.where(seen, logits, jnp.finfo(WIDE).min / 2)
    weights = jax.nn.softmax(logits, axis=-1).astype(q.dtype)
    return jnp.einsum("BKGS,BKSE->BKGE", weights, values).reshape(q.shape)


def _documents(cells: Cells, window: int | Array) -> Array:
    """Keeps i32[B, T] documents, which is all where attention is plain."""
    assert isinstance(window, int) and not window
    return cells.docs


DENSE = Backend(_mask, _dense)
BY_DOCUMENTS = Backend(_documents, splash.by_documents)

BACKENDS: dict[str, Backend] = {
    "cudnn": Backend(_mask, _cudnn),
    "dense": DENSE,
    "splash": Backend(_mask, splash.by_mask),
    # the fields of the rule as they are: T numbers, not T²
    "xla": Backend(lambda cells, w: (cells, jnp.asarray(w, jnp.int32)), _xla),
}

BY_PLATFORM = {"cpu": "xla", "gpu": "cudnn", "tpu": "splash"}

WHOLE_ROWS = ("cudnn", "dense")  # their cost grows with the square of a row
