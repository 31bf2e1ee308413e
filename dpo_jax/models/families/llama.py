"""Llama 1–3.x and those who publish under its `model_type` (SmolLM, Yi, …)."""

from dpo_jax import errors
from dpo_jax.models.families import common
from dpo_jax.models.spec import DecoderSpec, Family, Row

KNOWN = frozenset(
    """
    attention_bias head_dim hidden_act hidden_size intermediate_size
    max_position_embeddings mlp_bias num_attention_heads num_hidden_layers
    num_key_value_heads pretraining_tp rms_norm_eps rope_parameters rope_scaling
    rope_theta tie_word_embeddings vocab_size
    """.split()
)  # pretraining_tp says how the weights were once cut, not what they compute


def from_hf(config: common.Config) -> DecoderSpec:
    """Reads a `config.json` of `model_type` llama.

    Raises:
      ModelError: naming every attribute that is missing, malformed or not known.
    """
    with errors.collected(errors.ModelError) as complaints:
        common.refuse_unknown(config, KNOWN, complaints)

        def size(name: str, default: int | None = None) -> int:
            return common.number(config, name, int, complaints, default=default)

        heads, width = size("num_attention_heads"), size("hidden_size")
        attention_bias = common.boolean(
            config, "attention_bias", complaints, default=False
        )
        theta, scaling = common.rope(config, complaints)
        spec = DecoderSpec(
            model_type="llama",
            vocab=size("vocab_size"),
            layers=size("num_hidden_layers"),
            width=width,
            heads=heads,
            kv_heads=size("num_key_value_heads", heads),
            head_dim=size("head_dim", width // heads),
            ff=size("intermediate_size"),
            max_positions=size("max_position_embeddings"),
            norm_eps=common.number(config, "rms_norm_eps", float, complaints),
            activation=common.activation(config, "hidden_act", complaints),
            qkv_bias=attention_bias,
            out_bias=attention_bias,
            mlp_bias=common.boolean(config, "mlp_bias", complaints, default=False),
            rope_theta=theta,
            rope_scaling=scaling,
            tie=common.boolean(
                config, "tie_word_embeddings", complaints, default=False
            ),
        )
    return spec


def to_hf(spec: DecoderSpec) -> common.Config:
    """Writes the `config.json` that `from_hf` reads back to `spec`."""
    assert spec.qkv_bias == spec.out_bias, spec
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": spec.vocab,
        "hidden_size": spec.width,
        "intermediate_size": spec.ff,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "max_position_embeddings": spec.max_positions,
        "rms_norm_eps": spec.norm_eps,
        "hidden_act": "gelu_new" if spec.activation == "gelu_tanh" else spec.activation,
        "attention_bias": spec.qkv_bias,
        "mlp_bias": spec.mlp_bias,
        "tie_word_embeddings": spec.tie,
        **common.rope_to_hf(spec.rope_theta, spec.rope_scaling),
    }


def _linear(name: str, path: str) -> tuple[Row, Row]:
    """Returns the rows of a projection and of its bias."""
    hf = f"model.layers.{{i}}.{name}"
    return (
        Row(f"{hf}.weight", (f"layers/{path}/kernel",), "T"),
        Row(f"{hf}.bias", (f"layers/{path}/bias",), "id"),
    )


TABLE = (
    Row("model.embed_tokens.weight", ("embed/tokens",), "id"),
    Row("model.layers.{i}.input_layernorm.weight", ("layers/norm1/scale",), "id"),
    *_linear("self_attn.q_proj", "attn/q"),
    *_linear("self_attn.k_proj", "attn/k"),
    *_linear("self_attn.v_proj", "attn/v"),
    *_linear("self_attn.o_proj", "attn/o"),
    Row(
        "model.layers.{i}.post_attention_layernorm.weight",
        ("layers/norm2/scale",),
        "id",
    ),
    *_linear("mlp.gate_proj", "mlp/gate"),
    *_linear("mlp.up_proj", "mlp/up"),
    *_linear("mlp.down_proj", "mlp/down"),
    Row("model.norm.weight", ("final_norm/scale",), "id"),
    Row("lm_head.weight", ("head/kernel",), "T"),
)

FAMILY = Family(from_hf, to_hf, TABLE, ignored=(r".*rotary_emb\.inv_freq",))
