"""Which linear maps of a family may have adapters, and which a run gives one.

They are called as the family's files call them; of maps that those fuse, all are one.
"""

import dataclasses
import fnmatch
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from dpo_jax import errors
from dpo_jax.models import lora
from dpo_jax.models.lora import Adapters, Site
from dpo_jax.models.spec import DecoderSpec
from dpo_jax.models.tensors import part_shapes, rows_of

GROUPS = {"attention": "attn/", "mlp": "mlp/", "all_linear": ""}


def sites_of(spec: DecoderSpec, present: Iterable[str] = ()) -> dict[str, Site]:
    """Lists the linear maps of a decoder's layers that may have adapters, by name.

    Args:
      spec: of the decoder.
      present: names of tensors, whose spelling of the family's prefixes is taken.
    """
    sites, fused = {}, {parts: name for name, parts in lora.FUSED.items()}
    for row in rows_of(spec, present):
        parts = tuple(
            path.removeprefix("layers/").removesuffix("/kernel") for path in row.paths
        )
        linear = "{i}" in row.name and row.paths[0].endswith("/kernel")
        if not linear or re.match("layers/(router|experts)/", row.paths[0]):
            continue  # of experts peft has its own layout, and no router is tuned
        shapes = part_shapes(row, spec)
        name = parts[0] if len(parts) == 1 else fused[parts]
        sites[name] = Site(
            name,
            row.name.removesuffix(".weight"),
            row.op,
            shapes[0][0],
            tuple(shape[-1] for shape in shapes),
        )
    return sites


def targeted(sites: Collection[Site], targets: Sequence[str], field: str) -> list[Site]:
    """Picks the maps that targets name.

    Args:
      sites: of the decoder.
      targets: groups of `GROUPS`, or the family's names of modules (`q_proj`,
        `self_attn.q_proj`), which may hold `*`.
      field: that they stand in, for the message.

    Raises:
      ConfigError: if one names none, with the names that there are.
    """
    found = set()
    with errors.collected(errors.ConfigError) as complaints:
        for target in targets:
            named = {site.name for site in sites if _names(target, site)}
            found |= named
            if not named:
                modules = [site.module.rpartition("{i}.")[2] for site in sites]
                known = ", ".join([*GROUPS, *modules])
                complaints.append(
                    f"{field}: {target!r} names no linear map of the model; there are: "
                    f"{known}"
                )
    return [site for site in sites if site.name in found]


def _names(target: str, site: Site) -> bool:
    """Says whether a target names a site."""
    if target in GROUPS:
        return site.name.startswith(GROUPS[target])
    module = site.module.replace("{i}", "0")
    return fnmatch.fnmatchcase(f".{module}", f"*.{target}")


def fresh(
    spec: DecoderSpec,
    *,
    rank: int,
    alpha: int,
    rslora: bool,
    targets: Sequence[str],
    init: str,
) -> Adapters:
    """Says which adapters a run trains that starts with none.

    Args:
      spec: of the decoder.
      rank: r.
      alpha: α; 0 = 2·r.
      rslora: see `Adapters`.
      targets: as `targeted` takes them; () = all linear maps.
      init: see `Adapters`.

    Raises:
      ConfigError: as `targeted`.
    """
    sites = targeted(
        sites_of(spec).values(), tuple(targets) or ("all_linear",), "lora.targets"
    )
    each = [dataclasses.replace(s, rank=rank, alpha=alpha or 2 * rank) for s in sites]
    return Adapters(tuple(each), spec.layers, rslora, init)


def agreeing(
    adapters: Adapters, spec: DecoderSpec, given: Mapping[str, Any], folder: str
) -> Adapters:
    """Refuses what a run says of adapters and their folder says otherwise.

    Args:
      adapters: of the folder.
      spec: of the decoder.
      given: `config.lora`, of which nothing need be said.
      folder: `model.adapter`, for the message.

    Returns:
      The adapters.

    Raises:
      ConfigError: naming what contradicts the folder.
    """
    ranks = sorted({site.rank for site in adapters.sites})
    alphas = sorted({site.alpha for site in adapters.sites})
    sites = sites_of(spec).values()
    asked = targeted(sites, given["targets"], "lora.targets")
    has = [site.name for site in adapters.sites]
    wrong = {
        "rank": (given["rank"] and [given["rank"]] != ranks, ranks),
        "alpha": (given["alpha"] and [given["alpha"]] != alphas, alphas),
        "rslora": (given["rslora"] and not adapters.rslora, adapters.rslora),
        "targets": (asked and [s.name for s in asked] != has, has),
        "init": (given["init"] != "b_zero", "no fresh factor"),
    }
    with errors.collected(errors.ConfigError) as complaints:
        complaints += [
            f"lora.{key}={given[key]!r} contradicts model.adapter={folder!r}, which "
            f"has {said}; leave it out"
            for key, (differs, said) in wrong.items()
            if differs
        ]
    return adapters
