"""One tiny `config.json` for each family, and what else its checkpoints switch on.

Also the sequences that models are compared on, laid out in every way.
"""

import jax
import numpy as np
from flax import traverse_util

from dpo_jax.models import decoder
from dpo_jax.types import Batch

LENGTH = 24  # tokens of a sequence
PROMPT = 15  # of which two sequences share

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 4.0,
    "beta_slow": 0.3,
}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {
    **IDS,
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
}
GPT = {
    **IDS,
    "vocab_size": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "layer_norm_epsilon": 1e-5,
    "activation_function": "gelu_new",
}
NEOX = {
    **IDS,
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "layer_norm_eps": 1e-5,
    "hidden_act": "gelu",
    "rotary_pct": 0.25,
    "rotary_emb_base": 10000,
}
GEMMA = SIZES | {
    "head_dim": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
}
GEMMA2 = GEMMA | {
    "query_pre_attn_scalar": 24,
    "sliding_window": 5,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
}
GEMMA3 = GEMMA | {
    "num_hidden_layers": 7,
    "query_pre_attn_scalar": 24,
    "sliding_window": 5,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "model_type": "siglip_vision_model",
}

PIXTRAL = VISION | {"model_type": "pixtral"}
GRANITE = {  # the factors of 3.x are far from 1, too
    "attention_multiplier": 0.2,
    "embedding_multiplier": 1.7,
    "logits_scaling": 0.6,
    "residual_multiplier": 0.8,
}
MINISTRAL3 = SIZES | {
    "head_dim": 16,
    "rope_parameters": YARN
    | {"original_max_position_embeddings": 8, "llama_4_scaling_beta": 0.5},
}
OLMO3 = SIZES | {
    "num_hidden_layers": 4,
    "sliding_window": 5,
    "rope_scaling": YARN | {"rope_theta": 5e5, "attention_factor": 0.7},
}

WRAPPERS = ("gemma3", "mistral3")  # of a text model and a vision tower

# every family at its simplest
CONFIGS = {
    "gemma": GEMMA,
    "gemma2": GEMMA2,
    "gemma3": {"text_config": GEMMA3, "vision_config": VISION},
    "gemma3_text": GEMMA3,
    "gpt2": GPT,
    "gpt_neox": NEOX,
    "gptj": GPT | {"rotary_dim": 4},
    "granite": SIZES | GRANITE,
    "llama": SIZES,
    "ministral3": MINISTRAL3,
    "mistral": SIZES | {"sliding_window": 5},
    "mistral3": {
        "text_config": MINISTRAL3 | {"model_type": "ministral3"},
        "vision_config": PIXTRAL,
        "tie_word_embeddings": True,
    },
    "mixtral": SIZES | {"num_local_experts": 5, "num_experts_per_tok": 2},
    "olmo2": SIZES,
    "olmo3": OLMO3,
    "olmoe": SIZES | {"num_experts": 6, "num_experts_per_tok": 3},
    "phi3": SIZES,
    "qwen2": SIZES,
    "qwen3": SIZES | {"head_dim": 16},
    "qwen3_moe": SIZES
    | {
        "head_dim": 16,
        "moe_intermediate_size": 12,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
    },
    "smollm3": SIZES | {"num_hidden_layers": 4},
}
CONFIGS = {name: {"model_type": name, **config} for name, config in CONFIGS.items()}

QWEN_WINDOWS = {
    "use_sliding_window": True,
    "sliding_window": 5,
    "max_window_layers": 1,
}
LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0, 1.5, 2.0],
    "long_factor": [2.0, 3.0, 5.0],
}

# {case: (family, what it adds)}
VARIANTS = {
    "gemma_legacy": ("gemma", {"hidden_act": "gelu", "hidden_activation": None}),
    "gemma_biased": (
        "gemma",
        {
            "attention_bias": True,
            "tie_word_embeddings": False,
            "num_key_value_heads": 1,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        },
    ),
    "gemma2_yarn": ("gemma2", {"rope_scaling": YARN, "attn_logit_softcapping": None}),
    "gemma3_linear": (
        "gemma3_text",
        {
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "final_logit_softcapping": 3.0,
            "sliding_window_pattern": 3,
        },
    ),
    "gpt2_wide": (
        "gpt2",
        {
            "n_inner": 40,
            "activation_function": "gelu",
            "tie_word_embeddings": False,
        },
    ),
    "gpt_neox_serial": (
        "gpt_neox",
        {
            "use_parallel_residual": False,
            "rotary_pct": 1.0,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        },
    ),
    "gpt_neox_unbiased": (
        "gpt_neox",
        {
            "attention_bias": False,
            "rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
            "max_position_embeddings": 16,
            "rotary_pct": 0.5,
        },
    ),
    "granite_tied": (
        "granite",
        {
            "tie_word_embeddings": True,
            "attention_bias": True,
            "mlp_bias": True,
            "attention_multiplier": 0.5,
        },
    ),
    "gptj_tied": ("gptj", {"tie_word_embeddings": True, "n_inner": 40}),
    "llama_biased": (
        "llama",
        {
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "head_dim": 16,
            "hidden_act": "gelu_pytorch_tanh",
            "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 32},
        },
    ),
    "llama_linear": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e3, "factor": 4.0}},
    ),
    "llama_dynamic": (
        "llama",
        {
            "rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
            "max_position_embeddings": 16,
        },
    ),
    "llama_yarn": (
        "llama",
        {"rope_scaling": YARN | {"attention_factor": 0.7, "truncate": False}},
    ),
    "mistral_full": ("mistral", {"sliding_window": None, "head_dim": 16}),
    "mistral_yarn": (
        "mistral",
        {"rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}},
    ),
    "mistral3_small": (
        "mistral3",
        {
            "text_config": SIZES | {"head_dim": 16, "sliding_window": 5},
            "tie_word_embeddings": False,
        },
    ),
    "olmo3_thetas": (
        "olmo3",
        {
            "rope_scaling": None,
            "rope_parameters": {
                "full_attention": YARN,
                "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
            },
            "attention_bias": True,
        },
    ),
    "olmo2_yarn": ("olmo2", {"rope_scaling": YARN, "attention_bias": True}),
    "phi3_longrope": (
        "phi3",
        {
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 16,
            "rope_scaling": LONGROPE,
            "sliding_window": 5,
            "tie_word_embeddings": True,
        },
    ),
    "phi3_short": (
        "phi3",
        {
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 48,
            "rope_scaling": LONGROPE,
        },
    ),
    "qwen2_yarn": (
        "qwen2",
        {"rope_scaling": YARN, "tie_word_embeddings": True, **QWEN_WINDOWS},
    ),
    "qwen3_yarn": (
        "qwen3",
        {
            "rope_scaling": YARN,
            "attention_bias": True,
            "num_hidden_layers": 3,
            **QWEN_WINDOWS,
        },
    ),
    "qwen3_moe_square": (  # 2·ff = width, and no weight sums to 1
        "qwen3_moe",
        {
            "moe_intermediate_size": 16,
            "num_experts": 4,
            "norm_topk_prob": False,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 5,
        },
    ),
    "smollm3_yarn": (
        "smollm3",
        {
            "rope_scaling": YARN,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
            "use_sliding_window": True,
            "sliding_window": 5,
        },
    ),
}
CASES = {name: (name, config) for name, config in CONFIGS.items()} | {
    name: (family, CONFIGS[family] | extra)
    for name, (family, extra) in VARIANTS.items()
}


def drawn(spec):
    """Draws parameters in NumPy: many small compilations are slower than the tests."""
    normal = np.random.default_rng(0).normal
    leaves = decoder.leaves(spec).items()
    return traverse_util.unflatten_dict(
        {path: normal(size=leaf.shape).astype(np.float32) for path, leaf in leaves},
        sep="/",
    )


def sequences():
    """Draws two sequences that share their first tokens; 0 may be a padding id."""
    tokens = np.random.default_rng(0).integers(1, 64, (2, LENGTH), np.int32)
    tokens[1, :PROMPT] = tokens[0, :PROMPT]
    return tokens


def forests():
    """Lays both sequences out: plain, padded, packed and with a shared prompt.

    Returns:
      A batch of 5 rows and, for each row, the (row tokens, sequence, its tokens) that
      must agree.
    """
    one, two = sequences()
    wide, tail = 2 * LENGTH + 2, LENGTH - PROMPT
    cells = np.zeros((5, wide, 4), np.int32)
    whole = np.arange(LENGTH)

    def put(row, start, tokens, positions, doc, branch):
        stop = start + len(tokens)
        cells[row, start:stop] = np.stack(
            [tokens, positions, 0 * tokens + doc, 0 * tokens + branch], axis=1
        )

    put(0, 0, one, whole, 1, 0)
    put(1, 0, two, whole, 1, 0)
    put(2, 0, one, whole, 1, 0)
    put(2, LENGTH, two, whole, 2, 0)
    put(3, 0, one[:PROMPT], whole[:PROMPT], 1, 0)
    put(3, PROMPT, one[PROMPT:], whole[PROMPT:], 1, 1)
    put(3, LENGTH, two[PROMPT:], whole[PROMPT:], 1, 2)
    put(3, LENGTH + tail, one[:7], whole[:7], 2, 0)
    put(4, 3, two, whole, 1, 0)  # padded on the left
    none = np.zeros((5, 0), np.int32)
    batch = Batch(*(cells[..., i] for i in range(4)), *[none] * 6)
    agree = [
        (0, slice(0, LENGTH), 0, slice(0, LENGTH)),
        (1, slice(0, LENGTH), 1, slice(0, LENGTH)),
        (2, slice(0, LENGTH), 0, slice(0, LENGTH)),
        (2, slice(LENGTH, 2 * LENGTH), 1, slice(0, LENGTH)),
        (3, slice(0, LENGTH), 0, slice(0, LENGTH)),
        (3, slice(LENGTH, LENGTH + tail), 1, slice(PROMPT, LENGTH)),
        (3, slice(LENGTH + tail, LENGTH + tail + 7), 0, slice(0, 7)),
        (4, slice(3, LENGTH + 3), 1, slice(0, LENGTH)),
    ]
    return batch, agree


def compiled(function, *args):
    """Runs a function that is compiled once and run once, so compiled in haste."""
    lowered = jax.jit(function).lower(*args)
    return lowered.compile(compiler_options={"xla_backend_optimization_level": 0})(
        *args
    )
