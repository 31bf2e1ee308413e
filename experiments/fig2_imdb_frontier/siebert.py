"""The truth of the full tier: P(positive) of a sentiment classifier, as in the paper.

    python -m dpo_jax train … --config.reward.name=siebert \
        --rewards=experiments/fig2_imdb_frontier/siebert.py

The classifier is `siebert/sentiment-roberta-large-english` (arXiv:2305.18290 appendix
C.1), fetched from the hub on first use; it reads prompt and continuation as one text.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from dpo_jax.models import files
from experiments.fig2_imdb_frontier import roberta

MODEL, REVISION = "siebert/sentiment-roberta-large-english", ""
POSITIVE = 1  # its label
ROWS, TOKENS = 64, 32  # texts that are read together; lengths are multiples


def siebert(
    prompts: Sequence[str], completions: Sequence[str], **columns: Any
) -> list[float]:
    """Returns the probability that each whole text is positive."""
    del columns
    texts = [a + b for a, b in zip(prompts, completions, strict=True)]
    return _classifier()(texts)


@functools.cache
def _classifier() -> Callable[[Sequence[str]], list[float]]:
    from transformers import AutoTokenizer

    folder = files.resolve(MODEL, REVISION)
    weights, shape = roberta.read(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return functools.partial(_scores, weights, shape, tokenizer)


def _scores(
    weights: roberta.Weights,
    shape: roberta.Shape,
    tokenizer: Any,
    texts: Sequence[str],
) -> list[float]:
    """Scores texts, a few at a time and padded, so that few shapes are compiled."""
    found: list[float] = []
    for at in range(0, len(texts), ROWS):
        some = list(texts[at : at + ROWS])
        padded = some + [""] * (ROWS - len(some))
        read = tokenizer(
            padded,
            padding=True,
            pad_to_multiple_of=TOKENS,
            truncation=True,
            return_tensors="np",
        )
        ids, mask = read["input_ids"], read["attention_mask"].astype(bool)
        with jax.transfer_guard("allow"):
            said = roberta.logits(weights, ids, mask, shape=shape)
            odds = np.asarray(jax.nn.softmax(said)[:, POSITIVE])
        found += odds[: len(some)].tolist()
    return found
