"""GPT-NeoX and Pythia: two norms side by side, a quarter of each head turns."""

from dpo_jax.models.families import common, rope
from dpo_jax.models.families.common import Config, Given
from dpo_jax.models.spec import DecoderSpec, Family, Row

# the family's own names of what others call …
ALIASES = {
    "rope_theta": ("rotary_emb_base",),
    "partial_rotary_factor": ("rotary_pct",),
}

KNOWN = rope.KNOWN | frozenset(
    """
    attention_bias classifier_dropout hidden_act hidden_dropout hidden_size
    intermediate_size layer_norm_eps max_position_embeddings num_attention_heads
    num_hidden_layers partial_rotary_factor rotary_emb_base rotary_pct
    tie_word_embeddings use_parallel_residual vocab_size
    """.split()
)


def read(given: Given) -> DecoderSpec:
    """Reads a `config.json`."""
    heads, width, head_dim = given.heads("num_attention_heads", "hidden_size")
    longest = given.size("max_position_embeddings")
    bias = given.flag("attention_bias", True)
    return DecoderSpec(
        model_type="gpt_neox",
        vocab=given.size("vocab_size"),
        layers=given.size("num_hidden_layers"),
        width=width,
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        ff=given.size("intermediate_size"),
        max_positions=longest,
        norm="layer",
        norm_eps=given.real("layer_norm_eps"),
        layout="parallel" if given.flag("use_parallel_residual", True) else "pre",
        activation=given.activation("hidden_act"),
        gated=False,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=True,
        tie=given.flag("tie_word_embeddings", False),
        **rope.read(given, longest, head_dim, share=0.25, aliases=ALIASES),
    )


def to_hf(spec: DecoderSpec) -> Config:
    """Writes the `config.json` that `read` reads back to `spec`."""
    assert spec.qkv_bias == spec.out_bias, spec
    gelu_tanh = spec.activation == "gelu_tanh"
    turns = rope.to_hf(spec.rope_theta, spec.rope_scaling)
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": spec.vocab,
        "hidden_size": spec.width,
        "intermediate_size": spec.ff,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "max_position_embeddings": spec.max_positions,
        "layer_norm_eps": spec.norm_eps,
        "hidden_act": "gelu_new" if gelu_tanh else spec.activation,
        "use_parallel_residual": spec.layout == "parallel",
        "attention_bias": spec.qkv_bias,
        "rotary_emb_base": turns["rope_theta"],
        "rotary_pct": (spec.rope_dim or spec.head_dim) / spec.head_dim,
        "rope_scaling": turns["rope_scaling"],
        "tie_word_embeddings": spec.tie,
    }


def _qkv(kind: str) -> tuple[str, ...]:
    """Returns the paths of the three kernels or biases that HF fuses."""
    return tuple(f"layers/attn/{name}/{kind}" for name in "qkv")


_LAYER = "gpt_neox.layers.{i}"

TABLE = (
    Row("gpt_neox.embed_in.weight", ("embed/tokens",), "id"),
    *common.vectors(f"{_LAYER}.input_layernorm", "layers/norm1"),
    *common.vectors(f"{_LAYER}.post_attention_layernorm", "layers/norm2"),
    Row(f"{_LAYER}.attention.query_key_value.weight", _qkv("kernel"), "qkv_heads"),
    Row(f"{_LAYER}.attention.query_key_value.bias", _qkv("bias"), "qkv_heads"),
    *common.linear(f"{_LAYER}.attention.dense", "layers/attn/o"),
    *common.linear(f"{_LAYER}.mlp.dense_h_to_4h", "layers/mlp/up"),
    *common.linear(f"{_LAYER}.mlp.dense_4h_to_h", "layers/mlp/down"),
    *common.vectors("gpt_neox.final_layer_norm", "final_norm"),
    Row("embed_out.weight", ("head/kernel",), "T"),
)

FAMILY = Family(
    KNOWN,
    read,
    to_hf,
    TABLE,
    ignored=(
        r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
    ),
    spellings=(("embed_out.", "lm_head."),),
)
