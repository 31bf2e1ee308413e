"""GPT-J: one norm for both branches, pairs of neighbours turn, a biased head."""

import dataclasses

from dpo_jax.models.families import common, gpt2
from dpo_jax.models.families.common import Config, Given
from dpo_jax.models.spec import DecoderSpec, Family, Row

# what old files say of a scale that is always on
FIXED = {"scale_attn_weights": True, "rotary": True}

# those with _pdrop are dropout, summary_* belong to other heads
KNOWN = frozenset(
    """
    activation_function attn_pdrop embd_pdrop layer_norm_epsilon n_embd n_head n_inner
    n_layer n_positions resid_pdrop rotary_dim summary_activation
    summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
    tie_word_embeddings vocab_size
    """.split()
) | set(FIXED)

THETA = 1e4  # no attribute says it


def read(given: Given) -> DecoderSpec:
    """Reads a `config.json`."""
    given.only(FIXED)
    return dataclasses.replace(
        gpt2.read_sizes(given, tie=False),
        layout="parallel_shared",
        rope_theta=THETA,
        rope_dim=given.size("rotary_dim"),
        rope_interleaved=True,
        head_bias=True,
    )


def to_hf(spec: DecoderSpec) -> Config:
    """Writes the `config.json` that `read` reads back to `spec`."""
    assert spec.rope_theta == THETA, spec
    return gpt2.to_hf(spec, "GPTJForCausalLM") | {"rotary_dim": spec.rope_dim}


TABLE = (
    Row("transformer.wte.weight", ("embed/tokens",), "id"),
    *common.vectors("transformer.h.{i}.ln_1", "layers/norm1"),
    *common.linear("transformer.h.{i}.attn.q_proj", "layers/attn/q")[:1],
    *common.linear("transformer.h.{i}.attn.k_proj", "layers/attn/k")[:1],
    *common.linear("transformer.h.{i}.attn.v_proj", "layers/attn/v")[:1],
    *common.linear("transformer.h.{i}.attn.out_proj", "layers/attn/o")[:1],
    *common.linear("transformer.h.{i}.mlp.fc_in", "layers/mlp/up"),
    *common.linear("transformer.h.{i}.mlp.fc_out", "layers/mlp/down"),
    *common.vectors("transformer.ln_f", "final_norm"),
    *common.linear("lm_head", "head"),
)

FAMILY = Family(
    KNOWN,
    read,
    to_hf,
    TABLE,
    ignored=(r"transformer\.h\.\d+\.attn\.(bias|masked_bias|embed_positions)",),
    aliases=gpt2.ALIASES,
)
