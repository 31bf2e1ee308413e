"""The HF dialects: one file and one row of the table for each `model_type`."""

import itertools
from collections.abc import Collection
from typing import Any

from dpo_jax import errors
from dpo_jax.models.families import (
    gemma,
    gemma3,
    gpt2,
    gpt_neox,
    gptj,
    granite,
    llama,
    ministral3,
    mistral,
    mixtral,
    olmo2,
    olmo3,
    olmoe,
    phi3,
    qwen,
    smollm3,
)
from dpo_jax.models.families.common import Given
from dpo_jax.models.spec import DecoderSpec, Family, faults


def spec_of(config: dict[str, Any], ignored: Collection[str] = ()) -> DecoderSpec:
    """Says which decoder a `config.json` describes; arguments as `described`'s."""
    return described(config, ignored)[0]


def described(
    config: dict[str, Any], ignored: Collection[str] = ()
) -> tuple[DecoderSpec, list[str]]:
    """Says which decoder a `config.json` describes, and which attributes are left.

    Args:
      config: the file.
      ignored: attributes that may stand there although nothing here knows them.

    Returns:
      The spec, and the attributes that say something and are not computed with, of the
      families' lists and of `ignored`.

    Raises:
      ModelError: if it wants remote code, its `model_type` or an attribute is not
        known, or its sizes do not fit.
    """
    name = config.get("model_type")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    native = family.native_code if family else ()
    if any(code not in native for code in _code(config)):
        raise errors.ModelError(
            f"config.json (model_type={name!r}) has auto_map: refuses remote code; use "
            f"a model of one of the types: {', '.join(sorted(FAMILIES))}"
        )
    if family is None:
        raise errors.ModelError(errors.unknown("model_type", name, FAMILIES))
    config = {k: v for k, v in config.items() if k != "auto_map"}
    left: list[str] = []
    with errors.collected(errors.ModelError) as complaints:
        given = Given(config, complaints, left, {*family.left, *ignored})
        given = given.quantized().renamed(family.aliases)
        given.refuse_unknown(family.known)
        spec = family.read(given)
    with errors.collected(errors.ModelError) as complaints:
        complaints += [f"config.json: {fault}" for fault in faults(spec)]
    return spec, left


def _code(config: dict[str, Any]) -> list[str]:
    """Returns what `auto_map` names."""
    named = config.get("auto_map") or {}
    values = named.values() if isinstance(named, dict) else [named]
    lists = [value if isinstance(value, list) else [value] for value in values]
    return [str(value) for value in itertools.chain(*lists) if value]


FAMILIES: dict[str, Family] = {
    "gemma": gemma.GEMMA,
    "gemma2": gemma.GEMMA2,
    "gemma3": gemma3.GEMMA3,
    "gemma3_text": gemma3.GEMMA3_TEXT,
    "gpt2": gpt2.FAMILY,
    "gpt_neox": gpt_neox.FAMILY,
    "gptj": gptj.FAMILY,
    "granite": granite.FAMILY,
    "llama": llama.FAMILY,
    "ministral3": ministral3.MINISTRAL3,
    "mistral": mistral.FAMILY,
    "mistral3": ministral3.MISTRAL3,
    "mixtral": mixtral.FAMILY,
    "olmo2": olmo2.FAMILY,
    "olmo3": olmo3.FAMILY,
    "olmoe": olmoe.FAMILY,
    "phi3": phi3.FAMILY,
    "qwen2": qwen.QWEN2,
    "qwen3": qwen.QWEN3,
    "qwen3_moe": qwen.QWEN3_MOE,
    "smollm3": smollm3.FAMILY,
}
