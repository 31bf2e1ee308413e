"""What families share when they read a `config.json`: fields, rope, the unknown."""

from collections.abc import Collection
from typing import Any

from dpo_jax import errors
from dpo_jax.models.spec import RopeScaling

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

_ROPE_KEYS: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_position_embeddings": "original_max_positions",
    },
}


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
    value = config.get(name)
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


def rope(config: Config, complaints: list[str]) -> tuple[float, RopeScaling | None]:
    """Reads theta and scaling in the old spelling or the new.

    The old one has `rope_theta` and `rope_scaling` (`type` or `rope_type`), the new one
    (transformers 5) both in `rope_parameters`.
    """
    settings = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(settings, dict):
        complaints.append(f"rope settings {settings!r} must be an object")
        settings = {}
    settings = dict(settings)
    if config.get("rope_parameters") and config.get("rope_scaling"):
        complaints.append("rope_parameters and rope_scaling are both given; keep one")
    outer, inner = config.get("rope_theta"), settings.pop("rope_theta", None)
    if inner is not None and outer is not None and inner != outer:
        complaints.append(f"rope_theta={outer} contradicts rope_parameters ({inner})")
    given = {"rope_theta": outer if inner is None else inner}
    theta = number(given, "rope_theta", float, complaints, default=1e4)
    legacy = settings.pop("type", None)
    kind = settings.pop("rope_type", legacy) or "default"
    if kind not in _ROPE_KEYS:
        complaints.append(errors.unknown("rope_type", kind, _ROPE_KEYS))
        return theta, None
    refuse_unknown(settings, _ROPE_KEYS[kind], complaints)
    if kind == "default":
        return theta, None
    kinds = {"original_max_position_embeddings": int}
    values = {
        ours: number(settings, name, kinds.get(name, float), complaints)
        for name, ours in _ROPE_KEYS[kind].items()
    }
    scaling = RopeScaling(kind, **values)
    if kind == "llama3" and scaling.low_freq_factor >= scaling.high_freq_factor:
        complaints.append("low_freq_factor must be below high_freq_factor")
    return theta, scaling


def rope_to_hf(theta: float, scaling: RopeScaling | None) -> Config:
    """Writes theta and scaling in the old spelling, which every release reads."""
    if scaling is None:
        return {"rope_theta": theta, "rope_scaling": None}
    values = vars(scaling)
    keys = _ROPE_KEYS[scaling.kind].items()
    settings = {name: values[ours] for name, ours in keys}
    return {
        "rope_theta": theta,
        "rope_scaling": {"rope_type": scaling.kind, **settings},
    }
