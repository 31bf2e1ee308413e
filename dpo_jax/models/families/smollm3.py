"""SmolLM 3: every fourth layer has no positions (1 and 2 are of `model_type` llama)."""

import dataclasses

from dpo_jax.models.families import llama_like
from dpo_jax.models.families.common import Config, Given
from dpo_jax.models.spec import DecoderSpec, Family

# max_window_layers and pretraining_tp are left from other dialects and read by nobody
KNOWN = llama_like.KNOWN | frozenset(
    """
    attention_bias head_dim layer_types max_window_layers mlp_bias
    no_rope_layer_interval no_rope_layers pretraining_tp sliding_window
    use_sliding_window
    """.split()
)


def _rope_layers(given: Given, layers: int) -> tuple[bool, ...]:
    """Reads which layers have positions (1) or not (0); () if all have."""
    every = given.size("no_rope_layer_interval", 4)
    flags = given.config.get("no_rope_layers")
    if flags is None:
        flags = [int((i + 1) % every != 0) for i in range(layers)]
    listed = isinstance(flags, list) and all(flag in (0, 1) for flag in flags)
    if not listed or len(flags) < layers:
        given.complaints.append(
            f"no_rope_layers={flags!r} must hold {layers} times 0 or 1"
        )
        return ()
    used = tuple(bool(flag) for flag in flags[:layers])
    return () if all(used) else used


def read(given: Given) -> DecoderSpec:
    """Reads a `config.json`."""
    spec = llama_like.read(given, theta=2e6, tie=True)
    used = _rope_layers(given, spec.layers)
    window = given.window(default=0)
    if not given.flag("use_sliding_window", False):
        window = 0
    windows = llama_like.windows(
        given, spec.layers, window, lambda i: bool(used) and not used[i]
    )
    return dataclasses.replace(spec, rope_layers=used, windows=windows)


def to_hf(spec: DecoderSpec) -> Config:
    """Writes the `config.json` that `read` reads back to `spec`."""
    assert spec.qkv_bias == spec.out_bias, spec
    used = spec.rope_layers or (True,) * spec.layers
    return llama_like.to_hf(spec, "SmolLM3ForCausalLM") | {
        "head_dim": spec.head_dim,
        "attention_bias": spec.qkv_bias,
        "mlp_bias": spec.mlp_bias,
        "no_rope_layers": [int(flag) for flag in used],
        "use_sliding_window": bool(spec.windows),
        "sliding_window": llama_like.one_window(spec),
        "layer_types": llama_like.layer_types(spec),
    }


TABLE = llama_like.table(*llama_like.LAYER)

FAMILY = Family(KNOWN, read, to_hf, TABLE, ignored=llama_like.IGNORED)
