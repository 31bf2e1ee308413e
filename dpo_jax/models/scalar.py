"""A scalar head on the decoder's trunk: reward models and value functions.

A scalar spec is a decoder's with `scalar=True`: its tree has `score/kernel` [D, 1] in
the place of a head, and its `Head` maps a hidden state to one number. On disk it is
HF's …ForSequenceClassification with one label and no bias. HF reads the last token that
is not `pad_token_id`; here the batch says where each response ends.
"""

import dataclasses
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp

from dpo_jax.models import decoder
from dpo_jax.models.spec import DecoderSpec
from dpo_jax.types import Array, Head, Params

Config = dict[str, Any]

CLASSIFIER = "ForSequenceClassification"
LANGUAGE_MODEL = r"(LMHeadModel|ForCausalLM|ForConditionalGeneration)$"


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
      What is trained beside the policy: `value/kernel` f32[D, 1].
    """
    return {"value": {"kernel": jnp.zeros((spec.width, 1), jnp.float32)}}


def policy_of(params: Params) -> Params:
    """Leaves the value head out."""
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
