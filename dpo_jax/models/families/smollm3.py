"""SmolLM 3: every fourth layer has no positions (1 and 2 are of `model_type` llama)."""

import dataclasses

from dpo_jax import errors
from dpo_jax.models.families import common, llama_like
from dpo_jax.models.spec import DecoderSpec, Family

# max_window_layers and pretraining_tp are left from other dialects and read by nobody
KNOWN = llama_like.KNOWN | frozenset(
    """
    attention_bias head_dim layer_types max_window_layers mlp_bias
    no_rope_layer_interval no_rope_layers pretraining_tp sliding_window
    use_sliding_window
    """.split()
)


def _rope_layers(
    config: common.Config, complaints: list[str], layers: int
) -> tuple[bool, ...]:
    """Reads which layers have positions (1) or not (0); () if all have."""
    every = common.number(config, "no_rope_layer_interval", int, complaints, default=4)
    flags = config.get("no_rope_layers")
    if flags is None:
        flags = [int((i + 1) % every != 0) for i in range(layers)]
    listed = isinstance(flags, list) and all(flag in (0, 1) for flag in flags)
    if not listed or len(flags) < layers:
        complaints.append(f"no_rope_layers={flags!r} must hold {layers} times 0 or 1")
        return ()
    used = tuple(bool(flag) for flag in flags[:layers])
    return () if all(used) else used


def from_hf(config: common.Config) -> DecoderSpec:
    """Reads a `config.json` of `model_type` smollm3.

    Raises:
      ModelError: naming every attribute that is missing, malformed or not known.
    """
    with errors.collected(errors.ModelError) as complaints:
        common.refuse_unknown(config, KNOWN, complaints)
        spec = llama_like.read(
            config, complaints, model_type="smollm3", theta=2e6, tie=True
        )
        bias = common.boolean(config, "attention_bias", complaints, default=False)
        used = _rope_layers(config, complaints, spec.layers)
        window = common.window(config, complaints, default=0)
        if not common.boolean(config, "use_sliding_window", complaints, default=False):
            window = 0
        windows = llama_like.windows(
            config,
            complaints,
            layers=spec.layers,
            window=window,
            slides=lambda i: bool(used) and not used[i],
        )
        spec = dataclasses.replace(
            spec,
            qkv_bias=bias,
            out_bias=bias,
            mlp_bias=common.boolean(config, "mlp_bias", complaints, default=False),
            rope_layers=used,
            windows=windows,
        )
    return spec


def to_hf(spec: DecoderSpec) -> common.Config:
    """Writes the `config.json` that `from_hf` reads back to `spec`."""
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

FAMILY = Family(from_hf, to_hf, TABLE, ignored=llama_like.IGNORED)
