"""What the dialects that grew from Llama's share: attributes, rows, defaults.

Each family reads with `read` what all have and adds its own by `dataclasses.replace`.
"""

from collections.abc import Callable

from dpo_jax.models.families import common, rope
from dpo_jax.models.families.common import Config, Given
from dpo_jax.models.spec import DecoderSpec, Row

KNOWN = rope.KNOWN | frozenset(
    """
    hidden_act hidden_size intermediate_size max_position_embeddings
    num_attention_heads num_hidden_layers num_key_value_heads rms_norm_eps
    tie_word_embeddings vocab_size
    """.split()
)

LAYER_KINDS = ("full_attention", "sliding_attention")

# Tensors that old checkpoints carry: recomputed, never needed.
IGNORED = (r".*rotary_emb\.inv_freq",)


def read(
    given: Given,
    *,
    head_dim: int = 0,
    theta: float = 1e4,
    share: float | None = None,
    tie: bool = False,
    activation: str = "hidden_act",
) -> DecoderSpec:
    """Reads what every family of the kin has.

    Args:
      given: the `config.json`.
      head_dim: what an absent `head_dim` means; 0 = width / heads.
      theta: what an absent `rope_theta` means.
      share: what an absent `partial_rotary_factor` means; None = the family has none.
      tie: what an absent `tie_word_embeddings` means.
      activation: the name of the attribute.
    """
    heads, width = given.size("num_attention_heads"), given.size("hidden_size")
    features = given.size("head_dim", head_dim or max(width // heads, 1))
    longest = given.size("max_position_embeddings")
    bias = given.flag("attention_bias", False)
    return DecoderSpec(
        model_type=given.config["model_type"],
        vocab=given.size("vocab_size"),
        layers=given.size("num_hidden_layers"),
        width=width,
        heads=heads,
        kv_heads=given.size("num_key_value_heads", heads),
        head_dim=features,
        ff=given.size("intermediate_size"),
        max_positions=longest,
        norm_eps=given.real("rms_norm_eps"),
        activation=given.activation(activation),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=given.flag("mlp_bias", False),
        tie=given.flag("tie_word_embeddings", tie),
        **rope.read(given, longest, features, theta=theta, share=share),
    )


def to_hf(spec: DecoderSpec, architecture: str) -> Config:
    """Writes what `read` reads."""
    gelu_tanh = spec.activation == "gelu_tanh"
    return {
        "architectures": [architecture],
        "model_type": spec.model_type,
        "vocab_size": spec.vocab,
        "hidden_size": spec.width,
        "intermediate_size": spec.ff,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "max_position_embeddings": spec.max_positions,
        "rms_norm_eps": spec.norm_eps,
        "hidden_act": "gelu_pytorch_tanh" if gelu_tanh else spec.activation,
        "tie_word_embeddings": spec.tie,
        **rope.to_hf(spec.rope_theta, spec.rope_scaling),
    }


def windows(
    given: Given, layers: int, window: int, slides: Callable[[int], bool]
) -> tuple[int, ...]:
    """Reads each layer's window from `layer_types` or, without it, from a rule.

    Args:
      given: the `config.json`.
      layers: of the model.
      window: tokens seen in layers that slide; 0 = the model has none.
      slides: which layers do where there is no `layer_types`.

    Returns:
      One entry a layer, 0 = full; () where no layer slides.
    """
    kinds = given.config.get("layer_types")
    if kinds is None:
        kinds = [LAYER_KINDS[bool(window) and slides(i)] for i in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers:
        given.complaints.append(f"layer_types={kinds!r} must name {layers} layers")
        return ()
    strange = sorted({str(kind) for kind in kinds} - set(LAYER_KINDS))
    if strange:
        known = ", ".join(LAYER_KINDS)
        given.complaints.append(f"layer_types has {', '.join(strange)}; known: {known}")
    sliding = [kind == "sliding_attention" for kind in kinds]
    if any(sliding) and not window:
        given.complaints.append(
            "layer_types has sliding_attention without a sliding_window"
        )
    return tuple(window * slides for slides in sliding) if any(sliding) else ()


def layer_types(spec: DecoderSpec) -> list[str]:
    """Writes which layers slide."""
    each = spec.windows or (0,) * spec.layers
    return [LAYER_KINDS[bool(window)] for window in each]


def one_window(spec: DecoderSpec) -> int | None:
    """Returns the window of the layers that have one; None = no layer has."""
    windows = set(spec.windows) - {0}
    assert len(windows) <= 1, spec.windows
    return max(windows, default=None)


def linear(name: str, path: str) -> tuple[Row, Row]:
    """Returns the rows of a layer's projection and of its bias."""
    return common.linear(f"model.layers.{{i}}.{name}", f"layers/{path}")


def norms(names: dict[str, str]) -> tuple[Row, ...]:
    """Returns the rows of a layer's norms, {HF name: our path}."""
    return tuple(
        Row(f"model.layers.{{i}}.{hf}.weight", (f"layers/{ours}/scale",), "id")
        for hf, ours in names.items()
    )


def table(*layer_rows: Row) -> tuple[Row, ...]:
    """Returns a whole table from the rows of a layer."""
    return (
        Row("model.embed_tokens.weight", ("embed/tokens",), "id"),
        *layer_rows,
        Row("model.norm.weight", ("final_norm/scale",), "id"),
        Row("lm_head.weight", ("head/kernel",), "T"),
    )


ATTENTION = (
    *linear("self_attn.q_proj", "attn/q"),
    *linear("self_attn.k_proj", "attn/k"),
    *linear("self_attn.v_proj", "attn/v"),
    *linear("self_attn.o_proj", "attn/o"),
)
MLP = (
    *linear("mlp.gate_proj", "mlp/gate"),
    *linear("mlp.up_proj", "mlp/up"),
    *linear("mlp.down_proj", "mlp/down"),
)
QK_NORMS = norms({"self_attn.q_norm": "attn/q_norm", "self_attn.k_norm": "attn/k_norm"})
PRE_NORMS = norms({"input_layernorm": "norm1", "post_attention_layernorm": "norm2"})
LAYER = (*PRE_NORMS, *ATTENTION, *MLP)  # as Llama's own
