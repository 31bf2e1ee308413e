"""Rewards that need nothing but the samples themselves."""

from collections.abc import Callable, Sequence
from typing import Any

from dpo_jax.data.columns import Text
from dpo_jax.rewards.ask import Function


def length(completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float]:
    """Counts the tokens of each sample, the one that ended it included."""
    del columns
    return [float(len(ids)) for ids in completion_ids]


def of_model(model_scores: Sequence[float], **columns: Any) -> list[float]:
    """Repeats the score of each sample by the reward model of the run.

    It lies on the mesh, so the run asks it first, and hands its scores on as a column.
    """
    del columns
    return [*model_scores]


def of_words(truth: Callable[[Sequence[str], Sequence[str]], float]) -> Function:
    """Makes a reward of what is said of the words of a prompt and its continuation.

    Args:
      truth: (words of the prompt, words of the continuation) -> reward.
    """

    def judge(
        prompts: Sequence[Text], completions: Sequence[Text], **columns: Any
    ) -> list[float]:
        del columns
        pairs = zip(prompts, completions, strict=True)
        return [truth(_words(prompt), _words(text)) for prompt, text in pairs]

    return judge


def _words(text: Text) -> list[str]:
    """Splits a text, or the last message of a chat, at spaces."""
    last = text if isinstance(text, str) else text[-1]["content"]
    return last.split()
