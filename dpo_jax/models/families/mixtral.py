"""Mixtral: Mistral with eight MLPs a layer, of which each token goes through two."""

from dpo_jax.models.families import llama_like, mistral, mixture
from dpo_jax.models.families.common import Config, Given
from dpo_jax.models.spec import DecoderSpec, Family

KNOWN = mistral.KNOWN | mixture.KNOWN


def read(given: Given) -> DecoderSpec:
    """Reads a `config.json`; an absent window is none here."""
    config = {"sliding_window": None, "rope_theta": 1e6} | given.config
    if given.config.get("rope_parameters"):
        del config["rope_theta"]
    spec = mistral.read(given._replace(config=config))
    return mixture.read(given, spec, experts=8, picked=2, normed=True)


def to_hf(spec: DecoderSpec) -> Config:
    """Writes the `config.json` that `read` reads back to `spec`."""
    assert spec.norm_expert_weights, spec
    config = mistral.to_hf(spec) | mixture.to_hf(spec)
    del config["num_experts"]
    return config | {
        "architectures": ["MixtralForCausalLM"],
        "num_local_experts": spec.experts,
    }


TABLE = llama_like.table(
    *mixture.ATTENTION,
    *mixture.rows(
        "block_sparse_moe.gate",
        "block_sparse_moe.experts.{e}",
        gate="w1",
        up="w3",
        down="w2",
    ),
)

FAMILY = Family(KNOWN, read, to_hf, TABLE, ignored=llama_like.IGNORED)
