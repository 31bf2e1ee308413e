"""What a decoder is: one frozen, hashable record, and the presets made of it.

A spec holds only what changes the arithmetic of the forward pass (and `model_type`, by
which the family that wrote it is found again). This file computes nothing and knows
neither jax nor the files of a model.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from dpo_jax import errors

NORMS = ("rms", "layer")
LAYOUTS = ("pre",)
ACTIVATIONS = ("silu", "gelu", "gelu_tanh")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Stretches rotary wavelengths so that longer texts look like shorter ones.

    Attributes:
      kind: `linear` divides every frequency; `llama3` divides the slow ones only.
      factor: the divisor.
      low_freq_factor: `llama3` divides wavelengths above original / this in full.
      high_freq_factor: `llama3` keeps wavelengths below original / this.
      original_max_positions: tokens of context before stretching; `llama3` only.
    """

    kind: str
    factor: float
    low_freq_factor: float = 0.0
    high_freq_factor: float = 0.0
    original_max_positions: int = 0


@dataclasses.dataclass(frozen=True)
class DecoderSpec:
    """Says what a decoder computes.

    Attributes:
      model_type: the HF family whose dialect it is read and written in.
      vocab: rows of the embedding table.
      layers: blocks.
      width: features of the residual stream.
      heads: query heads.
      kv_heads: key and value heads; divides `heads`.
      head_dim: features of a head.
      ff: hidden features of the MLP.
      max_positions: tokens of context; with `learned_positions` a hard limit.
      norm: `rms` or `layer` (with bias).
      norm_eps: added to the variance.
      layout: `pre`: x + attn(norm1(x)), then x + mlp(norm2(x)).
      activation: `silu`, `gelu` (erf) or `gelu_tanh`.
      gated: act(gate(x))·up(x) instead of act(up(x)).
      qkv_bias: biases on the query, key and value projections.
      out_bias: a bias on the attention's output projection.
      mlp_bias: biases in the MLP.
      learned_positions: add a learned vector per position; no rotation then.
      rope_theta: base of the rotary wavelengths; 0 = no rotation.
      rope_scaling: how they are stretched; None = not.
      tie: the head is the transposed embedding table.
    """

    model_type: str
    vocab: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ff: int
    max_positions: int
    norm: str = "rms"
    norm_eps: float = 1e-5
    layout: str = "pre"
    activation: str = "silu"
    gated: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    learned_positions: bool = False
    rope_theta: float = 0.0
    rope_scaling: RopeScaling | None = None
    tie: bool = False


class Row(NamedTuple):
    """One tensor of a family: its HF name, its place in our tree, and the way there.

    Attributes:
      name: HF name; `{i}` stands for the layer.
      paths: places in the parameter tree; several where HF fuses tensors.
      op: name of an invertible operation of `hf.OPS`.
    """

    name: str
    paths: tuple[str, ...]
    op: str


class Family(NamedTuple):
    """How one HF `model_type` is read and written.

    Attributes:
      from_hf: `config.json` as a dict -> spec; raises `ModelError`.
      to_hf: spec -> `config.json` as a dict.
      table: every tensor that some model of the family has; rows whose paths a spec
        does not have are left out.
      ignored: regexes of tensors that some checkpoints carry and nobody needs.
      optional_prefix: what some checkpoints leave off every name.
    """

    from_hf: Callable[[dict[str, Any]], DecoderSpec]
    to_hf: Callable[[DecoderSpec], dict[str, Any]]
    table: tuple[Row, ...]
    ignored: tuple[str, ...] = ()
    optional_prefix: str = ""


def faults(spec: DecoderSpec) -> list[str]:
    """Returns one sentence for each way in which `spec` cannot be built."""
    values = vars(spec)
    sizes = "vocab layers width heads kv_heads head_dim ff max_positions".split()
    found = [
        f"{name}={values[name]} must be at least 1"
        for name in sizes
        if values[name] < 1
    ]
    choices = {"norm": NORMS, "layout": LAYOUTS, "activation": ACTIVATIONS}
    for name, known in choices.items():
        if values[name] not in known:
            found.append(errors.unknown(name, values[name], known))
    if spec.kv_heads > 0 and spec.heads % spec.kv_heads:
        found.append(f"kv_heads={spec.kv_heads} must divide heads={spec.heads}")
    if spec.rope_theta and spec.head_dim % 2:
        found.append(f"head_dim={spec.head_dim} must be even to be rotated")
    if spec.learned_positions == bool(spec.rope_theta):
        found.append("positions must be either learned or rotary (rope_theta > 0)")
    if spec.norm_eps <= 0 or spec.rope_theta < 0:
        eps, theta = spec.norm_eps, spec.rope_theta
        found.append(f"norm_eps={eps} and rope_theta={theta} must be positive")
    return found


def preset(name: str, *, vocab: int, max_positions: int) -> DecoderSpec:
    """Returns a spec to train from scratch.

    Args:
      name: a key of `PRESETS`.
      vocab: ids of the tokenizer.
      max_positions: tokens of context.

    Raises:
      ConfigError: if the name is not known or a size is not positive.
    """
    if name not in PRESETS:
        raise errors.ConfigError(errors.unknown("model.preset", name, PRESETS))
    spec = dataclasses.replace(PRESETS[name], vocab=vocab, max_positions=max_positions)
    with errors.collected(errors.ConfigError) as complaints:
        complaints += [f"model.preset={name!r}: {fault}" for fault in faults(spec)]
    return spec


_TINY = DecoderSpec(
    model_type="llama",
    vocab=0,
    layers=2,
    width=64,
    heads=4,
    kv_heads=2,
    head_dim=16,
    ff=128,
    max_positions=0,
    rope_theta=1e4,
)

# `vocab` and `max_positions` are filled in by `preset`.
PRESETS: dict[str, DecoderSpec] = {
    "tiny": _TINY,
    # about 14 M parameters in the blocks and 16 M in a tied table of 42 k ids
    "small": dataclasses.replace(
        _TINY, layers=8, width=384, heads=6, kv_heads=6, head_dim=64, ff=1024, tie=True
    ),
    "tiny_gpt2": dataclasses.replace(
        _TINY,
        model_type="gpt2",
        kv_heads=4,
        ff=256,
        norm="layer",
        activation="gelu_tanh",
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        learned_positions=True,
        rope_theta=0.0,
        tie=True,
    ),
}
