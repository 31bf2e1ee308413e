"""Qwen 2, 2.5 (biased queries, keys and values) and 3 (norms on queries and keys)."""

import dataclasses

from dpo_jax import errors
from dpo_jax.models.families import common, llama_like
from dpo_jax.models.spec import DecoderSpec, Family

KNOWN_2 = llama_like.KNOWN | frozenset(
    "head_dim layer_types max_window_layers sliding_window use_sliding_window".split()
)
KNOWN_3 = KNOWN_2 | {"attention_bias"}


def _windows(
    config: common.Config, complaints: list[str], layers: int
) -> tuple[int, ...]:
    """Reads the windows: those of the later layers, and only if switched on."""
    window = common.window(config, complaints, default=4096)
    if not common.boolean(config, "use_sliding_window", complaints, default=False):
        window = 0
    full = config.get("max_window_layers", 28)
    if not isinstance(full, int) or isinstance(full, bool) or full < 0:
        complaints.append(f"max_window_layers={full!r} must be an int of at least 0")
        full = 0
    return llama_like.windows(
        config, complaints, layers=layers, window=window, slides=lambda i: i >= full
    )


def _windows_to_hf(spec: DecoderSpec) -> common.Config:
    """Writes what `_windows` reads."""
    return {
        "use_sliding_window": bool(spec.windows),
        "sliding_window": llama_like.one_window(spec),
        "layer_types": llama_like.layer_types(spec),
        "max_window_layers": next(
            (i for i, window in enumerate(spec.windows) if window), spec.layers
        ),
    }


def from_hf_2(config: common.Config) -> DecoderSpec:
    """Reads a `config.json` of `model_type` qwen2.

    Raises:
      ModelError: naming every attribute that is missing, malformed or not known.
    """
    with errors.collected(errors.ModelError) as complaints:
        common.refuse_unknown(config, KNOWN_2, complaints)
        spec = llama_like.read(config, complaints, model_type="qwen2")
        windows = _windows(config, complaints, spec.layers)
        spec = dataclasses.replace(spec, qkv_bias=True, windows=windows)
    return spec


def from_hf_3(config: common.Config) -> DecoderSpec:
    """Reads a `config.json` of `model_type` qwen3; raises as `from_hf_2`."""
    with errors.collected(errors.ModelError) as complaints:
        common.refuse_unknown(config, KNOWN_3, complaints)
        spec = llama_like.read(config, complaints, model_type="qwen3", head_dim=128)
        bias = common.boolean(config, "attention_bias", complaints, default=False)
        spec = dataclasses.replace(
            spec,
            qk_norm="head",
            qkv_bias=bias,
            out_bias=bias,
            windows=_windows(config, complaints, spec.layers),
        )
    return spec


def to_hf_2(spec: DecoderSpec) -> common.Config:
    """Writes the `config.json` that `from_hf_2` reads back to `spec`."""
    assert spec.qkv_bias and not spec.out_bias, spec
    config = llama_like.to_hf(spec, "Qwen2ForCausalLM") | _windows_to_hf(spec)
    return config | {"head_dim": spec.head_dim}


def to_hf_3(spec: DecoderSpec) -> common.Config:
    """Writes the `config.json` that `from_hf_3` reads back to `spec`."""
    assert spec.qkv_bias == spec.out_bias, spec
    config = llama_like.to_hf(spec, "Qwen3ForCausalLM") | _windows_to_hf(spec)
    return config | {"head_dim": spec.head_dim, "attention_bias": spec.qkv_bias}


TABLE_2 = llama_like.table(*llama_like.LAYER)

QWEN2 = Family(from_hf_2, to_hf_2, TABLE_2, ignored=llama_like.IGNORED)
QWEN3 = Family(
    from_hf_3,
    to_hf_3,
    llama_like.table(*llama_like.LAYER, *llama_like.QK_NORMS),
    ignored=llama_like.IGNORED,
)
