"""HF model folders streamed into sharded arrays, and written again.

What a tensor is called and how it lies is said by the table of its family; import walks
the table forwards and export backwards, so that a float32 folder comes out as it went
in. Remote code is refused. This file knows nothing of meshes (it is handed shardings),
data or training.
"""

import contextlib
import itertools
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util

from dpo_jax import errors
from dpo_jax.files import sync
from dpo_jax.models import decoder, files, scalar, vocabulary
from dpo_jax.models.families import FAMILIES, spec_of
from dpo_jax.models.files import Stored, read_config
from dpo_jax.models.spec import DecoderSpec, Row
from dpo_jax.models.tensors import (
    OPS,
    Index,
    check_finite,
    folded,
    names_of,
    part_shapes,
    rows_of,
    stacked,
)
from dpo_jax.sharding.arrays import to_every_host
from dpo_jax.types import Array, Params

DTYPES = ("F64", "F32", "F16", "BF16")  # of tensors that are read
EXPORT_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
UNFINISHED = ".unfinished"  # ends the names of files that are being written


QUANTIZED = (  # the last words of tensors that stand beside weights of few bits
    r".*\.(absmax|quant_map|quant_state\..*|nested_absmax|nested_quant_map|SCB|"
    r"weight_format|qweight|qzeros|g_idx|scales|weight_scale(_inv|_2)?|weight_packed|"
    r"input_scale)",
    r".*_(blocks|scales)",
)
ADAPTED = (r".*\.lora_.*", r".*\.base_layer\..*")  # of weights with an adapter in them


def scalar_spec_of(
    config: dict[str, Any], ignored: Collection[str] = ()
) -> DecoderSpec:
    """Says which trunk with a scalar head a `config.json` describes.

    Args:
      config: the file.
      ignored: see `spec_of`.

    Raises:
      ModelError: as `spec_of`, and if it has several labels.
    """
    spec = scalar.scalar_spec(spec_of(config, ignored))
    with errors.collected(errors.ModelError) as complaints:
        complaints += [f"config.json: {fault}" for fault in scalar.label_faults(config)]
    return spec


def _check(spec: DecoderSpec, rows: list[Row], stored: dict[str, Stored]) -> list[str]:
    """Returns what is missing, extra, mis-shaped or of a strange dtype."""
    family = FAMILIES[spec.model_type]
    expected = {}
    for row in rows:
        shape = OPS[row.op].shape(part_shapes(row, spec))
        expected |= dict.fromkeys(names_of(row, spec), shape)
    missing = [name for name in expected if name not in stored]
    extra = [
        name
        for name in stored
        if name not in expected
        and not _matches(name, (*family.ignored, *family.carried))
        and not _same_as_table(spec, name, rows, stored)
    ]
    for what, patterns, way_out in (
        ("quantized", QUANTIZED, "give the float folder, or dequantize it and save"),
        ("those of an adapter and its base", ADAPTED, "merge the adapter first"),
    ):
        if telling := [name for name in extra if _matches(name, patterns)]:
            return [f"the weights are {what} ({', '.join(telling[:2])}, …); {way_out}"]
    both = [name for name in expected if name in stored]
    shaped = [
        f"{name} is {list(stored[name].shape)}, not {list(expected[name])}"
        for name in both
        if stored[name].shape != expected[name]
    ]
    strange = [name for name in both if stored[name].dtype not in DTYPES]
    faults = {
        "missing tensors": folded(missing),
        "unknown tensors": folded(extra),
        "mis-shaped tensors": ", ".join(shaped),
        f"tensors that are none of {'/'.join(DTYPES)}": folded(strange)
        + "; quantized weights are not trained, give the float folder" * bool(strange),
    }
    return [f"{what}: {names}" for what, names in faults.items() if names]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    """Says whether a name is wholly one of the patterns."""
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _same_as_table(
    spec: DecoderSpec, name: str, rows: list[Row], stored: dict[str, Stored]
) -> bool:
    """Says whether `name` is the head of a tied model, equal to the table."""
    rows_known = FAMILIES[spec.model_type].table
    heads = [row.name for row in rows_known if "head/kernel" in row.paths]
    table = next(row.name for row in rows if "embed/tokens" in row.paths)
    if not spec.tie or name not in heads or table not in stored:
        return False
    if stored[name].shape != stored[table].shape:
        return False
    head, tokens = (stored[n].file.get_slice(n) for n in (name, table))
    last = stored[table].shape[0]
    blocks = (slice(i, min(i + 4096, last)) for i in range(0, last, 4096))
    return all(np.array_equal(head[block], tokens[block]) for block in blocks)


def check_weights(folder: str | Path, spec: DecoderSpec) -> None:
    """Refuses a folder whose weights are not those of a spec; reads headers only.

    Raises:
      ModelError: as `load_params`.
    """
    spec = vocabulary.unpadded(spec)
    with contextlib.ExitStack() as stack:
        stored = files.open_weights(Path(folder), stack)
        with errors.collected(errors.ModelError) as complaints:
            faults = _check(spec, rows_of(spec, stored), stored)
            complaints += [f"{folder}: {c}" for c in faults]


def load_params(folder: str | Path, spec: DecoderSpec, shardings: Any = None) -> Params:
    """Streams the weights of a folder into float32 arrays.

    Each process reads only the slices that its devices hold, one leaf at a time.

    Args:
      folder: local HF folder.
      spec: what its `config.json` describes.
      shardings: a tree of `jax.sharding.Sharding`s like the parameters; None = one
        device.

    Returns:
      The tree of `decoder`'s docstring.

    Raises:
      ModelError: if a file cannot be read, or tensors are missing, unknown or
        mis-shaped (one error names all), or hold numbers that are not finite.
    """
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    places: Any = traverse_util.flatten_dict(shardings or {}, sep="/")
    flat: dict[str, Array] = {}
    held = vocabulary.unpadded(spec)
    with contextlib.ExitStack() as stack:
        stored = files.open_weights(Path(folder), stack)
        rows = rows_of(held, stored)
        with errors.collected(errors.ModelError) as complaints:
            complaints += [f"{folder}: {c}" for c in _check(held, rows, stored)]
        for row in rows:
            for part, path in enumerate(row.paths):
                shape = decoder.leaves(spec)[path].shape
                read: Any = _reader(row, part, held, stored)
                read = vocabulary.reading(read, path, spec)
                place = here if shardings is None else places[path]
                flat[path] = jax.make_array_from_callback(shape, place, read)
                flat[path].block_until_ready()  # else the host holds every leaf at once
    return traverse_util.unflatten_dict(flat, sep="/")


def _reader(
    row: Row, part: int, spec: DecoderSpec, stored: dict[str, Stored]
) -> Callable[[Index], np.ndarray]:
    """Returns the callback that reads one part of a row at an index of our array."""
    names, shapes, read = names_of(row, spec), part_shapes(row, spec), OPS[row.op].read
    lead, seen = stacked(row, spec), {}
    named = np.asarray(names, object).reshape(lead)

    def one(name: str, index: Index) -> np.ndarray:
        tensor = stored[name].file.get_slice(name)
        with np.errstate(over="ignore"):  # told below
            held = read(tensor, index, part, shapes, spec.head_dim).astype(np.float32)
        check_finite(name, held)
        return held

    def at(index: Index) -> np.ndarray:
        shape = lead + shapes[part]
        bounds = tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))
        if bounds not in seen:  # devices that hold the same slice share one read
            slices = tuple(slice(*b) for b in bounds)
            outer, inner = slices[: len(lead)], slices[len(lead) :]
            held = np.empty([stop - start for start, stop in bounds], np.float32)
            wanted = named[outer] if lead else named
            for place in np.ndindex(wanted.shape):
                held[place] = one(str(wanted[place]), inner)
            seen[bounds] = held
        return seen[bounds]

    return at


def save_params(
    params: Params,
    spec: DecoderSpec,
    out_dir: str | Path,
    *,
    source_dir: str | Path | None = None,
    dtype: str = "float32",
    max_shard_bytes: int = 5 * 10**9,
    token_ids: dict[str, int] | None = None,
    beside: dict[str, bytes] | None = None,
    stated: dict[str, Any] | None = None,
) -> list[str]:
    """Writes a HF folder that transformers loads.

    Every process takes part; process 0 writes. Files appear under temporary names and
    are renamed at the end, `config.json` last; weights of an earlier export go, so ask
    before what the folder may lose.

    Args:
      params: the tree of `decoder`'s docstring, on any devices.
      spec: what they are parameters of.
      out_dir: local folder, made if need be.
      source_dir: the folder that they were loaded from: `config.json`, tokenizer and
        generation files are copied byte for byte (but for the `dtype` that
        `config.json` declares, where the weights written have another one).
      dtype: of the weights written, a key of `EXPORT_DTYPES`.
      max_shard_bytes: a larger model is cut into files of at most this size.
      token_ids: {`eos_token_id`: …} for the `config.json`; without `source_dir` only.
      beside: more files, by name; they take the place of copied ones.
      stated: attributes that `config.json` declares whatever the source's says.

    Returns:
      The names of the files written, `config.json` last.

    Raises:
      ConfigError: if the dtype is not known, or `out_dir` is `source_dir`.
      ModelError: if `source_dir` describes another model.
      WriteError: if the folder cannot be written.
    """
    if dtype not in EXPORT_DTYPES:
        raise errors.ConfigError(errors.unknown("dtype", dtype, EXPORT_DTYPES))
    assert source_dir is None or token_ids is None, "source_dir has its own token_ids"
    spec = vocabulary.unpadded(spec)
    out = Path(out_dir)
    if source_dir is not None and out.resolve() == Path(source_dir).resolve():
        raise errors.ConfigError(
            f"{out} is the folder that the model was read from; name another to write"
        )
    with contextlib.ExitStack() as stack:
        ids = (token_ids or {}) | (stated or {})
        copied, stored = {"config.json": _config(spec, dtype, ids)}, {}
        if source_dir is not None:
            copied = _source(Path(source_dir), spec, dtype, stated or {})
            stored = files.open_weights(Path(source_dir), stack)
        copied |= beside or {}
        try:
            out.mkdir(parents=True, exist_ok=True)
            weights = _write_weights(params, spec, stored, out, dtype, max_shard_bytes)
            names = sorted({*weights, *copied}, key=lambda name: name == "config.json")
            if jax.process_index() == 0:
                _publish(out, weights | copied, names)
            return names
        except (OSError, safetensors.SafetensorError) as error:
            for file in out.rglob(f"*{UNFINISHED}"):
                file.unlink(missing_ok=True)
            raise errors.WriteError(f"{out} cannot be written: {error}") from error


def _config(spec: DecoderSpec, dtype: str, token_ids: dict[str, Any]) -> bytes:
    """Returns a `config.json` for a model that had none."""
    config = FAMILIES[spec.model_type].to_hf(spec)
    config = scalar.classifier_config(config) if spec.scalar else config
    config |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return _json(config | token_ids | {"dtype": dtype})


def _json(value: dict[str, Any]) -> bytes:
    """Writes JSON as transformers does."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _source(
    folder: Path, spec: DecoderSpec, dtype: str, stated: dict[str, Any]
) -> dict[str, bytes]:
    """Returns the small files that are copied from the source folder."""
    config = read_config(folder)
    read = scalar_spec_of if spec.scalar else spec_of
    if read(config, ignored=config) != spec:  # the unknown was refused when it was read
        raise errors.ModelError(f"{folder / 'config.json'} describes another model")
    copied = beside_weights(folder)
    copied["config.json"] = (folder / "config.json").read_bytes()
    wrong = {k for k in ("dtype", "torch_dtype") if config.get(k) not in (None, dtype)}
    new_head = spec.scalar and not scalar.is_classifier(config)
    ours = scalar.classifier_config(config) if new_head else config
    ours = ours | dict.fromkeys(wrong, dtype) | stated
    if isinstance(text := ours.get("text_config"), dict):
        ours |= {"text_config": text | stated}
    if ours != config:  # a wrong dtype would make transformers round the weights
        copied["config.json"] = _json(ours)
    return copied


def beside_weights(folder: Path) -> dict[str, bytes]:
    """Returns the files of a folder that are neither weights nor `config.json`."""
    found = {f for p in files.TOKENIZER_FILES for f in folder.glob(p) if f.is_file()}
    names = sorted(f.relative_to(folder).as_posix() for f in found)
    return {name: (folder / name).read_bytes() for name in names}


def _tensors(
    params: Params, spec: DecoderSpec, rows: list[Row]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields every tensor of the family under its HF name, one at a time."""
    flat: Any = traverse_util.flatten_dict(params, sep="/")
    assert set(flat) == set(decoder.leaves(spec)), "params are not those of the spec"
    for row in rows:
        names, (layers, *each) = iter(names_of(row, spec)), stacked(row, spec) or (0,)
        for layer in range(layers or 1):
            leaves = [flat[path] for path in row.paths]
            parts = [to_every_host(leaf[layer] if layers else leaf) for leaf in leaves]
            named = zip(row.paths, parts, strict=True)
            parts = [vocabulary.cut(path, part, spec) for path, part in named]
            for at in np.ndindex(*each):
                own = [part[at] for part in parts]
                yield next(names), OPS[row.op].join(own, spec.head_dim)


def _plan(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Cuts names into consecutive groups of at most `limit` bytes, or of one."""
    groups: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if groups[-1] and used + size > limit:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return groups


def _write_weights(
    params: Params,
    spec: DecoderSpec,
    stored: dict[str, Stored],
    out: Path,
    dtype: str,
    limit: int,
) -> dict[str, bytes | None]:
    """Writes weights under temporary names, one file in memory at a time.

    `stored` are the tensors of the source folder, whose spelling is kept and whose
    carried tensors are copied.

    Returns:
      {file name: None}, and the index with its bytes if there are several files.
    """
    kind, rows = np.dtype(EXPORT_DTYPES[dtype]), rows_of(spec, stored)
    kept = FAMILIES[spec.model_type].carried
    carried = {name: x for name, x in stored.items() if _matches(name, kept)}
    sizes = {}
    for row in rows:
        count = int(np.prod(OPS[row.op].shape(part_shapes(row, spec))))
        sizes |= dict.fromkeys(names_of(row, spec), count * kind.itemsize)
    for name, tensor in carried.items():
        sizes[name] = int(np.prod(tensor.shape)) * kind.itemsize
    groups = _plan(sizes, limit)
    names = [files.SINGLE]
    if len(groups) > 1:
        numbers = range(1, len(groups) + 1)
        names = [f"model-{n:05}-of-{len(groups):05}.safetensors" for n in numbers]
    copies = ((name, x.file.get_tensor(name)) for name, x in carried.items())
    tensors = itertools.chain(_tensors(params, spec, rows), copies)
    for file, group in zip(names, groups, strict=True):
        held = {}
        for name, tensor in itertools.islice(tensors, len(group)):
            if jax.process_index() == 0:
                held[name] = np.ascontiguousarray(tensor.astype(kind))
        if jax.process_index() == 0:
            temporary = out / f"{file}{UNFINISHED}"
            temporary.unlink(missing_ok=True)  # a link would be followed
            safetensors.numpy.save_file(held, temporary, metadata={"format": "pt"})
    written: dict[str, bytes | None] = dict.fromkeys(names)
    if len(groups) > 1:
        where = {n: f for f, group in zip(names, groups, strict=True) for n in group}
        total = {"total_size": sum(sizes.values())}
        written[files.INDEX] = _json({"metadata": total, "weight_map": where})
    return written


def save_files(out_dir: str | Path, data: dict[str, bytes], last: str) -> list[str]:
    """Writes files that are in memory as `save_params` does, one of them last.

    Returns:
      Their names.

    Raises:
      WriteError: if the folder cannot be written.
    """
    out, names = Path(out_dir), sorted(data, key=lambda name: name == last)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            _publish(out, {**data}, names)
        return names
    except OSError as error:
        raise errors.WriteError(f"{out} cannot be written: {error}") from error


def _publish(out: Path, data: dict[str, bytes | None], names: list[str]) -> None:
    """Writes the small files, forces all to disk, renames them into place in order."""
    for name in names:
        partial, content = out / f"{name}{UNFINISHED}", data[name]
        partial.parent.mkdir(exist_ok=True)
        if content is not None:
            partial.unlink(missing_ok=True)  # a link would be followed
            partial.write_bytes(content)
        sync(partial)
    stale = {file.name for file in out.glob("model*.safetensors")} | {files.INDEX}
    stale |= {files.ADAPTER, files.ADAPTER_WEIGHTS, "config.json"}
    for name in stale - set(names):
        (out / name).unlink(missing_ok=True)
    for name in names:
        os.replace(out / f"{name}{UNFINISHED}", out / name)
    sync(out)
