"""Where each array lies: a table of (regex, spec); the first match wins.

Paths are keys joined by `/`. Parameters split over `fsdp` along their input width and
over `tensor` along heads, hidden units or vocabulary; the optimizer's moments follow
their parameter, because a rule matches anywhere in the path.
"""

import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dpo_jax.errors import DeviceError

Rules = Sequence[tuple[str, P]]

PARAM_RULES: Rules = (
    (r"embed/tokens$", P("tensor", "fsdp")),
    (r"embed/positions$", P(None, "fsdp")),
    (r"(attn/[qkv]|mlp/(gate|up))/kernel$", P(None, "fsdp", "tensor")),
    (r"(attn/o|mlp/down)/kernel$", P(None, "tensor", "fsdp")),
    (r"(attn/[qkv]|mlp/(gate|up))/bias$", P(None, "tensor")),
    (r"(attn/o|mlp/down)/bias$", P()),
    (r"router/kernel$", P(None, "fsdp")),
    # experts lie over `tensor`, each whole but for fsdp
    (r"experts/(gate|up)/kernel$", P(None, "tensor", "fsdp")),
    (r"experts/down/kernel$", P(None, "tensor", None, "fsdp")),
    (r"norm\w*/(scale|bias)$", P()),
    (r"head/kernel$", P("fsdp", "tensor")),
    (r"head/bias$", P("tensor")),
    (r"(score|value)/kernel$", P("fsdp", None)),
    (r"lora/(attn/(q|k|v|qkv)|mlp/(gate|up|gate_up))/a$", P(None, "fsdp")),
    (r"lora/(attn/[qkv]|mlp/(gate|up))/b$", P(None, None, "tensor")),
    (r"lora/(attn/o|mlp/down)/a$", P(None, "tensor")),
    (r"lora/(attn/o|mlp/down)/b$", P(None, None, "fsdp")),
    (r"lora/(attn/qkv|mlp/gate_up)/b$", P()),
)
STATE_RULES: Rules = (
    *PARAM_RULES,
    (r"(^|/)(step|key|count)$", P()),
    (r"(^|/)stats/", P()),
    (r"opt_state/", P()),
)


def path_name(path: Sequence[object]) -> str:
    """Joins the keys of a pytree path by `/`."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def rule_of(name: str, rules: Rules) -> tuple[str, P]:
    """Returns what the first rule that matches does match, and its spec.

    Raises:
      DeviceError: if none does.
    """
    for pattern, spec in rules:
        match = re.search(pattern, name)
        if match is not None:
            return match.group(), spec
    raise DeviceError(
        f"no sharding rule matches {name!r}; add one to sharding/rules.py"
    )


def fitting(spec: P, shape: Sequence[int], mesh: Mesh) -> P:
    """Drops the axes that do not divide a dimension, so odd sizes are replicated."""

    def keep(size: int, axes: object) -> object:
        names = axes if isinstance(axes, tuple) else (axes,)
        parts = math.prod(mesh.shape[name] for name in names if name)
        return axes if size % parts == 0 else None

    if len(spec) > len(shape):
        return P()
    return P(*(keep(n, axes) for n, axes in zip(shape, spec, strict=False)))


def place(name: str, shape: Sequence[int], mesh: Mesh, rules: Rules) -> NamedSharding:
    """Gives one array its sharding, and logs the axes that its rule loses.

    Raises:
      DeviceError: if no rule matches its name.
    """
    leaf, spec = rule_of(name, rules)
    fits = fitting(spec, shape, mesh)
    for size, axes, kept in zip(shape, spec, fits, strict=False):
        if axes != kept:
            _tell_dropped(leaf, size, str(axes), str(dict(mesh.shape)))
    return NamedSharding(mesh, fits)


@functools.cache  # once for a parameter, its moments and its copies
def _tell_dropped(leaf: str, size: int, axes: str, mesh: str) -> None:
    if jax.process_index() == 0:
        logging.warning(
            "sharding: %s does not divide the %d of %s, which is not split over it: %s",
            axes,
            size,
            leaf,
            mesh,
        )


def shardings(abstract: Any, mesh: Mesh, rules: Rules) -> Any:
    """Gives every leaf its sharding.

    Args:
      abstract: pytree of arrays or `jax.ShapeDtypeStruct`s.
      mesh: from `make_mesh`.
      rules: (regex, spec) in order of precedence.

    Returns:
      The same tree of `NamedSharding`s.

    Raises:
      DeviceError: naming a leaf that no rule matches.
    """

    def one(path: Sequence[object], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        return place(path_name(path), leaf.shape, mesh, rules)

    return jax.tree_util.tree_map_with_path(one, abstract)


def with_shardings(abstract: Any, places: Any) -> Any:
    """Writes shardings into a tree of `jax.ShapeDtypeStruct`s."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=place
        ),
        abstract,
        places,
    )
