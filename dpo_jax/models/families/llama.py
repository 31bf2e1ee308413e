"""Llama 1–3.x and those who publish under its `model_type` (SmolLM 1 and 2, Yi, …)."""

from dpo_jax.models.families import llama_like
from dpo_jax.models.families.common import Config
from dpo_jax.models.spec import DecoderSpec, Family

# pretraining_tp says how the weights were once cut, not what they compute
KNOWN = llama_like.KNOWN | frozenset(
    "attention_bias head_dim mlp_bias pretraining_tp".split()
)


def to_hf(spec: DecoderSpec) -> Config:
    """Writes the `config.json` that `llama_like.read` reads back to `spec`."""
    assert spec.qkv_bias == spec.out_bias, spec
    return llama_like.to_hf(spec, "LlamaForCausalLM") | {
        "head_dim": spec.head_dim,
        "attention_bias": spec.qkv_bias,
        "mlp_bias": spec.mlp_bias,
    }


TABLE = llama_like.table(*llama_like.LAYER)

FAMILY = Family(
    KNOWN,
    llama_like.read,
    to_hf,
    TABLE,
    ignored=llama_like.IGNORED,
    left={"is_llama_config": "HuggingFaceTB/SmolLM2-135M"},
)
