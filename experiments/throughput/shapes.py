"""Shapes of published models, to be filled with random weights.

The sizes are those of each model's `config.json` on the Hugging Face hub.
"""

from dpo_jax.models import hf
from dpo_jax.models.spec import DecoderSpec

_LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-5, "hidden_act": "silu"}

SHAPES: dict[str, dict] = {
    "llama-3.2-1b": _LLAMA  # without its scaling of angles
    | {
        "vocab_size": 128_256,
        "num_hidden_layers": 16,
        "hidden_size": 2048,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "intermediate_size": 8192,
        "max_position_embeddings": 131_072,
        "rope_theta": 5e5,
        "tie_word_embeddings": True,
    },
    "llama-2-7b": _LLAMA
    | {
        "vocab_size": 32_000,
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "intermediate_size": 11_008,
        "max_position_embeddings": 4096,
        "rope_theta": 1e4,
        "tie_word_embeddings": False,
    },
    "llama-3-8b": _LLAMA
    | {
        "vocab_size": 128_256,
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14_336,
        "max_position_embeddings": 8192,
        "rope_theta": 5e5,
        "tie_word_embeddings": False,
    },
    "pythia-2.8b": {
        "model_type": "gpt_neox",
        "vocab_size": 50_304,
        "num_hidden_layers": 32,
        "hidden_size": 2560,
        "num_attention_heads": 32,
        "intermediate_size": 10_240,
        "max_position_embeddings": 2048,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "rotary_emb_base": 1e4,
        "rotary_pct": 0.25,
        "use_parallel_residual": True,
        "tie_word_embeddings": False,
    },
}


def spec_of(name: str) -> DecoderSpec:
    """Returns the spec of a published shape.

    Raises:
      KeyError: if it is none of `SHAPES`.
    """
    return hf.spec_of(SHAPES[name])
