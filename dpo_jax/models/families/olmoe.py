"""OLMoE: norms over whole queries and keys, small experts whose weights sum to < 1."""

import dataclasses

from dpo_jax.models.families import llama_like, mixture
from dpo_jax.models.families.common import Config, Given
from dpo_jax.models.spec import DecoderSpec, Family

KNOWN = llama_like.KNOWN | mixture.KNOWN | {"attention_bias", "norm_topk_prob"}


def read(given: Given) -> DecoderSpec:
    """Reads a `config.json`."""
    spec = dataclasses.replace(llama_like.read(given), qk_norm="full")
    normed = given.flag("norm_topk_prob", False)
    return mixture.read(given, spec, experts=64, picked=8, normed=normed)


def to_hf(spec: DecoderSpec) -> Config:
    """Writes the `config.json` that `read` reads back to `spec`."""
    assert spec.qkv_bias == spec.out_bias, spec
    config = llama_like.to_hf(spec, "OlmoeForCausalLM") | mixture.to_hf(spec)
    return config | {
        "attention_bias": spec.qkv_bias,
        "norm_topk_prob": spec.norm_expert_weights,
    }


TABLE = llama_like.table(*mixture.ATTENTION, *llama_like.QK_NORMS, *mixture.MLP)

FAMILY = Family(KNOWN, read, to_hf, TABLE, ignored=llama_like.IGNORED)
