"""Gemma 1 and 2: norms that scale by 1 + w, embeddings multiplied by √width."""

import dataclasses

from dpo_jax import errors
from dpo_jax.models.families import common, llama_like
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


def read(
    config: common.Config,
    complaints: list[str],
    *,
    model_type: str,
    activation: str,
    theta: float = 1e4,
) -> DecoderSpec:
    """Reads what all Gemmas have; arguments as `llama_like.read`'s."""
    spec = llama_like.read(
        {activation: "gelu_pytorch_tanh"} | config,
        complaints,
        model_type=model_type,
        head_dim=256,
        theta=theta,
        tie=True,
        activation=activation,
    )
    bias = common.boolean(config, "attention_bias", complaints, default=False)
    return dataclasses.replace(
        spec,
        norm="rms_plus_one",
        embed_scale=True,
        qkv_bias=bias,
        out_bias=bias,
    )


def softcap(
    config: common.Config, name: str, complaints: list[str], *, default: float
) -> float:
    """Reads the bound of some logits; null = none."""
    if config.get(name, default) in (None, 0):
        return 0.0
    return common.number(config, name, float, complaints, default=default)


def query_scale(config: common.Config, complaints: list[str]) -> float:
    """Reads what attention logits are multiplied by."""
    name = "query_pre_attn_scalar"
    return common.number(config, name, int, complaints, default=256) ** -0.5


def to_hf(spec: DecoderSpec, architecture: str) -> common.Config:
    """Writes what `read` reads."""
    assert spec.qkv_bias == spec.out_bias, spec
    config = llama_like.to_hf(spec, architecture)
    return config | {
        "attention_bias": spec.qkv_bias,
        "head_dim": spec.head_dim,
        "hidden_activation": config["hidden_act"],
    }


def sandwich_to_hf(spec: DecoderSpec) -> common.Config:
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


def from_hf_1(config: common.Config) -> DecoderSpec:
    """Reads a `config.json` of `model_type` gemma.

    The first release wrote `gelu` where it meant its tanh approximation.

    Raises:
      ModelError: naming every attribute that is missing, malformed or not known.
    """
    with errors.collected(errors.ModelError) as complaints:
        common.refuse_unknown(config, KNOWN_1, complaints)
        names = ("hidden_act", "hidden_activation")
        meant = {
            name: "gelu_pytorch_tanh" if config[name] == "gelu" else config[name]
            for name in names
            if config.get(name) is not None
        }
        if len(set(map(str, meant.values()))) > 1:
            complaints.append(f"{meant} contradict each other; keep one")
        activation = "hidden_act" if "hidden_act" in meant else "hidden_activation"
        rest = {name: x for name, x in config.items() if name not in names}
        spec = read(rest | meant, complaints, model_type="gemma", activation=activation)
    return spec


def from_hf_2(config: common.Config) -> DecoderSpec:
    """Reads a `config.json` of `model_type` gemma2; raises as `from_hf_1`."""
    with errors.collected(errors.ModelError) as complaints:
        common.refuse_unknown(config, KNOWN_2 | {"hidden_act"}, complaints)
        spec = read(
            config, complaints, model_type="gemma2", activation="hidden_activation"
        )
        spec = dataclasses.replace(
            spec,
            layout="sandwich",
            attn_scale=query_scale(config, complaints),
            attn_softcap=softcap(
                config, "attn_logit_softcapping", complaints, default=50.0
            ),
            final_softcap=softcap(
                config, "final_logit_softcapping", complaints, default=30.0
            ),
            windows=llama_like.windows(
                config,
                complaints,
                layers=spec.layers,
                window=common.window(config, complaints, default=4096),
                slides=lambda i: i % 2 == 0,
            ),
        )
    return spec


def to_hf_1(spec: DecoderSpec) -> common.Config:
    """Writes the `config.json` that `from_hf_1` reads back to `spec`."""
    return to_hf(spec, "GemmaForCausalLM")


def to_hf_2(spec: DecoderSpec) -> common.Config:
    """Writes the `config.json` that `from_hf_2` reads back to `spec`."""
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

GEMMA = Family(from_hf_1, to_hf_1, TABLE_1, ignored=llama_like.IGNORED)
GEMMA2 = Family(from_hf_2, to_hf_2, TABLE_2, ignored=llama_like.IGNORED)
