"""The way between HF tensors and our tree: operations, and the rows of a spec.

A row of a family's table names a tensor, our paths and an operation. Every operation is
invertible and can read a slice, so import and export are one table and a host reads
only what its devices hold. This file opens nothing.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from dpo_jax.errors import ModelError
from dpo_jax.models import decoder
from dpo_jax.models.families import FAMILIES
from dpo_jax.models.files import Dims
from dpo_jax.models.spec import DecoderSpec, Row

Index = tuple[slice, ...]
LARGEST = 1e8  # of a weight


class Op(NamedTuple):
    """A way between one HF tensor and our parts of it.

    Attributes:
      shape: shapes of our parts -> shape of the HF tensor.
      read: (HF slices, index into our part, which part, shapes of the parts) -> our
        part at the index.
      join: our parts -> the HF tensor.

    `read` and `join` also take the features of a head, which one operation needs.
    """

    shape: Callable[[list[Dims]], Dims]
    read: Callable[[Any, Index, int, list[Dims], int], np.ndarray]
    join: Callable[[list[np.ndarray], int], np.ndarray]


# HF calls the head of every …ForSequenceClassification so.
SCORE = Row("score.weight", ("score/kernel",), "T")


def rows_of(spec: DecoderSpec, present: Iterable[str] = ()) -> list[Row]:
    """Returns the rows of the family's table that `spec` has.

    Args:
      spec: whose tensors.
      present: names in a checkpoint, whose spelling of the family's prefixes the rows
        then have.
    """
    family, present = FAMILIES[spec.model_type], list(present)
    ours = decoder.leaves(spec)
    rows = [row for row in (*family.table, SCORE) if row.paths[0] in ours]
    for first, *others in family.spellings if present else ():
        met = (p for p in (first, *others) if any(n.startswith(p) for n in present))
        prefix = next(met, first)
        rows = [row._replace(name=_respelled(row.name, first, prefix)) for row in rows]
    return rows


def _respelled(name: str, prefix: str, other: str) -> str:
    """Puts another prefix in the place of `prefix`, if the name has it."""
    return other + name.removeprefix(prefix) if name.startswith(prefix) else name


def stacked(row: Row, spec: DecoderSpec) -> Dims:
    """Returns how many tensors of a row are one array of ours: (), (L,) or (L, X)."""
    sizes = {"{i}": spec.layers, "{e}": spec.experts}
    return tuple(size for mark, size in sizes.items() if mark in row.name)


def names_of(row: Row, spec: DecoderSpec) -> list[str]:
    """Returns the HF names of a row, one for each layer, and expert, if it has such."""
    names = []
    for layer, expert, *_ in ((*at, 0, 0) for at in np.ndindex(stacked(row, spec))):
        name = row.name.replace("{i}", str(layer))
        names.append(name.replace("{e}", str(expert)))
    return names


def part_shapes(row: Row, spec: DecoderSpec) -> list[Dims]:
    """Returns the shapes of a row's parts, without the axes of layers and experts."""
    ours, lead = decoder.leaves(spec), len(stacked(row, spec))
    return [ours[path].shape[lead:] for path in row.paths]


def check_finite(name: str, held: np.ndarray) -> None:
    """Refuses weights that are no numbers, or larger than any that was ever trained.

    Raises:
      ModelError: naming the tensor.
    """
    wrong = ~(np.abs(held) <= LARGEST)
    if not wrong.any():
        return
    raise ModelError(
        f"{name} of the weights holds {np.count_nonzero(wrong)} numbers that are not "
        f"finite or beyond ±{LARGEST:g}, of {held.size} read (the first is "
        f"{held[wrong].flat[0]}); download or copy the file again, or take the model "
        "from before its training diverged"
    )


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


def _shifted(index: Index, part: int, shapes: list[Dims]) -> Index:
    """Moves the last axis of an index past the parts before `part`."""
    offset = sum(shape[-1] for shape in shapes[:part])
    last = index[-1]
    return (*index[:-1], slice(last.start + offset, last.stop + offset))


def _fused_rows(shapes: list[Dims]) -> Dims:
    """Returns the shape of an nn.Linear, or its bias, of parts with one input."""
    return (sum(shape[-1] for shape in shapes), *shapes[0][:-1])


def _read_heads(
    hf: Any, index: Index, part: int, shapes: list[Dims], head_dim: int
) -> np.ndarray:
    """Reads the rows of the heads that the index touches, and picks its part."""
    count, (start, stop) = len(shapes), (index[-1].start, index[-1].stop)
    first, last = start // head_dim, -(-stop // head_dim)
    rows = slice(first * count * head_dim, last * count * head_dim)
    held = hf[(rows, *index[:-1])]
    heads = held.reshape(last - first, count, head_dim, *held.shape[1:])[:, part]
    flat = heads.reshape(-1, *held.shape[1:])
    return flat[start - first * head_dim : stop - first * head_dim].T


def _join_heads(parts: list[np.ndarray], head_dim: int) -> np.ndarray:
    """Interleaves the heads of the parts."""
    split = [p.T.reshape(-1, head_dim, *p.shape[:-1]) for p in parts]
    return np.stack(split, axis=1).reshape(-1, *parts[0].shape[:-1])


OPS: dict[str, Op] = {
    "id": Op(
        shape=lambda shapes: shapes[0],
        read=lambda hf, index, part, shapes, head_dim: hf[index],
        join=lambda parts, head_dim: parts[0],
    ),
    # nn.Linear keeps [out, in]
    "T": Op(
        shape=lambda shapes: shapes[0][::-1],
        read=lambda hf, index, part, shapes, head_dim: hf[index[::-1]].T,
        join=lambda parts, head_dim: parts[0].T,
    ),
    # GPT-2's Conv1D keeps [in, q|k|v], its bias [q|k|v]
    "qkv_cols": Op(
        shape=lambda shapes: (*shapes[0][:-1], sum(shape[-1] for shape in shapes)),
        read=lambda hf, index, part, shapes, head_dim: hf[
            _shifted(index, part, shapes)
        ],
        join=lambda parts, head_dim: np.concatenate(parts, axis=-1),
    ),
    # nn.Linear of several projections side by side: Phi-3's [q; k; v] and [gate; up]
    "rows": Op(
        shape=_fused_rows,
        read=lambda hf, index, part, shapes, head_dim: (
            hf[_shifted(index, part, shapes)[::-1]].T
        ),
        join=lambda parts, head_dim: np.concatenate([p.T for p in parts]),
    ),
    # GPT-NeoX's nn.Linear holds q, k and v of head 0, then those of head 1, …
    "qkv_heads": Op(shape=_fused_rows, read=_read_heads, join=_join_heads),
}
