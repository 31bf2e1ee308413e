"""Gemma 3: five windowed layers with a short rope to one full layer with a long one.

`gemma3_text` is the text model; `gemma3` wraps it with a vision tower, whose weights
are carried from folder to folder and never computed with. Published files leave out
what transformers has as a default, so those defaults are written here.
"""

import dataclasses

from dpo_jax import errors
from dpo_jax.models.families import common, gemma, llama_like, rope
from dpo_jax.models.spec import DecoderSpec, Family

DEFAULTS = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
}

# transformers reads attn_logit_softcapping and does not compute with it
KNOWN = (gemma.KNOWN_2 - {"attn_logit_softcapping"}) | frozenset(
    """
    _sliding_window_pattern hidden_act rope_local_base_freq sliding_window_pattern
    """.split()
)

# of the wrapper: the vision tower and the ids of its tokens
KNOWN_WRAPPER = frozenset(
    """
    boi_token_index eoi_token_index image_token_index mm_tokens_per_image text_config
    tie_word_embeddings vision_config
    """.split()
)


def _ropes(config: common.Config, complaints: list[str]) -> tuple[common.Config, float]:
    """Splits the settings of both ropes.

    Returns:
      The config with the long rope as other dialects write it, and the short theta.
    """
    both = config.get("rope_parameters")
    names = ("full_attention", "sliding_attention")
    outer = {"rope_local_base_freq": config.get("rope_local_base_freq")}
    if not isinstance(both, dict) or not set(both) & set(names):
        return config, rope.one_of(outer, complaints, default=1e4)
    common.refuse_unknown(both, names, complaints)
    full, sliding = (dict(both.get(name) or {}) for name in names)
    inner = {
        "rope_parameters.sliding_attention.rope_theta": sliding.pop("rope_theta", 0)
    }
    if rope.scaling_of(sliding, complaints, max_positions=1) is not None:
        complaints.append(f"sliding_attention must not be scaled: {sliding}")
    local = rope.one_of(inner | outer, complaints, default=1e4)
    return config | {"rope_parameters": full}, local


def read(config: common.Config, complaints: list[str]) -> DecoderSpec:
    """Reads the text model."""
    config = DEFAULTS | {k: v for k, v in config.items() if v is not None}
    common.refuse_unknown(config, KNOWN, complaints)
    plain, local = _ropes(config, complaints)
    spec = gemma.read(
        plain,
        complaints,
        model_type="gemma3_text",
        activation="hidden_activation",
        theta=1e6,
    )
    older = config.get("_sliding_window_pattern")
    pattern = {"sliding_window_pattern": config.get("sliding_window_pattern", older)}
    every = common.number(pattern, "sliding_window_pattern", int, complaints, default=6)
    cap = gemma.softcap(config, "final_logit_softcapping", complaints, default=0.0)
    return dataclasses.replace(
        spec,
        layout="sandwich",
        qk_norm="head",
        attn_scale=gemma.query_scale(config, complaints),
        final_softcap=cap,
        rope_theta_local=local,
        windows=llama_like.windows(
            config,
            complaints,
            layers=spec.layers,
            window=common.window(config, complaints, default=4096),
            slides=lambda i: (i + 1) % every != 0,
        ),
    )


def from_hf_text(config: common.Config) -> DecoderSpec:
    """Reads a `config.json` of `model_type` gemma3_text.

    Raises:
      ModelError: naming every attribute that is missing, malformed or not known.
    """
    with errors.collected(errors.ModelError) as complaints:
        spec = read(config, complaints)
    return spec


def from_hf(config: common.Config) -> DecoderSpec:
    """Reads the text model of a `config.json` of `model_type` gemma3.

    Raises:
      ModelError: naming every attribute that is missing, malformed or not known.
    """
    with errors.collected(errors.ModelError) as complaints:
        common.refuse_unknown(config, KNOWN_WRAPPER, complaints)
        text = config.get("text_config")
        if not isinstance(text, dict):
            complaints.append(f"text_config={text!r} must be an object")
            text = {}
        tie = config.get("tie_word_embeddings")  # the wrapper's, which owns the head
        text = text if tie is None else text | {"tie_word_embeddings": tie}
        spec = dataclasses.replace(read(text, complaints), model_type="gemma3")
    return spec


def to_hf_text(spec: DecoderSpec) -> common.Config:
    """Writes the `config.json` that `from_hf_text` reads back to `spec`."""
    config = gemma.to_hf(spec, "Gemma3ForCausalLM") | gemma.sandwich_to_hf(spec)
    return config | {"rope_local_base_freq": spec.rope_theta_local}


def to_hf(spec: DecoderSpec) -> common.Config:
    """Writes the `config.json` that `from_hf` reads back to `spec`, without vision."""
    text = to_hf_text(dataclasses.replace(spec, model_type="gemma3_text"))
    del text["architectures"]
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": text,
        "tie_word_embeddings": spec.tie,
    }


TABLE_TEXT = (*gemma.TABLE_2, *llama_like.QK_NORMS)
TABLE = tuple(row._replace(name=f"language_model.{row.name}") for row in TABLE_TEXT)

GEMMA3_TEXT = Family(from_hf_text, to_hf_text, TABLE_TEXT, ignored=llama_like.IGNORED)
GEMMA3 = Family(
    from_hf,
    to_hf,
    TABLE,
    ignored=llama_like.IGNORED,
    spellings=(
        ("language_model.model.", "model.language_model.", "language_model."),
        ("language_model.lm_head.", "lm_head."),
    ),
    carried=(r"(model\.)?(vision_tower|multi_modal_projector)\..*",),
)
