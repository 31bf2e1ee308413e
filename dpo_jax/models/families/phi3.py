"""Phi-3, 3.5, 4 and 4-mini: fused projections, factors searched for long texts."""

import dataclasses

from dpo_jax.models.families import llama_like, rope
from dpo_jax.models.families.common import Config, Given
from dpo_jax.models.families.rope import ORIGINAL
from dpo_jax.models.spec import DecoderSpec, Family, Row

LONGROPE = ("longrope", "su", "yarn")  # what it has been called

# What the hub's files say of features that their code has and that are off.
FIXED = {"full_attn_mod": 1, "interpolate_factor": 1}

KNOWN = llama_like.KNOWN | {*FIXED, ORIGINAL, "partial_rotary_factor"}
KNOWN |= {"embd_pdrop", "resid_pdrop", "sliding_window"}


def _plain(config: Config) -> Config:
    """Returns the config with its rope settings as other dialects write them.

    The original context stands beside the settings and beats what they say.
    """
    name = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    settings = config.get(name)
    if not isinstance(settings, dict):
        return config
    settings = dict(settings)
    kind = settings.pop("type", None)
    kind = settings.pop("rope_type", None) or kind or "default"
    settings["rope_type"] = "longrope" if kind in LONGROPE else kind
    settings.pop(ORIGINAL, None)
    if kind in LONGROPE:
        settings[ORIGINAL] = config.get(ORIGINAL, 4096)
    return config | {name: settings}


def read(given: Given) -> DecoderSpec:
    """Reads a `config.json`."""
    given.only(FIXED)
    spec = llama_like.read(given._replace(config=_plain(given.config)), share=1.0)
    if spec.rope_scaling and spec.rope_scaling.kind != "longrope":
        kind = spec.rope_scaling.kind
        given.complaints.append(f"rope_type={kind!r} is not one of phi3; use longrope")
    window = given.window(default=0)
    return dataclasses.replace(spec, windows=(window,) * spec.layers if window else ())


def to_hf(spec: DecoderSpec) -> Config:
    """Writes the `config.json` that `read` reads back to `spec`."""
    assert spec.head_dim * spec.heads == spec.width, spec
    config = llama_like.to_hf(spec, "Phi3ForCausalLM") | {
        "partial_rotary_factor": (spec.rope_dim or spec.head_dim) / spec.head_dim,
        "sliding_window": llama_like.one_window(spec),
    }
    original = spec.max_positions
    if spec.rope_scaling:
        original = spec.rope_scaling.original_max_positions
        settings = dict(rope.to_hf(spec.rope_theta, spec.rope_scaling)["rope_scaling"])
        settings.pop(ORIGINAL)
        config["rope_scaling"] = settings
    return config | {ORIGINAL: original}


_QKV = ("layers/attn/q/kernel", "layers/attn/k/kernel", "layers/attn/v/kernel")
_GATE_UP = ("layers/mlp/gate/kernel", "layers/mlp/up/kernel")

TABLE = llama_like.table(
    *llama_like.PRE_NORMS,
    Row("model.layers.{i}.self_attn.qkv_proj.weight", _QKV, "rows"),
    llama_like.linear("self_attn.o_proj", "attn/o")[0],
    Row("model.layers.{i}.mlp.gate_up_proj.weight", _GATE_UP, "rows"),
    llama_like.linear("mlp.down_proj", "mlp/down")[0],
)

FAMILY = Family(
    KNOWN,
    read,
    to_hf,
    TABLE,
    ignored=llama_like.IGNORED,
    native_code=(
        "configuration_phi3.Phi3Config",
        "modeling_phi3.Phi3ForCausalLM",
        "Xenova/gpt-4o",
    ),
)
