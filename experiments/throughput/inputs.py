"""What every contender trains on: the same pairs, tokenizer, model and settings.

The pairs are real dialogues (hh-rlhf's format); the tokenizer is a byte-level BPE
learnt from them; the model is a random Llama whose folder both libraries load.
"""

import gzip
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from dpo_jax.data.sources.files import BadRow
from dpo_jax.data.sources.hh import split_transcripts
from dpo_jax.models import hf
from dpo_jax.models.decoder import init_params
from dpo_jax.models.spec import DecoderSpec

END = "<|end|>"
BETA, LR, CLIP = 0.1, 1e-5, 1.0  # AdamW without warm-up; not what is compared
MAX_TOKENS = 4096  # longer than any pair: nothing is cut


def read_pairs(path: Path) -> list[dict[str, str]]:
    """Reads the usable rows of hh-rlhf's format: a prompt and two other responses."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return list(_usable(map(json.loads, lines)))


def sample(rows: Sequence[dict[str, str]], count: int) -> list[dict[str, str]]:
    """Draws rows, always the same: those that lead the file are shorter than most."""
    return random.Random(0).sample(rows, count)


def _usable(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, str]]:
    for row in rows:
        try:
            fields = split_transcripts(row)
        except BadRow:
            continue
        if fields["chosen"].strip() and fields["rejected"].strip():
            yield {name: fields[name] for name in ("prompt", "chosen", "rejected")}


def write_rows(rows: Sequence[dict[str, str]], path: Path) -> None:
    """Writes rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def write_tokenizer(
    rows: Sequence[dict[str, str]], folder: Path, vocab: int, *, filled: int = 0
) -> int:
    """Learns a byte-level BPE from the rows; returns how many ids it has.

    Args:
      rows: to learn from.
      folder: to write to.
      vocab: ids to learn, at most.
      filled: ids to have; what is not learnt stands for nothing.
    """
    learnt = tokenizers.Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learnt.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learnt.train_from_iterator((text for row in rows for text in row.values()), trainer)
    unused = range(learnt.get_vocab_size(), filled)
    learnt.add_special_tokens([f"<|unused {number}|>" for number in unused])
    folder.mkdir(parents=True, exist_ok=True)
    learnt.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": END,
        "model_max_length": MAX_TOKENS,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return learnt.get_vocab_size()


def spec(*, layers: int, width: int, vocab: int) -> DecoderSpec:
    """Describes a Llama with heads of 64 and an MLP of 2⅔ times its width."""
    return DecoderSpec(
        model_type="llama",
        vocab=vocab,
        layers=layers,
        width=width,
        heads=width // 64,
        kv_heads=width // 64,
        head_dim=64,
        ff=-(-8 * width // 3 // 32) * 32,
        max_positions=MAX_TOKENS,
        norm_eps=1e-6,
        rope_theta=1e4,
        tie=True,
    )


def write_folder(
    folder: Path,
    rows: Sequence[dict[str, str]],
    kept: int,
    *,
    layers: int,
    width: int,
    vocab: int,
) -> None:
    """Writes all that a contender reads; the tokenizer learns from all rows.

    Args:
      folder: for `model/` and `pairs.jsonl`.
      rows: of `read_pairs`.
      kept: how many of them are trained on, by `sample`.
      layers: of the model.
      width: of the model.
      vocab: ids of the tokenizer, at most.
    """
    ids = write_tokenizer(rows, folder / "model", vocab)
    write_model(spec(layers=layers, width=width, vocab=ids), folder / "model")
    write_rows(sample(rows, kept), folder / "pairs.jsonl")


def write_model(described: DecoderSpec, folder: Path) -> None:
    """Draws parameters and writes them beside the tokenizer as an HF folder."""
    params = jax.jit(init_params, static_argnums=0)(described, jax.random.key(0))
    hf.save_params(params, described, folder)
