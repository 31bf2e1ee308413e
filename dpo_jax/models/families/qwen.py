"""Qwen 2, 2.5 (biased queries, keys, values) and 3 (normed queries, keys; experts)."""

import dataclasses

from dpo_jax.models.families import llama_like, mixture
from dpo_jax.models.families.common import Config, Given
from dpo_jax.models.spec import DecoderSpec, Family

KNOWN_2 = llama_like.KNOWN | frozenset(
    "head_dim layer_types max_window_layers sliding_window use_sliding_window".split()
)
KNOWN_3 = KNOWN_2 | {"attention_bias"}
# max_window_layers is left from the dense ones and read by nobody
KNOWN_3_MOE = (KNOWN_3 - {"layer_types"} | mixture.KNOWN) | frozenset(
    "decoder_sparse_step mlp_only_layers moe_intermediate_size norm_topk_prob".split()
)


def _windows(given: Given, layers: int) -> tuple[int, ...]:
    """Reads the windows: those of the later layers, and only if switched on."""
    window = given.window(default=4096)
    if not given.flag("use_sliding_window", False):
        window = 0
    full = given.config.get("max_window_layers", 28)
    if not isinstance(full, int) or isinstance(full, bool) or full < 0:
        given.complaints.append(
            f"max_window_layers={full!r} must be an int of at least 0"
        )
        full = 0
    return llama_like.windows(given, layers, window, lambda i: i >= full)


def _windows_to_hf(spec: DecoderSpec) -> Config:
    """Writes what `_windows` reads."""
    return {
        "use_sliding_window": bool(spec.windows),
        "sliding_window": llama_like.one_window(spec),
        "layer_types": llama_like.layer_types(spec),
        "max_window_layers": next(
            (i for i, window in enumerate(spec.windows) if window), spec.layers
        ),
    }


def read_2(given: Given) -> DecoderSpec:
    """Reads a `config.json` of `model_type` qwen2."""
    spec = llama_like.read(given)
    windows = _windows(given, spec.layers)
    return dataclasses.replace(spec, qkv_bias=True, windows=windows)


def read_3(given: Given) -> DecoderSpec:
    """Reads a `config.json` of `model_type` qwen3."""
    spec = llama_like.read(given, head_dim=128)
    windows = _windows(given, spec.layers)
    return dataclasses.replace(spec, qk_norm="head", windows=windows)


def read_3_moe(given: Given) -> DecoderSpec:
    """Reads a `config.json` of `model_type` qwen3_moe, every layer of it a mixture."""
    given.only({"decoder_sparse_step": 1, "mlp_only_layers": []})
    given.size("intermediate_size", 1)  # of layers without experts: there is none
    ff = given.size("moe_intermediate_size", 768)
    given = given._replace(config=given.config | {"intermediate_size": ff})
    spec = llama_like.read(given, head_dim=128)
    window = given.window(default=4096)
    if not given.flag("use_sliding_window", False):
        window = 0
    windows = (window,) * spec.layers if window else ()
    spec = dataclasses.replace(spec, qk_norm="head", windows=windows)
    normed = given.flag("norm_topk_prob", False)
    return mixture.read(given, spec, experts=128, picked=8, normed=normed)


def to_hf_2(spec: DecoderSpec) -> Config:
    """Writes the `config.json` that `read_2` reads back to `spec`."""
    assert spec.qkv_bias and not spec.out_bias, spec
    config = llama_like.to_hf(spec, "Qwen2ForCausalLM") | _windows_to_hf(spec)
    return config | {"head_dim": spec.head_dim}


def to_hf_3(spec: DecoderSpec) -> Config:
    """Writes the `config.json` that `read_3` reads back to `spec`."""
    assert spec.qkv_bias == spec.out_bias, spec
    config = llama_like.to_hf(spec, "Qwen3ForCausalLM") | _windows_to_hf(spec)
    return config | {"head_dim": spec.head_dim, "attention_bias": spec.qkv_bias}


def to_hf_3_moe(spec: DecoderSpec) -> Config:
    """Writes the `config.json` that `read_3_moe` reads back to `spec`."""
    config = to_hf_3(spec) | mixture.to_hf(spec)
    del config["layer_types"], config["max_window_layers"]
    return config | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "moe_intermediate_size": spec.ff,
        "norm_topk_prob": spec.norm_expert_weights,
    }


TABLE_2 = llama_like.table(*llama_like.LAYER)

QWEN2 = Family(KNOWN_2, read_2, to_hf_2, TABLE_2, ignored=llama_like.IGNORED)
QWEN3 = Family(
    KNOWN_3,
    read_3,
    to_hf_3,
    llama_like.table(*llama_like.LAYER, *llama_like.QK_NORMS),
    ignored=llama_like.IGNORED,
    # llama.cpp's word; transformers reads attention_factor
    left={"attn_factor": "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B"},
)
QWEN3_MOE = Family(
    KNOWN_3_MOE,
    read_3_moe,
    to_hf_3_moe,
    llama_like.table(*mixture.ATTENTION, *llama_like.QK_NORMS, *mixture.MLP),
    ignored=llama_like.IGNORED,
)
