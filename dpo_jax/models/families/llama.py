"""Llama 1–3.x and those who publish under its `model_type` (SmolLM 1 and 2, Yi, …)."""

import dataclasses

from dpo_jax import errors
from dpo_jax.models.families import common, llama_like
from dpo_jax.models.spec import DecoderSpec, Family

# pretraining_tp says how the weights were once cut, not what they compute
KNOWN = llama_like.KNOWN | frozenset(
    "attention_bias head_dim mlp_bias pretraining_tp".split()
)


def from_hf(config: common.Config) -> DecoderSpec:
    """Reads a `config.json` of `model_type` llama.

    Raises:
      ModelError: naming every attribute that is missing, malformed or not known.
    """
    with errors.collected(errors.ModelError) as complaints:
        common.refuse_unknown(config, KNOWN, complaints)
        bias = common.boolean(config, "attention_bias", complaints, default=False)
        spec = dataclasses.replace(
            llama_like.read(config, complaints, model_type="llama"),
            qkv_bias=bias,
            out_bias=bias,
            mlp_bias=common.boolean(config, "mlp_bias", complaints, default=False),
        )
    return spec


def to_hf(spec: DecoderSpec) -> common.Config:
    """Writes the `config.json` that `from_hf` reads back to `spec`."""
    assert spec.qkv_bias == spec.out_bias, spec
    return llama_like.to_hf(spec, "LlamaForCausalLM") | {
        "head_dim": spec.head_dim,
        "attention_bias": spec.qkv_bias,
        "mlp_bias": spec.mlp_bias,
    }


TABLE = llama_like.table(*llama_like.LAYER)

FAMILY = Family(from_hf, to_hf, TABLE, ignored=llama_like.IGNORED)
