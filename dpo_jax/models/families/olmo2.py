"""OLMo 2: norms after the branches only, and over whole queries and keys."""

import dataclasses

from dpo_jax.models.families import llama_like
from dpo_jax.models.families.common import Config, Given
from dpo_jax.models.spec import DecoderSpec, Family

KNOWN = llama_like.KNOWN | {"attention_bias"}


def read(given: Given, theta: float = 1e4) -> DecoderSpec:
    """Reads a `config.json`; arguments as `llama_like.read`'s."""
    spec = llama_like.read(given, theta=theta)
    return dataclasses.replace(spec, norm="rms_wide", layout="post", qk_norm="full")


def to_hf(spec: DecoderSpec) -> Config:
    """Writes the `config.json` that `read` reads back to `spec`."""
    assert spec.qkv_bias == spec.out_bias, spec
    config = llama_like.to_hf(spec, "Olmo2ForCausalLM")
    return config | {"attention_bias": spec.qkv_bias}


NORMS = llama_like.norms(
    {"post_attention_layernorm": "norm1", "post_feedforward_layernorm": "norm2"}
)

TABLE = llama_like.table(
    *NORMS,
    *llama_like.QK_NORMS,
    *llama_like.ATTENTION,
    *llama_like.MLP,
)

FAMILY = Family(KNOWN, read, to_hf, TABLE, ignored=llama_like.IGNORED)
