"""A RoBERTa classifier of texts in JAX: the truth of the full tier needs nothing else.

Source: arXiv:1907.11692; layer norms behind the residual sums, learned positions that
begin behind the padding id, a tanh layer on the first token.
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open

Array = jax.Array
Weights = Mapping[str, Array]  # by their names in the file
FIRST = "roberta.embeddings"


class Shape(NamedTuple):
    """What `config.json` says of the model.

    Attributes:
      layers: of the encoder.
      heads: of attention.
      eps: of layer norms.
      padding: id of the pad token; positions begin behind it.
    """

    layers: int
    heads: int
    eps: float
    padding: int


def read(folder: Path) -> tuple[Weights, Shape]:
    """Reads a Hugging Face folder of `RobertaForSequenceClassification`.

    Raises:
      ValueError: if it is of another kind.
    """
    said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind, act = said.get("model_type"), said.get("hidden_act", "gelu")
    if (kind, act) != ("roberta", "gelu"):
        raise ValueError(f"{folder} holds {kind!r} with {act!r}, not a RoBERTa")
    shape = Shape(
        said["num_hidden_layers"],
        said["num_attention_heads"],
        said.get("layer_norm_eps", 1e-5),
        said.get("pad_token_id", 1),
    )
    with safe_open(folder / "model.safetensors", framework="np") as file:
        names = [name for name in file.keys() if "position_ids" not in name]
        return {name: jnp.asarray(file.get_tensor(name)) for name in names}, shape


@functools.partial(jax.jit, static_argnames="shape")
def logits(weights: Weights, ids: Array, mask: Array, *, shape: Shape) -> Array:
    """Returns the logits of each label.

    Args:
      weights: of `read`.
      ids: i32[B, T], padded behind.
      mask: bool[B, T], True = a token of the text.
      shape: of `read`.

    Returns:
      f32[B, labels].
    """
    with jax.default_matmul_precision("float32"):
        places = jnp.cumsum(mask, 1) * mask + shape.padding
        x = (
            weights[f"{FIRST}.word_embeddings.weight"][ids]
            + weights[f"{FIRST}.position_embeddings.weight"][places]
            + weights[f"{FIRST}.token_type_embeddings.weight"][0]
        )
        x = norm(weights, f"{FIRST}.LayerNorm", x, shape.eps)
        for number in range(shape.layers):
            x = layer(weights, f"roberta.encoder.layer.{number}", x, mask, shape)
        x = jnp.tanh(dense(weights, "classifier.dense", x[:, 0]))
        return dense(weights, "classifier.out_proj", x)


def layer(weights: Weights, at: str, x: Array, mask: Array, shape: Shape) -> Array:
    """Runs one layer of the encoder over f32[B, T, D]."""
    attended = attention(weights, f"{at}.attention.self", x, mask, shape.heads)
    attended = dense(weights, f"{at}.attention.output.dense", attended)
    x = norm(weights, f"{at}.attention.output.LayerNorm", x + attended, shape.eps)
    wide = jax.nn.gelu(dense(weights, f"{at}.intermediate.dense", x), approximate=False)
    out = dense(weights, f"{at}.output.dense", wide)
    return norm(weights, f"{at}.output.LayerNorm", x + out, shape.eps)


def attention(weights: Weights, at: str, x: Array, mask: Array, heads: int) -> Array:
    """Lets every token see all tokens of its text: f32[B, T, D]."""
    rows, tokens, width = x.shape
    q, k, v = (
        dense(weights, f"{at}.{name}", x).reshape(rows, tokens, heads, -1)
        for name in ("query", "key", "value")
    )
    scores = jnp.einsum("bqhe,bkhe->bhqk", q, k) / np.sqrt(width // heads)
    scores = jnp.where(mask[:, None, None, :], scores, -jnp.inf)
    seen = jnp.einsum("bhqk,bkhe->bqhe", jax.nn.softmax(scores), v)
    return seen.reshape(rows, tokens, width)


def dense(weights: Weights, at: str, x: Array) -> Array:
    """Applies a linear layer, stored as torch stores it."""
    return x @ weights[f"{at}.weight"].T + weights[f"{at}.bias"]


def norm(weights: Weights, at: str, x: Array, eps: float) -> Array:
    """Applies a layer norm."""
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps)
    return x * weights[f"{at}.weight"] + weights[f"{at}.bias"]
