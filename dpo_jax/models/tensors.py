"""The way between HF tensors and our tree: operations, and the rows of a spec.

A row of a family's table names a tensor, our paths and an operation. Every operation is
invertible and can read a slice, so import and export are one table and a host reads
only what its devices hold. This file opens nothing.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from dpo_jax.models import decoder
from dpo_jax.models.families import FAMILIES
from dpo_jax.models.files import Shape
from dpo_jax.models.spec import DecoderSpec, Row

Index = tuple[slice, ...]


class Op(NamedTuple):
    """A way between one HF tensor and our parts of it.

    Attributes:
      shape: shapes of our parts -> shape of the HF tensor.
      read: (HF slices, index into our part, which part, shapes of the parts) -> our
        part at the index.
      join: our parts -> the HF tensor.
    """

    shape: Callable[[list[Shape]], Shape]
    read: Callable[[Any, Index, int, list[Shape]], np.ndarray]
    join: Callable[[list[np.ndarray]], np.ndarray]


def rows_of(spec: DecoderSpec, present: Iterable[str] = ()) -> list[Row]:
    """Returns the rows of the family's table that `spec` has.

    Args:
      spec: whose tensors.
      present: names in a checkpoint; where none has the family's optional prefix, the
        rows come without it.
    """
    family, present = FAMILIES[spec.model_type], list(present)
    ours, prefix = decoder.leaves(spec), family.optional_prefix
    rows = [row for row in family.table if row.paths[0] in ours]
    if present and prefix and not any(name.startswith(prefix) for name in present):
        rows = [row._replace(name=row.name.removeprefix(prefix)) for row in rows]
    return rows


def names_of(row: Row, spec: DecoderSpec) -> list[str]:
    """Returns the HF names of a row, one for each layer if it has layers."""
    stacked = range(spec.layers) if "{i}" in row.name else range(1)
    return [row.name.replace("{i}", str(i)) for i in stacked]


def part_shapes(row: Row, spec: DecoderSpec) -> list[Shape]:
    """Returns the shapes of a row's parts, without the axis of layers."""
    ours = decoder.leaves(spec)
    return [ours[path].shape["{i}" in row.name :] for path in row.paths]


def folded(names: Iterable[str]) -> str:
    """Lists names, those that differ only in the layer as one with all its layers."""
    groups: dict[str, list[str]] = {}
    for name in names:
        layer = re.search(r"(?<=\.)\d+(?=\.)", name)
        key = re.sub(r"(?<=\.)\d+(?=\.)", "{}", name, count=1)
        groups.setdefault(key, []).append(layer[0] if layer else "")
    return ", ".join(
        key.replace("{}", layers[0] if len(layers) == 1 else f"{{{','.join(layers)}}}")
        for key, layers in groups.items()
    )


def _shifted(index: Index, part: int, shapes: list[Shape]) -> Index:
    """Moves the last axis of an index past the parts before `part`."""
    offset = sum(shape[-1] for shape in shapes[:part])
    last = index[-1]
    return (*index[:-1], slice(last.start + offset, last.stop + offset))


OPS: dict[str, Op] = {
    "id": Op(
        shape=lambda shapes: shapes[0],
        read=lambda hf, index, part, shapes: hf[index],
        join=lambda parts: parts[0],
    ),
    # nn.Linear keeps [out, in]
    "T": Op(
        shape=lambda shapes: shapes[0][::-1],
        read=lambda hf, index, part, shapes: hf[index[::-1]].T,
        join=lambda parts: parts[0].T,
    ),
    # GPT-2's Conv1D keeps [in, q|k|v], its bias [q|k|v]
    "qkv_cols": Op(
        shape=lambda shapes: (*shapes[0][:-1], sum(shape[-1] for shape in shapes)),
        read=lambda hf, index, part, shapes: hf[_shifted(index, part, shapes)],
        join=lambda parts: np.concatenate(parts, axis=-1),
    ),
}
