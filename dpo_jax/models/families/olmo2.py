"""OLMo 2: norms after the branches only, and over whole queries and keys."""

import dataclasses

from dpo_jax import errors
from dpo_jax.models.families import common, llama_like
from dpo_jax.models.spec import DecoderSpec, Family

KNOWN = llama_like.KNOWN | {"attention_bias"}


def from_hf(config: common.Config) -> DecoderSpec:
    """Reads a `config.json` of `model_type` olmo2.

    Raises:
      ModelError: naming every attribute that is missing, malformed or not known.
    """
    with errors.collected(errors.ModelError) as complaints:
        common.refuse_unknown(config, KNOWN, complaints)
        bias = common.boolean(config, "attention_bias", complaints, default=False)
        spec = dataclasses.replace(
            llama_like.read(config, complaints, model_type="olmo2"),
            norm="rms_wide",
            layout="post",
            qk_norm="full",
            qkv_bias=bias,
            out_bias=bias,
        )
    return spec


def to_hf(spec: DecoderSpec) -> common.Config:
    """Writes the `config.json` that `from_hf` reads back to `spec`."""
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

FAMILY = Family(from_hf, to_hf, TABLE, ignored=llama_like.IGNORED)
