"""Ministral 3: Mistral with yarn, and queries that grow with their position.

`ministral3` is the text model; `mistral3`, as it is published, wraps it (or, in Mistral
Small 3, a plain Mistral) with a vision tower, whose weights are carried from folder to
folder and never computed with.
"""

import dataclasses

from dpo_jax import errors
from dpo_jax.models.families import llama_like, mistral, rope, wrapper
from dpo_jax.models.families.common import Config, Given
from dpo_jax.models.spec import DecoderSpec, Family

BETA = "llama_4_scaling_beta"
DEFAULTS = {  # of the text model, where a file leaves them out
    "head_dim": 128,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 16.0,
        rope.ORIGINAL: 16_384,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        BETA: 0.1,
    },
}
KNOWN_WRAPPER = frozenset(  # the vision tower and the id of its token
    """
    image_token_index multimodal_projector_bias projector_hidden_act spatial_merge_size
    text_config tie_word_embeddings vision_config vision_feature_layer
    """.split()
)


def read_text(given: Given) -> DecoderSpec:
    """Reads a `config.json` of `model_type` ministral3."""
    stated = {k: v for k, v in given.config.items() if v is not None}
    old = {"rope_parameters": None} if stated.get("rope_scaling") else {}
    given = given._replace(config=DEFAULTS | old | stated)
    settings = rope.settings_of(given).config
    longest = settings.pop("max_position_embeddings", None)
    if longest not in (None, stated.get("max_position_embeddings")):
        given.complaints.append(
            f"max_position_embeddings={longest} of the rope contradicts the config's"
        )
    beta = given._replace(config={BETA: settings.pop(BETA, None)}).real(BETA)
    plain = {"rope_parameters": settings, "rope_scaling": None}
    window = {"sliding_window": given.config.get("sliding_window")}
    spec = mistral.read(given._replace(config=given.config | plain | window))
    return dataclasses.replace(spec, query_beta=beta)


def to_hf_text(spec: DecoderSpec) -> Config:
    """Writes the `config.json` that `read_text` reads back to `spec`."""
    config = mistral.to_hf(spec) | {"architectures": ["Ministral3ForCausalLM"]}
    del config["rope_scaling"], config["rope_theta"]
    settings = rope.one_to_hf(spec.rope_theta, spec.rope_scaling)
    return config | {"rope_parameters": settings | {BETA: spec.query_beta}}


TEXTS = {
    "ministral3": (mistral.KNOWN, read_text, to_hf_text),
    "mistral": (mistral.KNOWN, mistral.read, mistral.to_hf),
}


def read(given: Given) -> DecoderSpec:
    """Reads the text model of a `config.json` of `model_type` mistral3."""
    text = wrapper.text_of(given)
    kind = str(text.config.get("model_type", "mistral"))
    if kind not in TEXTS:
        unknown = errors.unknown("text_config.model_type", kind, TEXTS)
        given.complaints.append(unknown)
    known, read_kind, _ = TEXTS.get(kind, TEXTS["mistral"])
    text.refuse_unknown(known)
    return read_kind(text._replace(config=text.config | {"model_type": "mistral3"}))


def to_hf(spec: DecoderSpec) -> Config:
    """Writes the `config.json` that `read` reads back to `spec`, without vision."""
    kind = "ministral3" if spec.query_beta else "mistral"
    text = TEXTS[kind][2](dataclasses.replace(spec, model_type=kind))
    return wrapper.to_hf(text, spec, "Mistral3ForConditionalGeneration")


MINISTRAL3 = Family(
    mistral.KNOWN, read_text, to_hf_text, mistral.TABLE, ignored=llama_like.IGNORED
)
MISTRAL3 = wrapper.family(
    KNOWN_WRAPPER,
    read,
    to_hf,
    mistral.TABLE,
    {"image_token_id": "image_token_index"},
)
