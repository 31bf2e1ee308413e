"""Gemma 3: five windowed layers with a short rope to one full layer with a long one.

`gemma3_text` is the text model; `gemma3` wraps it with a vision tower, whose weights
are carried from folder to folder and never computed with. Published files leave out
what transformers has as a default, so those defaults are written here.
"""

import dataclasses

from dpo_jax.models.families import gemma, llama_like, rope, wrapper
from dpo_jax.models.families.common import Config, Given
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


def read_text(given: Given) -> DecoderSpec:
    """Reads a `config.json` of `model_type` gemma3_text."""
    stated = {k: v for k, v in given.config.items() if v is not None}
    given = given._replace(config=DEFAULTS | stated)
    plain, local = rope.of_both(given, local=1e4)
    spec = gemma.read(given._replace(config=plain), "hidden_activation", theta=1e6)
    older = given.config.get("_sliding_window_pattern")
    pattern = {"sliding_window_pattern": stated.get("sliding_window_pattern", older)}
    every = given._replace(config=pattern).size("sliding_window_pattern", 6)
    window = given.window(default=4096)
    return dataclasses.replace(
        spec,
        layout="sandwich",
        qk_norm="head",
        attn_scale=gemma.query_scale(given),
        final_softcap=gemma.softcap(given, "final_logit_softcapping", 0.0),
        rope_theta_local=local,
        windows=llama_like.windows(
            given, spec.layers, window, lambda i: (i + 1) % every != 0
        ),
    )


def read(given: Given) -> DecoderSpec:
    """Reads the text model of a `config.json` of `model_type` gemma3."""
    text = wrapper.text_of(given)
    text.refuse_unknown(KNOWN)
    return read_text(text._replace(config=text.config | {"model_type": "gemma3"}))


def to_hf_text(spec: DecoderSpec) -> Config:
    """Writes the `config.json` that `read_text` reads back to `spec`."""
    config = gemma.to_hf(spec, "Gemma3ForCausalLM") | gemma.sandwich_to_hf(spec)
    return config | {"rope_local_base_freq": spec.rope_theta_local}


def to_hf(spec: DecoderSpec) -> Config:
    """Writes the `config.json` that `read` reads back to `spec`, without vision."""
    text = to_hf_text(dataclasses.replace(spec, model_type="gemma3_text"))
    return wrapper.to_hf(text, spec, "Gemma3ForConditionalGeneration")


TABLE_TEXT = (*gemma.TABLE_2, *llama_like.QK_NORMS)

GEMMA3_TEXT = Family(
    KNOWN, read_text, to_hf_text, TABLE_TEXT, ignored=llama_like.IGNORED
)
GEMMA3 = wrapper.family(
    KNOWN_WRAPPER,
    read,
    to_hf,
    TABLE_TEXT,
    {f"{name}_token_id": f"{name}_token_index" for name in ("boi", "eoi", "image")},
)
