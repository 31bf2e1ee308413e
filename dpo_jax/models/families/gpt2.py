"""GPT-2 and its distilled or retrained kin."""

import dataclasses

from dpo_jax.models.families import common
from dpo_jax.models.families.common import Config, Given
from dpo_jax.models.spec import DecoderSpec, Family, Row

# What transformers can switch on and this decoder cannot compute.
FIXED = {
    "add_cross_attention": False,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
}

# n_ctx repeats n_positions; the softmax is float32 with or without the upcast;
# summary_* and *_pdrop belong to other heads and to dropout, which is never applied.
KNOWN = frozenset(
    """
    activation_function attn_pdrop embd_pdrop layer_norm_epsilon n_ctx n_embd n_head
    n_inner n_layer n_positions reorder_and_upcast_attn resid_pdrop summary_activation
    summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
    tie_word_embeddings vocab_size
    """.split()
) | set(FIXED)

ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


def read(given: Given) -> DecoderSpec:
    """Reads a `config.json`."""
    given.only(FIXED)
    return dataclasses.replace(
        read_sizes(given, tie=True),
        qkv_bias=True,
        out_bias=True,
        learned_positions=True,
    )


def read_sizes(given: Given, *, tie: bool) -> DecoderSpec:
    """Reads what GPT-J has too; `tie` is what an absent `tie_word_embeddings` means."""
    heads, width, head_dim = given.heads("n_head", "n_embd")
    return DecoderSpec(
        model_type=given.config["model_type"],
        vocab=given.size("vocab_size"),
        layers=given.size("n_layer"),
        width=width,
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        ff=given.size("n_inner", 4 * width),
        max_positions=given.size("n_positions"),
        norm="layer",
        norm_eps=given.real("layer_norm_epsilon"),
        activation=given.activation("activation_function"),
        gated=False,
        mlp_bias=True,
        tie=given.flag("tie_word_embeddings", tie),
    )


def to_hf(spec: DecoderSpec, architecture: str = "GPT2LMHeadModel") -> Config:
    """Writes what `read_sizes` reads; of GPT-2, that is all."""
    assert spec.kv_heads == spec.heads, spec
    assert spec.head_dim * spec.heads == spec.width, spec
    gelu_tanh = spec.activation == "gelu_tanh"
    return {
        "architectures": [architecture],
        "model_type": spec.model_type,
        "vocab_size": spec.vocab,
        "n_embd": spec.width,
        "n_inner": spec.ff,
        "n_layer": spec.layers,
        "n_head": spec.heads,
        "n_positions": spec.max_positions,
        "layer_norm_epsilon": spec.norm_eps,
        "activation_function": "gelu_new" if gelu_tanh else spec.activation,
        "tie_word_embeddings": spec.tie,
    }


_QKV = ("layers/attn/q", "layers/attn/k", "layers/attn/v")


def _conv1d(name: str, paths: tuple[str, ...], op: str) -> tuple[Row, Row]:
    """Returns the rows of a projection, stored [in, out], and of its bias."""
    hf = f"transformer.h.{{i}}.{name}"
    return (
        Row(f"{hf}.weight", tuple(f"{path}/kernel" for path in paths), op),
        Row(f"{hf}.bias", tuple(f"{path}/bias" for path in paths), op),
    )


TABLE = (
    Row("transformer.wte.weight", ("embed/tokens",), "id"),
    Row("transformer.wpe.weight", ("embed/positions",), "id"),
    *common.vectors("transformer.h.{i}.ln_1", "layers/norm1"),
    *_conv1d("attn.c_attn", _QKV, "qkv_cols"),
    *_conv1d("attn.c_proj", ("layers/attn/o",), "id"),
    *common.vectors("transformer.h.{i}.ln_2", "layers/norm2"),
    *_conv1d("mlp.c_fc", ("layers/mlp/up",), "id"),
    *_conv1d("mlp.c_proj", ("layers/mlp/down",), "id"),
    *common.vectors("transformer.ln_f", "final_norm"),
    Row("lm_head.weight", ("head/kernel",), "T"),
)

FAMILY = Family(
    KNOWN,
    read,
    to_hf,
    TABLE,
    ignored=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),
    spellings=(("transformer.", ""),),
    left=dict.fromkeys(
        ("n_special", "predict_special_tokens"), "openai-community/gpt2-medium"
    ),
    aliases=ALIASES,
)
