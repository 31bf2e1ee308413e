"""How many bytes training takes of a device, estimated from sizes alone.

Nothing is compiled or measured. What the layers keep for the backward pass is counted
array by array; of what lives between two products only one layer's is counted, as the
others' are computed again or freed. This file knows no devices.
"""

import math

import jax.numpy as jnp

from dpo_jax.models.decoder import leaves
from dpo_jax.models.lora import Adapters
from dpo_jax.models.spec import LAYOUT_NORMS, DecoderSpec

WIDE = 4  # bytes of a float32


def state_bytes(
    spec: DecoderSpec, adapters: Adapters | None = None, dtype: str = "float32"
) -> int:
    """Counts float32 weights, their gradient, and the two moments of AdamW.

    Args:
      spec: of the decoder.
      adapters: that alone are trained; the weights beside them stand. None = all are.
      dtype: that weights which stand are held in.
    """
    whole = sum(math.prod(leaf.shape) for leaf in leaves(spec).values())
    if adapters is None:
        return 4 * WIDE * whole
    own = sum(math.prod(shape) for shape in adapters.shapes.values())
    return 4 * WIDE * own + jnp.dtype(dtype).itemsize * whole


def kept_features(spec: DecoderSpec, remat: str) -> int:
    """Counts the features of a token that a layer keeps for the backward pass.

    Args:
      spec: of the decoder.
      remat: see `Decoder`. `block` keeps the layer's input; `elementwise` also queries,
        keys and values, what attention and its output product say, and the products of
        the MLP but the last; `none` besides these what lies between them, too: norms,
        rotations, activations and the sum of the two branches. Of experts, those of
        all that a token goes through, and what each says.
    """
    query, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    hidden = 2 if spec.gated else 1
    ff = spec.ff * max(spec.experts_per_token, 1)
    products = 2 * query + 2 * keys + spec.width + hidden * ff
    products += spec.experts_per_token * spec.width
    between = (LAYOUT_NORMS[spec.layout] + 1) * spec.width + query + keys
    between += (2 * hidden - 1) * ff + spec.experts_per_token * spec.width
    more = {"block": 0, "elementwise": products, "none": products + between}
    return spec.width + more[remat]


def activation_bytes(
    spec: DecoderSpec, *, rows: int, tokens: int, remat: str, dtype: str, chunk: int
) -> int:
    """Estimates what forward and backward pass hold besides weights and optimizer.

    Args:
      spec: of the decoder.
      rows: B, of one device.
      tokens: T.
      remat: see `Decoder`.
      dtype: of the computation.
      chunk: scored tokens of a row whose logits are held at once, with their gradient.
    """
    features = spec.layers * kept_features(spec, remat) + kept_features(spec, "none")
    logits = 0 if spec.scalar else 2 * WIDE * min(chunk, tokens) * spec.vocab
    return rows * (tokens * features * jnp.dtype(dtype).itemsize + logits)
