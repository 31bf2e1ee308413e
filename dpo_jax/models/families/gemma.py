"""Gemma 1 and 2: norms that scale by 1 + w, embeddings multiplied by √width."""

import dataclasses

from dpo_jax.models.families import llama_like
from dpo_jax.models.families.common import Config, Given
from dpo_jax.models.spec import DecoderSpec, Family

# how the cache is laid out, hidden_act of the later ones: read by nobody
KNOWN_1 = llama_like.KNOWN | frozenset(
    "attention_bias cache_implementation head_dim hidden_activation".split()
)
KNOWN_2 = KNOWN_1 | frozenset(
    """
    attn_logit_softcapping final_logit_softcapping layer_types query_pre_attn_scalar
    sliding_window
    """.split()
)


def read(given: Given, activation: str, theta: float = 1e4) -> DecoderSpec:
    """Reads what all Gemmas have; arguments as `llama_like.read`'s."""
    config = {activation: "gelu_pytorch_tanh"} | given.config
    spec = llama_like.read(
        given._replace(config=config),
        head_dim=256,
        theta=theta,
        tie=True,
        activation=activation,
    )
    scale = spec.width**0.5
    return dataclasses.replace(spec, norm="rms_plus_one", embed_scale=scale)


def softcap(given: Given, name: str, default: float) -> float:
    """Reads the bound of some logits; null = none."""
    if given.config.get(name, default) in (None, 0):
        return 0.0
    return given.real(name, default)


def query_scale(given: Given) -> float:
    """Reads what attention logits are multiplied by."""
    return given.size("query_pre_attn_scalar", 256) ** -0.5


def to_hf(spec: DecoderSpec, architecture: str) -> Config:
    """Writes what `read` reads."""
    assert spec.qkv_bias == spec.out_bias, spec
    config = llama_like.to_hf(spec, architecture)
    return config | {
        "attention_bias": spec.qkv_bias,
        "head_dim": spec.head_dim,
        "hidden_activation": config["hidden_act"],
    }


def sandwich_to_hf(spec: DecoderSpec) -> Config:
    """Writes what Gemma 2 and 3 have more."""
    scalar = round(spec.attn_scale**-2)
    assert scalar**-0.5 == spec.attn_scale, spec.attn_scale
    window = llama_like.one_window(spec)
    return {
        "query_pre_attn_scalar": scalar,
        "final_logit_softcapping": spec.final_softcap or None,
        "sliding_window": spec.max_positions if window is None else window,
        "layer_types": llama_like.layer_types(spec),
    }


def read_1(given: Given) -> DecoderSpec:
    """Reads a `config.json` of `model_type` gemma.

    The first release wrote `gelu` where it meant its tanh approximation.
    """
    names = ("hidden_act", "hidden_activation")
    stated = ((name, given.config.get(name)) for name in names)
    meant = {
        name: "gelu_pytorch_tanh" if value == "gelu" else value
        for name, value in stated
        if value is not None
    }
    if len(set(map(str, meant.values()))) > 1:
        given.complaints.append(f"{meant} contradict each other; keep one")
    activation = "hidden_act" if "hidden_act" in meant else "hidden_activation"
    rest = {name: x for name, x in given.config.items() if name not in names}
    return read(given._replace(config=rest | meant), activation)


def read_2(given: Given) -> DecoderSpec:
    """Reads a `config.json` of `model_type` gemma2."""
    spec = read(given, "hidden_activation")
    window = given.window(default=4096)
    return dataclasses.replace(
        spec,
        layout="sandwich",
        attn_scale=query_scale(given),
        attn_softcap=softcap(given, "attn_logit_softcapping", 50.0),
        final_softcap=softcap(given, "final_logit_softcapping", 30.0),
        windows=llama_like.windows(given, spec.layers, window, lambda i: i % 2 == 0),
    )


def to_hf_1(spec: DecoderSpec) -> Config:
    """Writes the `config.json` that `read_1` reads back to `spec`."""
    return to_hf(spec, "GemmaForCausalLM")


def to_hf_2(spec: DecoderSpec) -> Config:
    """Writes the `config.json` that `read_2` reads back to `spec`."""
    config = to_hf(spec, "Gemma2ForCausalLM") | sandwich_to_hf(spec)
    return config | {"attn_logit_softcapping": spec.attn_softcap or None}


SANDWICH_NORMS = llama_like.norms(
    {
        "input_layernorm": "norm1",
        "post_attention_layernorm": "norm2",
        "pre_feedforward_layernorm": "norm3",
        "post_feedforward_layernorm": "norm4",
    }
)

TABLE_1 = llama_like.table(*llama_like.LAYER)
TABLE_2 = llama_like.table(
    *SANDWICH_NORMS,
    *llama_like.ATTENTION,
    *llama_like.MLP,
)

GEMMA = Family(KNOWN_1, read_1, to_hf_1, TABLE_1, ignored=llama_like.IGNORED)
GEMMA2 = Family(
    KNOWN_2 | {"hidden_act"},
    read_2,
    to_hf_2,
    TABLE_2,
    ignored=llama_like.IGNORED,
    left={"sliding_window_size": "google/gemma-2-9b, beside sliding_window"},
)
