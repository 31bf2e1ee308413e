"""Counts the FLOPs of a traced program: its matrix products, loops multiplied out.

XLA's own count has a loop's body once. Here a scan counts as often as it runs, a loop
of unknown length as often as the caller says, a branch as the dearer one. The products
inside a kernel are left to the caller, who knows what of the mask it skips. Multiply
and add count apart, as in `throughput`. This room knows no model.
"""

import collections
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

AXES = "newly_manual_axes"  # of a shard_map: its body is what one device does
Trips = Callable[[Any], int]


class Counted(NamedTuple):
    """What a program does, on all devices together.

    Attributes:
      products: FLOPs of matrix products, those of kernels not among them.
      kernels: by its name, elements of a kernel's first array (of attention, the
        queries) in all its calls: `vmap` makes one call of several, or a loop.
    """

    products: float
    kernels: Mapping[str, float]


def counted(jaxpr: Any, *, trips: Trips) -> Counted:
    """Counts a program.

    Args:
      jaxpr: a closed jaxpr, as `jax.make_jaxpr` or `jitted.trace(…).jaxpr` give it.
      trips: equation of a loop that does not say how long it runs -> how long.
    """
    kernels = collections.Counter[str]()
    products = _products(jaxpr.jaxpr, 1.0, trips, kernels)
    return Counted(products, dict(kernels))


def _products(jaxpr: Any, times: float, trips: Trips, kernels: Any) -> float:
    """Adds up the products of a jaxpr that runs so many times."""
    return sum(_of(eqn, times, trips, kernels) for eqn in jaxpr.eqns)


def _of(eqn: Any, times: float, trips: Trips, kernels: Any) -> float:
    name, given = eqn.primitive.name, eqn.params
    if name == "dot_general":
        return times * dot_flops(*(v.aval.shape for v in eqn.invars), **_sizes(given))
    if name.startswith("ragged_dot"):
        return times * _ragged_flops(eqn)
    if name == "pallas_call":
        kernels[_kernel(given)] += times * _elements(eqn)
        return 0.0
    if name == "cond":
        branches = [(collections.Counter(), each) for each in given["branches"]]
        found = [
            (_products(each.jaxpr, times, trips, mine), mine) for mine, each in branches
        ]
        most, mine = max(found, key=lambda each: each[0])
        kernels.update(mine)
        return most
    if name == "scan":
        times *= given["length"]
    elif name == "while":
        times *= trips(eqn)
    elif name == "shard_map":
        times *= math.prod(given["mesh"].shape[axis] for axis in given[AXES])
    inner = jax.tree.leaves(list(given.values()), is_leaf=_has_equations)
    bodies = (each for each in inner if _has_equations(each))
    return sum(
        _products(getattr(body, "jaxpr", body), times, trips, kernels)
        for body in bodies
    )


def _has_equations(value: Any) -> bool:
    return isinstance(value, (core.Jaxpr, core.ClosedJaxpr))


def _sizes(given: Mapping[str, Any]) -> dict[str, Any]:
    (contracted, _), (batched, _) = given["dimension_numbers"]
    return {"contracted": contracted, "batched": batched}


def dot_flops(
    left: tuple[int, ...],
    right: tuple[int, ...],
    *,
    contracted: tuple[int, ...],
    batched: tuple[int, ...],
) -> float:
    """Counts a product: twice the sizes of its result times what is summed over.

    Args:
      left: shape.
      right: shape.
      contracted: axes of `left` that are summed over.
      batched: axes of `left` that both have.
    """
    both = math.prod(left[axis] for axis in (*contracted, *batched))
    return 2.0 * math.prod(left) * (math.prod(right) / both)


def _ragged_flops(eqn: Any) -> float:
    """Counts a product of rows with the matrix of the group that each belongs to.

    Each number of one operand meets all of the result's rows or columns that are not
    its own, in one group alone.
    """
    left, right, out = (v.aval.shape for v in (*eqn.invars[:2], *eqn.outvars))
    return 2.0 * math.prod(left) * (out[-1] if len(out) == 2 else right[-1])


def _elements(eqn: Any) -> float:
    """Counts the elements of the first array of floats that a kernel is given."""
    shapes = (v.aval for v in eqn.invars if jnp.issubdtype(v.aval.dtype, jnp.inexact))
    first = next(shapes, None)
    return 0.0 if first is None else float(math.prod(first.shape))


def _kernel(given: Mapping[str, Any]) -> str:
    found = given.get("name") or given.get("name_and_src_info", "")
    return str(found).split(" ")[0]
