"""What families share when they read a `config.json`: fields, the unknown."""

from collections.abc import Collection
from typing import Any

from dpo_jax import errors
from dpo_jax.models.spec import Row

Config = dict[str, Any]

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}

# Attributes that no forward pass depends on: names, ids, dropout (never applied here),
# what is returned, how text is generated, and the arguments of other tasks' heads.
INERT = frozenset(
    """
    _attn_implementation_autoset _commit_hash _from_model_config _name_or_path
    architectures attention_dropout attention_probs_dropout_prob bad_words_ids
    begin_suppress_tokens bos_token_id chunk_size_feed_forward decoder_start_token_id
    diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size
    eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id hidden_dropout_prob id2label initializer_range label2id
    length_penalty max_length min_length model_type no_repeat_ngram_size
    num_beam_groups num_beams num_return_sequences output_attentions
    output_hidden_states output_scores pad_token_id prefix problem_type
    remove_invalid_values repetition_penalty return_dict return_dict_in_generate
    sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
    tokenizer_class top_k top_p torch_dtype transformers_version typical_p
    unsloth_fixed unsloth_version use_cache
    """.split()
)

OFF = (None, False, {}, [], "")  # an unknown attribute with such a value is harmless


def number(
    config: Config,
    name: str,
    kind: type,
    complaints: list[str],
    *,
    default: int | float | None = None,
) -> Any:
    """Reads a positive number; complains and returns `kind(1)` where there is none.

    Args:
      config: the `config.json`.
      name: of the attribute.
      kind: `int` or `float`.
      complaints: gets one sentence per fault.
      default: what an absent or null attribute means; None = it must be given.
    """
    value: Any = config.get(name)
    value = default if value is None else value
    right = isinstance(value, int) or (kind is float and isinstance(value, float))
    if right and not isinstance(value, bool) and value > 0:
        return kind(value)
    complaints.append(f"{name}={value!r} must be a positive {kind.__name__}")
    return kind(1)


def boolean(config: Config, name: str, complaints: list[str], *, default: bool) -> bool:
    """Reads true or false; complains about anything else."""
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, bool):
        complaints.append(f"{name}={value!r} must be true or false")
    return value is True


def activation(config: Config, name: str, complaints: list[str]) -> str:
    """Reads the activation of the MLP in our words."""
    value = config.get(name)
    if not isinstance(value, str) or value not in ACTIVATIONS:
        complaints.append(errors.unknown(name, value, ACTIVATIONS))
        return "silu"
    return ACTIVATIONS[value]


def refuse_unknown(
    config: Config, known: Collection[str], complaints: list[str]
) -> None:
    """Complains about attributes that the family does not know and that are not off."""
    for name, value in config.items():
        if name not in known and name not in INERT and value not in OFF:
            complaints.append(f"attribute {name}={value!r} is not supported; remove it")


def window(config: Config, complaints: list[str], *, default: int) -> int:
    """Reads `sliding_window`: absent = `default`, null = 0 = none."""
    if "sliding_window" in config and config["sliding_window"] is None:
        return 0
    if not default and "sliding_window" not in config:
        return 0
    return number(config, "sliding_window", int, complaints, default=default)


def vectors(name: str, path: str) -> tuple[Row, Row]:
    """Returns the rows of a norm's scale and bias."""
    return (
        Row(f"{name}.weight", (f"{path}/scale",), "id"),
        Row(f"{name}.bias", (f"{path}/bias",), "id"),
    )


def linear(name: str, path: str) -> tuple[Row, Row]:
    """Returns the rows of an nn.Linear and of its bias."""
    return (
        Row(f"{name}.weight", (f"{path}/kernel",), "T"),
        Row(f"{name}.bias", (f"{path}/bias",), "id"),
    )
