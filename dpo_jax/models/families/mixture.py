"""What the dialects of mixtures of experts share: attributes, and rows of experts.

On disk every expert has its own tensors; transformers fuses them in memory.
"""

import dataclasses

from dpo_jax.models.families import llama_like
from dpo_jax.models.families.common import Config, Given
from dpo_jax.models.spec import DecoderSpec, Row

# what the authors balanced their routers by: `model.router_aux_coef` is ours
KNOWN = frozenset(
    """
    num_experts_per_tok num_experts num_local_experts output_router_logits
    router_aux_loss_coef
    """.split()
)


def read(
    given: Given, spec: DecoderSpec, *, experts: int, picked: int, normed: bool
) -> DecoderSpec:
    """Makes the MLP of a spec a mixture.

    Args:
      given: the `config.json`.
      spec: without experts.
      experts: what an absent `num_experts`, or `num_local_experts`, means.
      picked: what an absent `num_experts_per_tok` means.
      normed: whether the weights of those that are picked sum to 1.
    """
    names = ("num_experts", "num_local_experts")
    said = {given.config[n]: n for n in names if given.config.get(n) is not None}
    if len(said) > 1:
        given.complaints.append("num_experts and num_local_experts differ; keep one")
    return dataclasses.replace(
        spec,
        experts=given.size(next(iter(said.values()), names[0]), experts),
        experts_per_token=given.size("num_experts_per_tok", picked),
        norm_expert_weights=normed,
    )


def rows(router: str, expert: str, **names: str) -> tuple[Row, ...]:
    """Returns the rows of a layer's router and experts.

    Args:
      router: HF name in the layer.
      expert: likewise, with `{e}`.
      **names: of the maps of an expert, by ours.
    """
    layer = "model.layers.{i}"
    return (
        Row(f"{layer}.{router}.weight", ("layers/router/kernel",), "T"),
        *(
            Row(
                f"{layer}.{expert}.{hf}.weight", (f"layers/experts/{ours}/kernel",), "T"
            )
            for ours, hf in names.items()
        ),
    )


MLP = rows(
    "mlp.gate",
    "mlp.experts.{e}",
    gate="gate_proj",
    up="up_proj",
    down="down_proj",
)
ATTENTION = (*llama_like.PRE_NORMS, *llama_like.ATTENTION)


def to_hf(spec: DecoderSpec) -> Config:
    """Writes what `read` reads."""
    return {
        "num_experts": spec.experts,
        "num_experts_per_tok": spec.experts_per_token,
    }
