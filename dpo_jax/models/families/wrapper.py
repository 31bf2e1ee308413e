"""What folders share that wrap a text model with a vision tower.

The tower's weights are carried from folder to folder and never computed with.
"""

from collections.abc import Callable, Collection, Mapping

from dpo_jax.models.families import llama_like
from dpo_jax.models.families.common import Config, Given
from dpo_jax.models.spec import DecoderSpec, Family, Row

SPELLINGS = (  # of the text model
    ("language_model.model.", "model.language_model.", "language_model."),
    ("language_model.lm_head.", "lm_head."),
)
TOWERS = (r"(model\.)?(vision_tower|multi_modal_projector)\..*",)


def text_of(given: Given) -> Given:
    """Reads what a `config.json` says of its text model.

    The wrapper's `tie_word_embeddings` counts, as it owns the head.
    """
    text = given.config.get("text_config")
    if not isinstance(text, dict):
        given.complaints.append(f"text_config={text!r} must be an object")
        text = {}
    tie = given.config.get("tie_word_embeddings")
    text = text if tie is None else text | {"tie_word_embeddings": tie}
    return given._replace(config=text)


def to_hf(text: Config, spec: DecoderSpec, architecture: str) -> Config:
    """Writes the `config.json` around that of a text model, without vision."""
    return {
        "architectures": [architecture],
        "model_type": spec.model_type,
        "text_config": {k: v for k, v in text.items() if k != "architectures"},
        "tie_word_embeddings": spec.tie,
    }


def family(
    known: Collection[str],
    read: Callable[[Given], DecoderSpec],
    to_hf: Callable[[DecoderSpec], Config],
    table: tuple[Row, ...],
    aliases: Mapping[str, str],
) -> Family:
    """Describes a wrapper; `table` is its text model's, the rest as in `Family`."""
    return Family(
        known,
        read,
        to_hf,
        tuple(row._replace(name=f"language_model.{row.name}") for row in table),
        ignored=llama_like.IGNORED,
        spellings=SPELLINGS,
        modules=("model.language_model.",),
        carried=TOWERS,
        aliases=dict(aliases),
    )
