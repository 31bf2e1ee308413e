"""The truth of the real tier: how pleased VADER finds a text, as a file of rewards.

    python -m dpo_jax train … --config.reward.name=vader \
        --rewards=experiments/fig2_imdb_frontier/vader.py

VADER is a list of words with rules for negation and emphasis (Hutto & Gilbert 2014).
Its package is no dependency of this project: `pip install vaderSentiment`.
"""

from collections.abc import Sequence
from typing import Any

try:
    from vaderSentiment.vaderSentiment import (  # pyright: ignore
        SentimentIntensityAnalyzer as _Analyzer,
    )
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "the true reward of this tier needs the package vaderSentiment; "
        "`pip install vaderSentiment` where dpo_jax is installed"
    ) from error

_SCORE = _Analyzer().polarity_scores


def vader(completions: Sequence[str], **columns: Any) -> list[float]:
    """Returns (1 + c)/2 of each continuation, c its compound score in [−1, 1]."""
    del columns
    return [(1.0 + _SCORE(text)["compound"]) / 2.0 for text in completions]
