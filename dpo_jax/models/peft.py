"""Adapters in peft's folders, read and written.

A folder of peft holds `adapter_config.json` and `adapter_model.safetensors`; of each
adapted module `lora_A.weight` [r, in] and `lora_B.weight` [out, r]. The pairs in the
file must be those that the targets demand. This file knows nothing of training.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from dpo_jax import errors
from dpo_jax.files import parse_json, read_json
from dpo_jax.models import files
from dpo_jax.models.families import FAMILIES
from dpo_jax.models.files import Stored
from dpo_jax.models.lora import Adapters, Site
from dpo_jax.models.sites import sites_of
from dpo_jax.models.spec import DecoderSpec
from dpo_jax.models.tensors import (
    LARGEST,
    OPS,
    check_finite,
    folded,
)
from dpo_jax.sharding.arrays import to_every_host
from dpo_jax.types import Params

PREFIX = "base_model.model."
# of an adapter_config.json: read here …
READ = frozenset(
    """
    alpha_pattern base_model_name_or_path bias fan_in_fan_out init_lora_weights
    lora_alpha modules_to_save peft_type r rank_pattern target_modules use_rslora
    """.split()
)
# … read by nobody: names of versions and hosts, and what only acts while peft trains
LEFT = frozenset(
    """
    auto_mapping eva_config inference_mode lora_dropout megatron_core peft_version
    qalora_group_size revision runtime_config task_type
    """.split()
)
STARTS = (True, False, None, "gaussian", "orthogonal", "eva")  # the base stays


def read_config(folder: Path) -> dict[str, Any]:
    """Reads the `adapter_config.json` of a folder.

    Raises:
      ModelError: if there is none, or it says what no adapter here can do.
    """
    file = folder / files.ADAPTER
    try:
        config = read_json(file)
    except FileNotFoundError:
        raise errors.ModelError(
            f"{file} does not exist; is {folder} a folder that peft saved?"
        ) from None
    except (OSError, ValueError) as error:
        why = files.cause(file) or f"is not JSON ({error})"
        raise errors.ModelError(f"{file} {why}") from error
    if not isinstance(config, dict):
        raise errors.ModelError(f"{file} must hold a JSON object")
    with errors.collected(errors.ModelError) as complaints:
        complaints += [f"{file}: {fault}" for fault in _config_faults(config)]
    return config


def _config_faults(config: Mapping[str, Any]) -> list[str]:
    """Returns one sentence for each thing that no adapter here can do."""
    fixed = {
        "peft_type": ("LORA",),
        "bias": ("none", None),
        "init_lora_weights": STARTS,
    }
    faults = [
        f"{name}={config.get(name)!r} is not supported"
        for name, known in fixed.items()
        if config.get(name) not in known
    ]
    faults += [
        f"{name}={str(value)[:80]!r} is not supported; leave it out, or merge the "
        "adapter with peft (merge_and_unload) and give that folder"
        for name, value in config.items()
        if value and name not in READ | LEFT
    ]
    if saved := config.get("modules_to_save"):
        faults.append(
            f"modules_to_save={str(saved)[:80]} are whole modules beside the adapter, "
            "which are not read; merge it with peft (merge_and_unload)"
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        faults.append(f"r={rank!r} must be an int of at least 1")
    number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not (number and 0 < float(alpha or 0) < LARGEST):
        faults.append(f"lora_alpha={alpha!r} must be a number > 0")
    targets = config.get("target_modules")
    listed = isinstance(targets, list) and all(isinstance(t, str) for t in targets)
    if not (targets and (listed or isinstance(targets, str))):
        faults.append(f"target_modules={str(targets)[:80]} must be said")
    for name in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(name) or {}, dict):
            faults.append(f"{name}={str(config[name])[:80]} must be an object")
    return faults


def read(folder: Path, spec: DecoderSpec) -> Adapters:
    """Says which adapters a folder of peft holds; reads no weights.

    Args:
      folder: local.
      spec: of the decoder that they are for.

    Raises:
      ModelError: if it cannot be read, or its pairs are not those that its targets
        demand, or of other shapes.
    """
    config = read_config(folder)
    with contextlib.ExitStack() as stack:
        stored = _stored(folder, stack)
        sites = sites_of(spec, stored)
        with errors.collected(errors.ModelError) as complaints:
            adapted = _demanded(config, sites.values(), spec.layers, complaints)
            if not complaints:
                complaints += _differences(adapted, spec, stored)
            complaints[:] = [f"{folder}: {fault}" for fault in complaints]
    rslora = bool(config.get("use_rslora"))
    return Adapters(tuple(adapted), spec.layers, rslora, folder=folder)


def _stored(folder: Path, stack: contextlib.ExitStack) -> dict[str, Stored]:
    """Opens the pairs of a folder: names of the model's modules -> tensor."""
    file = folder / files.ADAPTER_WEIGHTS
    try:
        opened = stack.enter_context(safetensors.safe_open(file, "np"))
        parse_json(files.header_of(file)[1])  # a name twice: safetensors takes one
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        pickles = [f.name for pattern in files.PICKLES for f in folder.glob(pattern)]
        why = files.cause(file) or f"is unreadable: {error}"
        if not file.is_file():
            why = "does not exist"
            why += f", only {pickles[0]}: refuses pickle" if pickles else ""
        raise errors.ModelError(f"{file} {why}") from error
    named = {}
    for name in opened.keys():  # noqa: SIM118 (not a dict)
        tensor = opened.get_slice(name)
        ours = name.removeprefix(PREFIX) if name.startswith(PREFIX) else f"?{name}"
        named[ours] = Stored(opened, tuple(tensor.get_shape()), tensor.get_dtype())
    return named


def _demanded(
    config: Mapping[str, Any],
    sites: Iterable[Site],
    layers: int,
    complaints: list[str],
) -> list[Site]:
    """Returns the sites that a config targets, with their ranks and alphas."""
    targets, adapted, met = config["target_modules"], [], set()
    for site in sites:
        modules = [site.module.replace("{i}", str(i)) for i in range(layers)]
        found = [_target_of(targets, module) for module in modules]
        met |= {target for target in found if target}
        if not any(found):
            continue
        pairs = {_strength(config, module) for module in modules}
        if not all(found) or len(pairs) > 1:
            complaints.append(
                f"{site.module}: layers have adapters of several kinds, or not all "
                "have one; all layers must be alike"
            )
            continue
        rank, alpha = pairs.pop()
        adapted.append(dataclasses.replace(site, rank=rank, alpha=alpha))
    unmet = set() if isinstance(targets, str) else set(targets) - met
    if unmet or not adapted:
        complaints.append(
            f"target_modules: {', '.join(sorted(unmet)) or targets} names no linear "
            "map of the model's layers"
        )
    return adapted


def _target_of(targets: list[str] | str, module: str) -> str:
    """Returns which target names a module, as peft reads them; '' = none does."""
    if targets == "all-linear":
        return module
    if isinstance(targets, str):
        return module if re.fullmatch(targets, module) else ""
    ends = (t for t in targets if module == t or module.endswith(f".{t}"))
    return next(ends, "")


def _strength(config: Mapping[str, Any], module: str) -> tuple[int, float]:
    """Returns the rank and alpha of a module: its own, or those of all."""

    def own(pattern: str, of_all: Any) -> Any:
        patterns = config.get(pattern) or {}
        keys = (key for key in patterns if re.match(rf"(.*\.)?({key})$", module))
        return patterns.get(next(keys, None), of_all)

    return own("rank_pattern", config["r"]), own("alpha_pattern", config["lora_alpha"])


def _pairs(site: Site, layers: int) -> dict[str, tuple[int, int]]:
    """Returns the names and shapes of a site's tensors, all A and then all B."""
    shapes = {"A": (site.rank, site.fan_in), "B": (sum(site.fan_outs), site.rank)}
    return {
        f"{site.module.replace('{i}', str(i))}.lora_{factor}.weight": shape
        for factor, shape in shapes.items()
        for i in range(layers)
    }


def _differences(
    sites: Sequence[Site], spec: DecoderSpec, stored: Mapping[str, Stored]
) -> list[str]:
    """Returns what is missing, left over, or of another shape."""
    expected: dict[str, tuple[int, int]] = {}
    for site in sites:
        expected |= _pairs(site, spec.layers)
    shaped = [
        f"{name} is {list(stored[name].shape)}, not {list(shape)}"
        for name, shape in expected.items()
        if name in stored and stored[name].shape != shape
    ]
    told = {
        "missing pairs": folded(name for name in expected if name not in stored),
        "pairs that no target demands": folded(n for n in stored if n not in expected),
        "mis-shaped pairs": ", ".join(shaped),
    }
    return [f"{what}: {names}" for what, names in told.items() if names]


def load(folder: Path, adapters: Adapters, spec: DecoderSpec, places: Any) -> Params:
    """Reads adapters from a folder of peft.

    Args:
      folder: local.
      adapters: of `read`.
      spec: of the decoder.
      places: a tree of shardings like the adapters.

    Returns:
      The float32 tree of `models.lora`.

    Raises:
      ModelError: if a tensor holds numbers that are not finite.
    """
    flat = {}
    with contextlib.ExitStack() as stack:
        stored = _stored(folder, stack)
        for site in adapters.sites:
            names = list(_pairs(site, spec.layers))
            held = [stored[n].file.get_tensor(PREFIX + n) for n in names]
            held = [tensor.astype(np.float32) for tensor in held]
            for name, tensor in zip(names, held, strict=True):
                check_finite(name, tensor)
            downs, ups = held[: spec.layers], held[spec.layers :]
            flat[f"{site.name}/a"] = np.stack([down.T for down in downs])
            flat[f"{site.name}/b"] = np.stack(
                [_up_from_disk(up, site, spec.head_dim) for up in ups]
            )
    tree = traverse_util.unflatten_dict(flat, sep="/")
    return jax.tree.map(_spread, tree, places)


def _spread(host: np.ndarray, place: Any) -> jax.Array:
    return jax.make_array_from_callback(host.shape, place, lambda index: host[index])


def _up_from_disk(up: np.ndarray, site: Site, head_dim: int) -> np.ndarray:
    """Turns B [out, r] of a folder into ours [r, out], part by part."""
    if site.op != "qkv_heads":
        return up.T
    shapes = [(up.shape[1], width) for width in site.fan_outs]
    parts = [
        OPS[site.op].read(up, (slice(0, r), slice(0, n)), part, shapes, head_dim)
        for part, (r, n) in enumerate(shapes)
    ]
    return np.concatenate(parts, axis=-1)


def _up_to_disk(up: np.ndarray, site: Site, head_dim: int) -> np.ndarray:
    """Turns our B [r, out] into that of a folder, [out, r]."""
    if site.op != "qkv_heads":
        return up.T
    stops = np.cumsum(site.fan_outs)[:-1]
    return OPS[site.op].join(np.split(up, stops, axis=-1), head_dim)


def folder_files(
    tree: Params,
    adapters: Adapters,
    spec: DecoderSpec,
    *,
    base: str,
    revision: str,
    score: np.ndarray | None = None,
) -> dict[str, bytes]:
    """Makes the files that peft loads; every process takes part.

    Args:
      tree: of the adapters, on any devices.
      adapters: whose.
      spec: of the decoder.
      base: folder or hub id of the weights beside which they act.
      revision: of the hub id.
      score: [D, 1] a scalar head that was trained beside them.

    Returns:
      {name: bytes}: weights in float32, the config last.
    """
    flat: Any = traverse_util.flatten_dict(tree, sep="/")
    out = sites_of(spec, FAMILIES[spec.model_type].modules)
    tensors = {}
    for site in adapters.sites:
        module = out[site.name].module
        site = dataclasses.replace(site, module=module)
        downs, ups = (to_every_host(flat[f"{site.name}/{leaf}"]) for leaf in "ab")
        host = [down.T for down in downs]
        host += [_up_to_disk(up, site, spec.head_dim) for up in ups]
        host = map(np.ascontiguousarray, host)  # safetensors knows no strides
        names = [PREFIX + name for name in _pairs(site, spec.layers)]
        tensors |= dict(zip(names, host, strict=True))
    config = config_of(adapters, out, spec, base=base, revision=revision)
    if score is not None:
        tensors[f"{PREFIX}score.weight"] = np.ascontiguousarray(score.T)
        config |= {"modules_to_save": ["score"], "task_type": "SEQ_CLS"}
    weights = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    return {files.ADAPTER_WEIGHTS: weights, files.ADAPTER: text.encode()}


def config_of(
    adapters: Adapters,
    sites: Mapping[str, Site],
    spec: DecoderSpec,
    *,
    base: str,
    revision: str,
) -> dict[str, Any]:
    """Writes an `adapter_config.json`; the targets are always said.

    Args:
      adapters: that it describes.
      sites: all of the decoder, with the modules' names in the HF class.
      spec: of the decoder.
      base: see `folder_files`.
      revision: see `folder_files`.
    """
    ours = [sites[site.name] for site in adapters.sites]
    first, carried = adapters.sites[0], FAMILIES[spec.model_type].carried
    tails = {name: site.module.rpartition("{i}.")[2] for name, site in sites.items()}
    lasts = [tail.rpartition(".")[2] for tail in tails.values()]
    short = {  # where it names no other module
        name: last if lasts.count(last) == 1 else tail
        for (name, tail), last in zip(tails.items(), lasts, strict=True)
    }
    targets = sorted(short[site.name] for site in ours)
    if carried:  # a tower beside it has modules of the same names
        each = range(spec.layers)
        targets = [s.module.replace("{i}", str(i)) for s in ours for i in each]
    own = [(tails[site.name], site) for site in adapters.sites]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": revision or None,
        "r": first.rank,
        "lora_alpha": int(first.alpha),
        "rank_pattern": {n: s.rank for n, s in own if s.rank != first.rank},
        "alpha_pattern": {n: int(s.alpha) for n, s in own if s.alpha != first.alpha},
        "use_rslora": adapters.rslora,
        "target_modules": targets,
        "fan_in_fan_out": first.op in ("id", "qkv_cols"),
        "bias": "none",
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
        "use_dora": False,
    }
