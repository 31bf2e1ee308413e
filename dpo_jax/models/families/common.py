"""What families share when they read a `config.json`: fields, the unknown."""

import re
from collections.abc import Collection
from typing import Any, NamedTuple

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

# The same, with a folder that carries each; a leading underscore says as much itself.
LEFT = {
    "gradient_checkpointing": "EleutherAI/gpt-j-6b",
    "max_sequence_length": "lmsys/vicuna-7b-v1.5-16k",
    "neftune_noise_alpha": "what TRL saves of a run with NEFTune",
    "num_labels": "thu-coai/CDial-GPT_LCCC-large",
    "output_past": "ai-forever/rugpt3large_based_on_gpt2",
    "torchscript": "thu-coai/CDial-GPT_LCCC-large",
    "transformers.js_config": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "use_bfloat16": "thu-coai/CDial-GPT_LCCC-large",
}

# The smallest and largest that an attribute may be: what lies beyond makes numbers that
# are none, or an allocation that never ends, before the weights could contradict it.
WHOLE = (1, 2**31 - 1)
REAL = (1e-12, 1e12)
BOUNDS: dict[str, tuple[float, float]] = {
    "num_hidden_layers": (1, 10_000),
    "n_layer": (1, 10_000),
    "layer_norm_eps": (1e-12, 0.1),
    "layer_norm_epsilon": (1e-12, 0.1),
    "rms_norm_eps": (1e-12, 0.1),
    **dict.fromkeys(
        ("rope_theta", "rotary_emb_base", "rope_local_base_freq"), (1, 1e12)
    ),
}

OFF = (None, False, {}, [], "")  # an unknown attribute with such a value is harmless

QUANTIZATION = ("quantization_config", "compression_config", "quantization")

MAY_DO = {  # what an unknown attribute may be about, by its name
    "rope_interleaved": "it turns neighbours of a head, not its halves",
    "expert|moe|router": "layers may be mixtures of experts",
    "window|chunk": "it may hide far tokens",
    "rope|rotary|alibi|position": "it may change what positions do",
    "norm": "it may add or change a norm",
    "cap|clip|scal|multiplier": "it may scale or bound what a layer gives",
    "bias": "it may add a bias",
    "": "it may change what the model computes",
}


class Given(NamedTuple):
    """What a `config.json` says, or a part of one, and what is wrong with it.

    Attributes:
      config: its attributes.
      complaints: one sentence for each fault found so far.
      left: attributes found so far that say something nobody computes with.
      harmless: attributes that are left, beside those of `LEFT`.
    """

    config: Config
    complaints: list[str]
    left: list[str]
    harmless: Collection[str]

    def number(self, name: str, kind: type, default: float | None = None) -> Any:
        """Reads a number within bounds; complains and returns `kind(1)` without one.

        Args:
          name: of the attribute.
          kind: `int` or `float`.
          default: what an absent or null attribute means; None = it must be given.
        """
        value: Any = self.config.get(name)
        value = default if value is None else value
        right = isinstance(value, int) or (kind is float and isinstance(value, float))
        low, high = BOUNDS.get(name.rpartition(".")[2], WHOLE if kind is int else REAL)
        if right and not isinstance(value, bool) and low <= value <= high:
            return kind(value)
        self.complaints.append(
            f"{name}={str(value)[:80]} must be a positive {kind.__name__}, "
            f"{low:g} to {high:g}"
        )
        return kind(1)

    def size(self, name: str, default: int | None = None) -> int:
        """Reads a positive whole number, as `number`."""
        return self.number(name, int, default)

    def real(self, name: str, default: float | None = None) -> float:
        """Reads a positive number, as `number`."""
        return self.number(name, float, default)

    def flag(self, name: str, default: bool) -> bool:
        """Reads true or false; complains about anything else."""
        value = self.config.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            self.complaints.append(f"{name}={value!r} must be true or false")
        return value is True

    def activation(self, name: str) -> str:
        """Reads the activation of the MLP in our words."""
        value = self.config.get(name)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            self.complaints.append(errors.unknown(name, value, ACTIVATIONS))
            return "silu"
        return ACTIVATIONS[value]

    def heads(self, heads: str, width: str) -> tuple[int, int, int]:
        """Reads (heads, width, features of a head) where these follow from those."""
        number, features = self.size(heads), self.size(width)
        if features % number:
            self.complaints.append(f"{heads}={number} must divide {width}={features}")
        return number, features, max(features // number, 1)

    def window(self, default: int) -> int:
        """Reads `sliding_window`: absent = `default`, null = 0 = none."""
        absent = "sliding_window" not in self.config
        if self.config.get("sliding_window") is None and not (absent and default):
            return 0
        return self.size("sliding_window", default)

    def only(self, fixed: Config) -> None:
        """Complains about attributes with another value than the only one known."""
        for name, value in fixed.items():
            if self.config.get(name) not in (value, None):
                self.complaints.append(f"{name}={self.config[name]!r} is not supported")

    def renamed(self, aliases: Config) -> "Given":
        """Returns what transformers makes of names of its `attribute_map`."""
        config = dict(self.config)
        for alias in [name for name in aliases if name in config]:
            name, value = aliases[alias], config.pop(alias)
            if config.setdefault(name, value) != value:
                self.complaints.append(
                    f"{alias}={value!r} and {name}={config[name]!r} mean the same; "
                    "keep one"
                )
        return self._replace(config=config)

    def quantized(self) -> "Given":
        """Complains about weights that the config calls quantized."""
        for name in QUANTIZATION:
            said = self.config.get(name)
            if said not in OFF:
                method = said.get("quant_method") if isinstance(said, dict) else said
                self.complaints.append(
                    f"the weights are quantized ({name}: {method or said}); give the "
                    "folder of the float model, or dequantize it and save"
                )
        left = {k: v for k, v in self.config.items() if k not in QUANTIZATION}
        return self._replace(config=left)

    def refuse_unknown(self, known: Collection[str]) -> None:
        """Complains about attributes that are not known and that are not off."""
        for name, value in self.config.items():
            if name in known or name in INERT or value in OFF:
                continue
            if name.startswith("_") or name in LEFT or name in self.harmless:
                self.left.append(f"{name}={str(value)[:40]}")
                continue
            what = next(said for word, said in MAY_DO.items() if re.search(word, name))
            self.complaints.append(
                f"attribute {name}={value!r} is not supported: {what}; if transformers "
                f"computes nothing with it, set model.ignore_attributes=('{name}',)"
            )


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
