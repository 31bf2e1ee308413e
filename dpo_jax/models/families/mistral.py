"""Mistral 7B and its kin: Llama with one window for all layers, or none."""

import dataclasses

from dpo_jax.models.families import llama_like
from dpo_jax.models.families.common import Config, Given
from dpo_jax.models.spec import DecoderSpec, Family

KNOWN = llama_like.KNOWN | frozenset("head_dim sliding_window".split())


def read(given: Given) -> DecoderSpec:
    """Reads a `config.json`."""
    spec = llama_like.read(given)
    window = given.window(default=4096)
    return dataclasses.replace(spec, windows=(window,) * spec.layers if window else ())


def to_hf(spec: DecoderSpec) -> Config:
    """Writes the `config.json` that `read` reads back to `spec`."""
    return llama_like.to_hf(spec, "MistralForCausalLM") | {
        "head_dim": spec.head_dim,
        "sliding_window": llama_like.one_window(spec),
    }


TABLE = llama_like.table(*llama_like.LAYER)

FAMILY = Family(KNOWN, read, to_hf, TABLE, ignored=llama_like.IGNORED)
