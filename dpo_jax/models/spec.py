"""What a decoder is: one frozen, hashable record, and the presets made of it.

A spec holds only what changes the arithmetic of the forward pass (and `model_type`, by
which the family that wrote it is found again). This file computes nothing and knows
neither jax nor the files of a model.
"""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from dpo_jax import errors

NORMS = ("rms", "rms_wide", "rms_plus_one", "layer")
# how many norms a layer of each layout has
LAYOUT_NORMS = {"pre": 2, "parallel": 2, "parallel_shared": 1, "sandwich": 4, "post": 2}
QK_NORMS = ("", "head", "full")
SCORE_WORK = 40  # of one attention score, in operations of a matrix product
ACTIVATIONS = ("silu", "gelu", "gelu_tanh")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Stretches rotary wavelengths so that longer texts look like shorter ones.

    Attributes:
      kind: a key of `rope.SCALINGS`.
      factor: what frequencies are divided by; `longrope` does not use it.
      low_freq_factor: `llama3` divides wavelengths above original / this in full.
      high_freq_factor: `llama3` keeps wavelengths below original / this.
      original_max_positions: tokens of context before stretching; not for `linear`.
      beta_fast: `yarn` keeps pairs of more turns than this in the original context.
      beta_slow: `yarn` divides pairs of fewer turns in full.
      truncate: `yarn` rounds the ends of its ramp to whole pairs.
      attention_factor: cosines and sines are multiplied by it; `yarn` and `longrope`.
      short_factors: `longrope`'s divisor of each pair for texts within the original
        context.
      long_factors: the same for longer texts.
    """

    kind: str
    factor: float = 1.0
    low_freq_factor: float = 0.0
    high_freq_factor: float = 0.0
    original_max_positions: int = 0
    beta_fast: float = 0.0
    beta_slow: float = 0.0
    truncate: bool = True
    attention_factor: float = 1.0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class DecoderSpec:
    """Says what a decoder computes.

    Attributes:
      model_type: the HF family whose dialect it is read and written in.
      vocab: ids that the model knows.
      layers: blocks.
      width: features of the residual stream.
      heads: query heads.
      kv_heads: key and value heads; divides `heads`.
      head_dim: features of a head.
      ff: hidden features of the MLP.
      max_positions: tokens of context; with `learned_positions` a hard limit.
      norm: `rms`; `rms_wide`, which scales in float32 too; `rms_plus_one`, which
        scales by 1 + w in float32; or `layer` (with bias).
      norm_eps: added to the variance.
      layout: how norms, attention and MLP are joined; a key of `blocks.RESIDUALS`:
        pre              x + attn(n1(x)), then x + mlp(n2(x))
        parallel         x + attn(n1(x)) + mlp(n2(x))
        parallel_shared  x + attn(n1(x)) + mlp(n1(x))
        sandwich         x + n2(attn(n1(x))), then x + n4(mlp(n3(x)))
        post             x + n1(attn(x)), then x + n2(mlp(x))
      activation: `silu`, `gelu` (erf) or `gelu_tanh`.
      gated: act(gate(x))·up(x) instead of act(up(x)).
      qkv_bias: biases on the query, key and value projections.
      out_bias: a bias on the attention's output projection.
      mlp_bias: biases in the MLP.
      learned_positions: add a learned vector per position; no rotation then.
      rope_theta: base of the rotary wavelengths; 0 = no rotation.
      rope_scaling: how they are stretched; None = not.
      rope_dim: features of a head that turn, the first ones; 0 = all.
      rope_interleaved: pairs are (2i, 2i + 1), not (i, i + rope_dim / 2).
      rope_theta_local: base in layers with a window, unscaled; 0 = as elsewhere.
      rope_layers: whether each layer turns at all; () = all do.
      qk_norm: norms queries and keys before they turn: '' not, `head` each head by
        itself, `full` all heads together.
      attn_scale: multiplies attention logits; 0 = head_dim^−½.
      attn_softcap: bound of the attention logits; 0 = none.
      windows: tokens that each layer's queries see, themselves included, 0 = all;
        () = all, in every layer.
      query_beta: queries are multiplied by 1 + β·log(1 + ⌊position / original⌋) of
        the original context of `rope_scaling`; 0 = not.
      embed_scale: multiplies embeddings.
      residual_scale: multiplies what attention and MLP add to the stream.
      logit_divisor: divides logits (not scores).
      tie: the head is the transposed embedding table.
      head_bias: a bias on the logits, tied or not.
      final_softcap: bound of the logits; 0 = none.
      experts: MLPs of a layer, of which each token goes through a few; 0 = one MLP.
      experts_per_token: that the router picks.
      norm_expert_weights: their weights are made to sum to 1.
      scalar: one score per token (a reward or value head) instead of logits.
      vocab_multiple: the table has a multiple of it as rows; see `vocabulary`.
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
    rope_dim: int = 0
    rope_interleaved: bool = False
    rope_theta_local: float = 0.0
    rope_layers: tuple[bool, ...] = ()
    qk_norm: str = ""
    attn_scale: float = 0.0
    attn_softcap: float = 0.0
    windows: tuple[int, ...] = ()
    query_beta: float = 0.0
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_divisor: float = 1.0
    tie: bool = False
    head_bias: bool = False
    final_softcap: float = 0.0
    experts: int = 0
    experts_per_token: int = 0
    norm_expert_weights: bool = False
    scalar: bool = False
    vocab_multiple: int = 1

    @property
    def rows(self) -> int:
        """Rows of the embedding table: V, or more, of which those behind are unread."""
        return -(-self.vocab // self.vocab_multiple) * self.vocab_multiple

    @property
    def even_tokens(self) -> float:
        """Length of a row at which dense attention costs as much as all the rest.

        A score takes 4·E operations for its two products and `SCORE_WORK` for mask and
        softmax, which no matrix unit runs.
        """
        query, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = 2 * self.width * (query + keys)
        mlp = (3 if self.gated else 2) * self.width * self.ff
        if self.experts:
            mlp = mlp * self.experts_per_token + self.width * self.experts
        per_key = self.heads * (4 * self.head_dim + SCORE_WORK)
        return 2 * (attention + mlp) / per_key


class Row(NamedTuple):
    """One tensor of a family: its HF name, its place in our tree, and the way there.

    Attributes:
      name: HF name; `{i}` stands for the layer, `{e}` for the expert.
      paths: places in the parameter tree; several where HF fuses tensors.
      op: name of an invertible operation of `tensors.OPS`.
    """

    name: str
    paths: tuple[str, ...]
    op: str


class Family(NamedTuple):
    """How one HF `model_type` is read and written.

    Attributes:
      known: attributes of its `config.json`, beside those that nobody reads.
      read: `families.common.Given` -> spec; its complaints become one `ModelError`.
      to_hf: spec -> `config.json` as a dict.
      table: every tensor that some model of the family has; rows whose paths a spec
        does not have are left out.
      ignored: regexes of tensors that some checkpoints carry and nobody needs.
      spellings: groups of prefixes that mean the same; tables use the first of a group,
        a checkpoint may use any.
      modules: the spelling of the modules of the HF class, where it is not the first.
      carried: regexes of tensors that this decoder does not compute with, but that an
        export copies from the folder the weights came from.
      left: {attribute: a folder that carries it} of its `config.json` which nothing is
        computed with: what was written down of how a model was made.
      aliases: {attribute: the name that is read}, as transformers' `attribute_map`.
      native_code: what `auto_map` may name, because transformers has it built in and
        nothing is ever run from the folder.
    """

    known: Collection[str]
    read: Callable[[Any], DecoderSpec]
    to_hf: Callable[[DecoderSpec], dict[str, Any]]
    table: tuple[Row, ...]
    ignored: tuple[str, ...] = ()
    spellings: tuple[tuple[str, ...], ...] = ()
    modules: tuple[str, ...] = ()
    carried: tuple[str, ...] = ()
    native_code: tuple[str, ...] = ()
    left: dict[str, str] = {}
    aliases: dict[str, str] = {}


def faults(spec: DecoderSpec) -> list[str]:
    """Returns one sentence for each way in which `spec` cannot be built."""
    values = vars(spec)
    sizes = "vocab layers width heads kv_heads head_dim ff max_positions".split()
    complaints = [
        f"{name}={values[name]} must be at least 1"
        for name in sizes
        if values[name] < 1
    ]
    choices = {
        "norm": NORMS,
        "layout": LAYOUT_NORMS,
        "activation": ACTIVATIONS,
        "qk_norm": QK_NORMS,
    }
    for name, known in choices.items():
        if values[name] not in known:
            complaints.append(errors.unknown(name, values[name], known))
    if not 0 <= spec.experts_per_token <= spec.experts or (
        bool(spec.experts) != bool(spec.experts_per_token)
    ):
        picked = f"experts_per_token={spec.experts_per_token}"
        complaints.append(f"{picked} must be 1 to experts={spec.experts}")
    if spec.kv_heads > 0 and spec.heads % spec.kv_heads:
        complaints.append(f"kv_heads={spec.kv_heads} must divide heads={spec.heads}")
    if spec.learned_positions == bool(spec.rope_theta):
        complaints.append("positions must be either learned or rotary (rope_theta > 0)")
    if spec.norm_eps <= 0 or spec.rope_theta < 0:
        eps, theta = spec.norm_eps, spec.rope_theta
        complaints.append(f"norm_eps={eps} and rope_theta={theta} must be positive")
    for name in ("windows", "rope_layers"):
        if values[name] and len(values[name]) != spec.layers:
            given = len(values[name])
            complaints.append(f"{name} has {given} entries for {spec.layers} layers")
    return complaints + (_rope_faults(spec) if spec.rope_theta else [])


def _rope_faults(spec: DecoderSpec) -> list[str]:
    """Returns one sentence for each way in which heads cannot be turned."""
    width, scaling = spec.rope_dim or spec.head_dim, spec.rope_scaling
    name = "rope_dim" if spec.rope_dim else "head_dim"
    complaints = []
    if width % 2 or width > spec.head_dim:
        head = f" and at most head_dim={spec.head_dim}" if spec.rope_dim else ""
        complaints.append(f"{name}={width} must be even{head} to be rotated")
    if spec.query_beta and not (scaling and scaling.original_max_positions):
        complaints.append(
            f"query_beta={spec.query_beta} (llama_4_scaling_beta) needs a rope scaling "
            "that says original_max_position_embeddings"
        )
    if scaling is None:
        return complaints
    if scaling.kind == "dynamic" and width < 4:
        complaints.append(f"{name}={width} must be at least 4 for dynamic rope scaling")
    if scaling.kind == "longrope":
        for which in ("short_factors", "long_factors"):
            given = len(vars(scaling)[which])
            if given != width // 2:
                complaints.append(
                    f"longrope has {given} {which} for {width // 2} pairs"
                )
    return complaints


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
