"""Rewards: functions that say how good a continuation is, and the table of them.

    def mine(prompts, completions, **columns) -> list[float | None]: …

A function is called by keyword, with all samples of a turn at once, in the order of
(prompt, sample). It is given `prompts`, `completions` (texts; of a chat lists of
messages), `completion_ids` (lists of token ids) and the columns of the data, each a
list with one entry a sample; a function without `**columns` is given what it names. It
may be `async`. None = no verdict. The reward functions of TRL, Tunix and MaxText have
this form. No jax here: what a scalar model said is a column, `model_scores`.
"""

from dpo_jax.data.sources import sentiment
from dpo_jax.rewards.ask import Function
from dpo_jax.rewards.simple import length, of_model, of_words

RewardTable = dict[str, Function]

REWARDS: RewardTable = {
    "length": length,  # tokens
    "model": of_model,  # of `reward.path`
    "sentiment": of_words(sentiment.probability),
    "sentiment_log_odds": of_words(sentiment.reward),
}
