"""Granite 3: Llama with a factor on embeddings, branches, attention and logits."""

import dataclasses

from dpo_jax.models.families import llama, llama_like
from dpo_jax.models.families.common import Config, Given
from dpo_jax.models.spec import DecoderSpec, Family

FACTORS = {  # HF's name -> ours; absent = 1
    "attention_multiplier": "attn_scale",
    "embedding_multiplier": "embed_scale",
    "logits_scaling": "logit_divisor",
    "residual_multiplier": "residual_scale",
}
KNOWN = llama_like.KNOWN | {"attention_bias", "head_dim", "mlp_bias", *FACTORS}


def read(given: Given) -> DecoderSpec:
    """Reads a `config.json`."""
    factors = {ours: given.real(name, 1.0) for name, ours in FACTORS.items()}
    return dataclasses.replace(llama_like.read(given), **factors)


def to_hf(spec: DecoderSpec) -> Config:
    """Writes the `config.json` that `read` reads back to `spec`."""
    factors = {name: vars(spec)[ours] for name, ours in FACTORS.items()}
    config = llama.to_hf(spec) | {"architectures": ["GraniteForCausalLM"]}
    return config | factors


FAMILY = Family(KNOWN, read, to_hf, llama.TABLE, ignored=llama_like.IGNORED)
