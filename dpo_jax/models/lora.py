"""Adapters (LoRA): two thin matrices beside a kernel, which stands still.

y = x·W + s·(x·A)·B with A [D, r], B [r, out] and s = α/r, or α/√r (rsLoRA). Of linear
maps that a family's files keep as one (`FUSED`), A is shared and B has the columns of
all, as peft trains them.

The tree of adapters (float32), like `layers` of the decoder:

    attn/{q,k,v,o,qkv}/{a,b}    [L, D, r], [L, r, out]
    mlp/{gate,up,down,gate_up}/{a,b}

This file knows no files and no names of others.

Source: arXiv:2106.09685 (LoRA), arXiv:2312.03732 (rsLoRA).
"""

import dataclasses
import itertools
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from dpo_jax.types import Array, Params

Tree = dict[str, Any]
Scales = tuple[tuple[str, float], ...]  # (name of a site, s) each

FUSED = {  # name -> the maps side by side in it
    "attn/qkv": ("attn/q", "attn/k", "attn/v"),
    "mlp/gate_up": ("mlp/gate", "mlp/up"),
}
INITS = ("b_zero", "a_zero")


@dataclasses.dataclass(frozen=True)
class Site:
    """A linear map of each layer that may have an adapter.

    Attributes:
      name: ours, `attn/q`, or of several that the family's files fuse, of `FUSED`.
      module: the family's name, `{i}` for the layer.
      op: how its weight lies on disk, of `tensors.OPS`.
      fan_in: features that come in.
      fan_outs: features that go out of each part.
      rank: of its adapter; 0 = it has none.
      alpha: of its adapter.
    """

    name: str
    module: str
    op: str
    fan_in: int
    fan_outs: tuple[int, ...]
    rank: int = 0
    alpha: float = 0.0

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the kernels that it acts beside."""
        return FUSED.get(self.name, (self.name,))


@dataclasses.dataclass(frozen=True)
class Adapters:
    """Which maps of a decoder have adapters, how strong, and how they start.

    Attributes:
      sites: with adapters.
      layers: of the decoder.
      rslora: whether they act by α/√r, not α/r.
      init: `b_zero`: A starts uniform in ±1/√D (as in peft), B at 0; or `a_zero`: B
        uniform in ±1/√r, A at 0.
      folder: that they are read from instead; None = they are fresh.
    """

    sites: tuple[Site, ...]
    layers: int
    rslora: bool = False
    init: str = "b_zero"
    folder: Path | None = None

    @property
    def scales(self) -> Scales:
        """By what the product of each pair is multiplied."""
        root = 0.5 if self.rslora else 1.0
        return tuple((site.name, site.alpha / site.rank**root) for site in self.sites)

    @property
    def said(self) -> str:
        """What a card tells of them: rank, alpha, the family's names of the maps."""
        named: dict[tuple[int, float], list[str]] = {}
        for site in self.sites:
            module = site.module.rpartition("{i}.")[2]
            named.setdefault((site.rank, site.alpha), []).append(module)
        kind = "rsLoRA" if self.rslora else "LoRA"
        return "; ".join(
            f"{kind} of rank {rank}, alpha {alpha:g}, on {', '.join(modules)}"
            for (rank, alpha), modules in named.items()
        )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each leaf by its path."""
        shapes = {}
        for site in self.sites:
            shapes[f"{site.name}/a"] = (self.layers, site.fan_in, site.rank)
            shapes[f"{site.name}/b"] = (self.layers, site.rank, sum(site.fan_outs))
        return shapes


def abstract(adapters: Adapters) -> Params:
    """Returns the tree of adapters as `jax.ShapeDtypeStruct`s."""
    shape = lambda dims: jax.ShapeDtypeStruct(dims, jnp.float32)  # noqa: E731
    shapes = {path: shape(dims) for path, dims in adapters.shapes.items()}
    return traverse_util.unflatten_dict(shapes, sep="/")


def draw(adapters: Adapters, key: Array) -> Params:
    """Draws fresh adapters, with which a decoder computes what it does without.

    A leaf depends on the key and its path alone.

    Args:
      adapters: static under jit.
      key: PRNG key.
    """
    zero = adapters.init[0]

    def start(path: str, dims: tuple[int, ...]) -> Array:
        if path.endswith(f"/{zero}"):
            return jnp.zeros(dims, jnp.float32)
        path_key = jax.random.fold_in(key, zlib.crc32(path.encode()) & 0x7FFFFFFF)
        bound = dims[1] ** -0.5
        return jax.random.uniform(path_key, dims, jnp.float32, -bound, bound)

    drawn = {path: start(path, dims) for path, dims in adapters.shapes.items()}
    return traverse_util.unflatten_dict(drawn, sep="/")


def spread(layers: Tree, scales: Scales) -> Tree:
    """Gives each kernel its adapter: `a`, and `b` multiplied by the scale.

    Args:
      layers: of a decoder, with `a` and `b` at the sites that have adapters.
      scales: of the sites; those without adapters are left.

    Returns:
      The tree with adapters beside kernels only.
    """
    if not scales:
        return layers
    flat: Any = traverse_util.flatten_dict(layers, sep="/")
    for name, scale in scales:
        if f"{name}/a" not in flat:
            continue
        a, b = flat.pop(f"{name}/a"), flat.pop(f"{name}/b") * scale
        parts = FUSED.get(name, (name,))
        widths = [flat[f"{part}/kernel"].shape[-1] for part in parts]
        bounds = itertools.pairwise([0, *np.cumsum(widths).tolist()])
        for part, (start, stop) in zip(parts, bounds, strict=True):
            flat |= {f"{part}/a": a, f"{part}/b": b[..., start:stop]}
    return traverse_util.unflatten_dict(flat, sep="/")


def merge(params: Params, adapters: Adapters) -> Params:
    """Adds adapters to the kernels beside which they lie: W + s·A·B, in float32.

    Args:
      params: from `roles.whole`; kernels in the dtype that the sums are rounded to,
        once.
      adapters: whose.

    Returns:
      The tree of a decoder without adapters.
    """
    layers = spread(params["layers"], adapters.scales)
    flat: Any = traverse_util.flatten_dict(layers, sep="/")
    for path in [path for path in flat if path.endswith("/a")]:
        node = path.removesuffix("/a")
        a, b, kernel = flat.pop(path), flat.pop(f"{node}/b"), flat[f"{node}/kernel"]
        delta = jnp.einsum("LDr,LrN->LDN", a, b, precision="highest")
        flat[f"{node}/kernel"] = (kernel + delta).astype(kernel.dtype)
    return {**params, "layers": traverse_util.unflatten_dict(flat, sep="/")}
