"""A scalar head on the decoder's trunk: reward models and value functions.

A scalar spec is a decoder's with `scalar=True`: its tree has `score/kernel` [D, 1] in
the place of a head, and its `Head` maps a hidden state to one number. On disk it is
HF's …ForSequenceClassification with one label and no bias. HF reads the last token that
is not `pad_token_id`, and so is such a model read here (`read_at`); one that is trained
here is read where the batch says that a response ends.
"""

import dataclasses
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp

from dpo_jax.errors import ModelError
from dpo_jax.models import decoder
from dpo_jax.models.spec import DecoderSpec
from dpo_jax.types import Array, Batch, Head, Params

Config = dict[str, Any]

CLASSIFIER = "ForSequenceClassification"
LANGUAGE_MODEL = r"(LMHeadModel|ForCausalLM|ForConditionalGeneration)$"
PADS = {  # model_type -> `pad_token_id` where config.json names none; of others none
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), 0),
    "ministral3": 11,
    **dict.fromkeys(("olmo2", "olmo3", "olmoe"), 1),
    "phi3": 32_000,
    "smollm3": 128_004,
}


def scalar_spec(spec: DecoderSpec) -> DecoderSpec:
    """Returns the spec of a scalar head on the same trunk."""
    return dataclasses.replace(spec, scalar=True)


def from_policy(params: Params, spec: DecoderSpec, key: Array) -> Params:
    """Puts a new scalar head on the trunk of a language model.

    Args:
      params: of the language model; its arrays are shared, its head is left out.
      spec: scalar or not, of the trunk.
      key: PRNG key of the head's start, normal with variance 1 / (D + 1).

    Returns:
      The tree of the scalar spec.
    """
    std = decoder.leaves(scalar_spec(spec))["score/kernel"].std
    kernel = std * jax.random.normal(key, (spec.width, 1), jnp.float32)
    trunk = {name: tree for name, tree in params.items() if name != "head"}
    return trunk | {"score": {"kernel": kernel}}


def value_head(spec: DecoderSpec) -> Params:
    """Makes a critic on the policy's own trunk, which says 0 of everything.

    Returns:
      What is trained beside the policy, as its `value`: `kernel` f32[D, 1].
    """
    return {"kernel": jnp.zeros((spec.width, 1), jnp.float32)}


def on_trunk(params: Params, hidden: Array, batch: Batch) -> tuple[Array, Head]:
    """Lets a critic of `value_head` read the policy's hidden states [B, T, D]."""
    del batch
    return hidden, Head(params["kernel"], None)


def policy_of(params: Params) -> Params:
    """Leaves the critic out."""
    return {name: tree for name, tree in params.items() if name != "value"}


def token_scores(hidden: Array, head: Head) -> Array:
    """Applies a scalar head to every token: [B, T, D] -> f32[B, T]."""
    chex.assert_rank([hidden, head.kernel], [3, 2])
    chex.assert_axis_dimension(head.kernel, 1, 1)
    return jnp.einsum(
        "BTD,D->BT", hidden, head.kernel[:, 0], preferred_element_type=jnp.float32
    )


def scores(hidden: Array, head: Head, ends: Array) -> Array:
    """Scores each response at its last token.

    Args:
      hidden: [B, T, D] final hidden states.
      head: of a scalar spec.
      ends: i32[B, R] index in the row of the last token of each response.

    Returns:
      f32[B, R]; meaningless for empty slots.
    """
    chex.assert_rank([hidden, ends], [3, 2])
    states = jnp.take_along_axis(hidden, ends[..., None], axis=1)  # [B, R, D]
    return token_scores(states, head)


def pad_id(config: Config) -> int | None:
    """Returns the pad token of a `config.json`, behind which HF reads no score.

    Raises:
      ModelError: if it is no token id.
    """
    text = config.get("text_config") or config
    kind = text.get("model_type", config["model_type"])
    found = text.get("pad_token_id", PADS.get(kind))
    if found is not None and type(found) is not int:
        said = str(found)[:80]
        raise ModelError(f"config.json: pad_token_id={said} must be a token id")
    return found


def read_at(batch: Batch, pad: int | None) -> Array:
    """Finds the tokens that HF reads the scores of responses at.

    They are the last ones of prompt and response that are not the pad token, which may
    be the one that ends a text; of a text of nothing else, its first.

    Args:
      batch: rows, whose `ends` say where the responses end.
      pad: from `pad_id`; None = there is none, so a score is read at the end.

    Returns:
      i32[B, R] indices in the row, as `scores` takes them; meaningless for empty slots.
    """
    if pad is None:
        return batch.ends
    at = batch.ends[..., None]  # [B, R, 1]

    def of_slot(values: Array) -> Array:
        return jnp.take_along_axis(values[:, None], at, axis=2)

    index, branches = jnp.arange(batch.tokens.shape[1]), batch.branches[:, None]
    mine = (branches == 0) | (branches == of_slot(batch.branches))  # [B, R, T]
    mine &= (batch.docs[:, None] == of_slot(batch.docs)) & (index <= at)
    read = mine & (batch.tokens[:, None] != pad)
    last = jnp.where(read, index, -1).max(-1)
    return jnp.where(last < 0, jnp.argmax(mine, -1), last)


def is_classifier(config: Config) -> bool:
    """Says whether a `config.json` is one of a …ForSequenceClassification."""
    return any(
        str(name).endswith(CLASSIFIER) for name in config.get("architectures") or ()
    )


def label_faults(config: Config) -> list[str]:
    """Returns one sentence if a classifier has another number of labels than one."""
    labels = config.get("id2label")
    count = len(labels) if isinstance(labels, dict) else config.get("num_labels", 2)
    if not is_classifier(config) or count == 1:
        return []
    return [f"the classifier has {count} labels; a scalar head needs num_labels=1"]


def classifier_config(config: Config) -> Config:
    """Turns the `config.json` of a language model into that of its scalar twin."""
    names = config.get("architectures") or []
    return config | {
        "architectures": [re.sub(LANGUAGE_MODEL, CLASSIFIER, name) for name in names],
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
    }
