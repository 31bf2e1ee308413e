"""A tiny base model on disk, with its tokenizer, for runs that train adapters."""

import jax

from dpo_jax.data.sources import sentiment
from dpo_jax.models import hf
from dpo_jax.models.decoder import init_params
from dpo_jax.models.spec import preset
from dpo_jax.wiring.exporting import tokenizer_files


def write_base(folder):
    """Writes it, drawn at random, and returns the folder."""
    tokenizer = sentiment.tokenizer()
    spec = preset("tiny", vocab=len(tokenizer), max_positions=32)
    params, beside = init_params(spec, jax.random.key(7)), tokenizer_files(tokenizer)
    ids = {"eos_token_id": tokenizer.eos_token_id}
    hf.save_params(params, spec, folder, beside=beside, token_ids=ids)
    return folder
