"""GPT-J: one norm for both branches, pairs of neighbours turn, a biased head."""

from dpo_jax import errors
from dpo_jax.models.families import common
from dpo_jax.models.spec import DecoderSpec, Family, Row

# those with _pdrop are dropout, summary_* belong to other heads
KNOWN = frozenset(
    """
    activation_function attn_pdrop embd_pdrop layer_norm_epsilon n_embd n_head n_inner
    n_layer n_positions resid_pdrop rotary_dim summary_activation
    summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
    tie_word_embeddings vocab_size
    """.split()
)

# what old files say of a scale that is always on
FIXED = {"scale_attn_weights": True, "rotary": True}

THETA = 1e4  # no attribute says it


def from_hf(config: common.Config) -> DecoderSpec:
    """Reads a `config.json` of `model_type` gptj.

    Raises:
      ModelError: naming every attribute that is missing, malformed or not known.
    """
    with errors.collected(errors.ModelError) as complaints:
        common.refuse_unknown(config, KNOWN | set(FIXED), complaints)
        for name, only in FIXED.items():
            if config.get(name, only) is not only:
                complaints.append(f"{name}={config[name]!r} is not supported")

        def size(name: str, default: int | None = None) -> int:
            return common.number(config, name, int, complaints, default=default)

        heads, width = size("n_head"), size("n_embd")
        if width % heads:
            complaints.append(f"n_head={heads} must divide n_embd={width}")
        spec = DecoderSpec(
            model_type="gptj",
            vocab=size("vocab_size"),
            layers=size("n_layer"),
            width=width,
            heads=heads,
            kv_heads=heads,
            head_dim=max(width // heads, 1),
            ff=size("n_inner", 4 * width),
            max_positions=size("n_positions"),
            norm="layer",
            norm_eps=common.number(config, "layer_norm_epsilon", float, complaints),
            layout="parallel_shared",
            activation=common.activation(config, "activation_function", complaints),
            gated=False,
            mlp_bias=True,
            rope_theta=THETA,
            rope_dim=size("rotary_dim"),
            rope_interleaved=True,
            tie=common.boolean(
                config, "tie_word_embeddings", complaints, default=False
            ),
            head_bias=True,
        )
    return spec


def to_hf(spec: DecoderSpec) -> common.Config:
    """Writes the `config.json` that `from_hf` reads back to `spec`."""
    assert spec.rope_theta == THETA, spec
    gelu_tanh = spec.activation == "gelu_tanh"
    return {
        "architectures": ["GPTJForCausalLM"],
        "model_type": "gptj",
        "vocab_size": spec.vocab,
        "n_embd": spec.width,
        "n_inner": spec.ff,
        "n_layer": spec.layers,
        "n_head": spec.heads,
        "n_positions": spec.max_positions,
        "rotary_dim": spec.rope_dim,
        "layer_norm_epsilon": spec.norm_eps,
        "activation_function": "gelu_new" if gelu_tanh else spec.activation,
        "tie_word_embeddings": spec.tie,
    }


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
    from_hf,
    to_hf,
    TABLE,
    ignored=(r"transformer\.h\.\d+\.attn\.(bias|masked_bias|embed_positions)",),
)
