"""The HF dialects: one file and one row of the table for each `model_type`."""

from dpo_jax.models.families import gpt2, llama
from dpo_jax.models.spec import Family

FAMILIES: dict[str, Family] = {
    "gpt2": gpt2.FAMILY,
    "llama": llama.FAMILY,
}
