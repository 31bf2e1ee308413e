"""Mistral 7B and its kin: Llama with one window for all layers, or none."""

import dataclasses

from dpo_jax import errors
from dpo_jax.models.families import common, llama_like
from dpo_jax.models.spec import DecoderSpec, Family

KNOWN = llama_like.KNOWN | frozenset("head_dim sliding_window".split())


def from_hf(config: common.Config) -> DecoderSpec:
    """Reads a `config.json` of `model_type` mistral.

    Raises:
      ModelError: naming every attribute that is missing, malformed or not known.
    """
    with errors.collected(errors.ModelError) as complaints:
        common.refuse_unknown(config, KNOWN, complaints)
        spec = llama_like.read(config, complaints, model_type="mistral")
        window = common.window(config, complaints, default=4096)
        spec = dataclasses.replace(
            spec, windows=(window,) * spec.layers if window else ()
        )
    return spec


def to_hf(spec: DecoderSpec) -> common.Config:
    """Writes the `config.json` that `from_hf` reads back to `spec`."""
    return llama_like.to_hf(spec, "MistralForCausalLM") | {
        "head_dim": spec.head_dim,
        "sliding_window": llama_like.one_window(spec),
    }


TABLE = llama_like.table(*llama_like.LAYER)

FAMILY = Family(from_hf, to_hf, TABLE, ignored=llama_like.IGNORED)
