"""What a reward may say, and what is said to the user where it says nonsense."""

import asyncio
import time

import numpy as np
import pytest

from dpo_jax.errors import DataError
from dpo_jax.rewards import REWARDS
from dpo_jax.rewards.ask import Reward, ask, means

PROMPTS = ["the film", "the plot"]
IDS = [(prompt, sample) for prompt in (7, 3) for sample in (0, 1)]
TEXTS = [f" sample {sample} of {prompt}" for prompt, sample in IDS]


def asked(*functions, prompts=None, ids=IDS, seconds=20.0, columns=None, weights=()):
    """Asks functions about two samples of two prompts, given in another order."""
    weights = weights or [1.0] * len(functions)
    rewards = [
        Reward(getattr(f, "__name__", "noname"), f, weight)
        for f, weight in zip(functions, weights, strict=True)
    ]
    texts = TEXTS[: len(ids)]
    return ask(
        rewards,
        prompts or [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2,
        texts,
        completion_ids=[[1] * (i + 1) for i in range(len(ids))],
        ids=ids,
        columns=columns or {},
        seconds=seconds,
    )


def number(text):
    return 10.0 * int(text.split()[-1]) + int(text.split()[1])


def test_functions_see_prompt_and_sample_order_and_verdicts_go_back():
    """By keyword, samples sorted by (prompt, sample) with their own columns."""
    seen = {}

    def mine(prompts, completions, completion_ids, answer, **columns):
        seen.update(locals())
        return [number(text) for text in completions]

    got = asked(mine, columns={"answer": [*"abcd"], "more": [1, 2, 3, 4]})
    assert got.total.tolist() == [70.0, 71.0, 30.0, 31.0]
    assert seen["prompts"] == ["the plot"] * 2 + ["the film"] * 2
    assert [number(text) for text in seen["completions"]] == [30, 31, 70, 71]
    assert seen["answer"] == [*"cdab"] and seen["columns"] == {"more": [3, 4, 1, 2]}
    assert seen["completion_ids"] == [[1] * 3, [1] * 4, [1], [1] * 2]


def test_a_function_without_columns_is_given_what_it_names():
    """Both forms in use: of ids alone, and of texts alone."""

    def by_ids(completion_ids, **columns):
        return [len(ids) for ids in completion_ids]

    def by_text(completions):
        return [number(text) for text in completions]

    got = asked(by_ids, by_text, weights=(1.0, -0.5))
    assert got.by_name["by_ids"].tolist() == [1, 2, 3, 4]
    assert got.total.tolist() == [1 - 35, 2 - 35.5, 3 - 15, 4 - 15.5]


def test_a_column_that_is_not_there_is_named():
    def mine(completions, anwser):
        return [0.0] * len(completions)

    with pytest.raises(DataError, match=r"'mine' needs 'anwser'.*there are answer, co"):
        asked(mine, columns={"answer": [*"abcd"]})


def test_chats_are_lists_of_messages():
    chat = [{"role": "user", "content": "hi"}]

    def mine(prompts, completions, **columns):
        assert prompts[0] == chat
        return [number(of[0]["content"]) for of in completions]

    assert asked(mine, prompts=[chat] * 4).total.tolist() == [70.0, 71.0, 30.0, 31.0]


def test_what_a_function_does_to_its_lists_stays_its_own():
    def greedy(completions, **columns):
        count = len(completions)
        completions.clear()
        return [1.0] * count

    def mine(completions, **columns):
        return [number(text) for text in completions]

    assert asked(greedy, mine).by_name["mine"].tolist() == [70.0, 71.0, 30.0, 31.0]


def test_async_functions_that_finish_in_reverse():
    """Each sample waits the longer the earlier it stands; values keep their places."""

    async def mine(completions, **columns):
        async def one(i, text):
            await asyncio.sleep(0.02 * (len(completions) - i))
            return number(text)

        return await asyncio.gather(*(one(i, t) for i, t in enumerate(completions)))

    async def other(completions, **columns):
        return [1.0] * len(completions)

    got = asked(mine, other)
    assert got.by_name["mine"].tolist() == [70.0, 71.0, 30.0, 31.0]
    assert got.total.tolist() == [71.0, 72.0, 31.0, 32.0]


def test_the_order_of_the_samples_changes_nothing():
    """Even of a function that draws noise: it sees one order."""

    def mine(completions, **columns):
        rng = np.random.default_rng(0)
        return [number(text) + rng.random() for text in completions]

    def judged(order):
        got = ask(
            [Reward("mine", mine)],
            [str(IDS[i][0]) for i in order],
            [TEXTS[i] for i in order],
            completion_ids=[[]] * 4,
            ids=[IDS[i] for i in order],
            columns={},
            seconds=9.0,
        )
        return dict(zip(order, got.total.tolist(), strict=True))

    assert judged([0, 1, 2, 3]) == judged([2, 0, 3, 1])


def test_numbers_of_any_kind_are_numbers():
    def mine(completions, **columns):
        return np.array([1, 2, 3, 4])

    def other(completions, **columns):
        return [True, np.float32(0.5), np.int64(2), 1]

    assert asked(mine, other).total.tolist() == [5.0, 5.0, 2.0, 2.5]


def returning(values):
    return lambda completions, **columns: values


def raising(completions, **columns):
    """Fails on the last sample alone."""
    if any(number(text) == 71 for text in completions):
        raise ZeroDivisionError("by zero")
    return [0.0] * len(completions)


def leaving(completions, **columns):
    raise SystemExit(3)


BAD = {
    "too few": (returning([1.0, 2.0, 3.0]), "returned 3 values for 4 samples, at prom"),
    "none": (returning([]), "returned 0 values for 4 samples, at prompt 3"),
    "too many": (returning([0.0] * 5), "returned 5 values for 4 samples"),
    "NaN": (returning([0, 0, float("nan"), 0]), "returned nan, at prompt 7 .'the film"),
    "infinite": (returning([0, float("-inf"), 0, 0]), "returned -inf, at prompt 3"),
    "beyond float32": (returning([0, 1e300, 0, 0]), r"returned 1e\+300, at prompt 3"),
    "text": (returning(["1", 0, 0, 0]), r"returned '1' \(str\), at prompt 3 .'the pl"),
    "a list each": (returning([[1], 0, 0, 0]), r"returned \[1\] \(list\)"),
    "one text": (returning("1234"), r"returned '1234' \(str\), not a list"),
    "a dict": (returning(dict.fromkeys("abcd", 0.0)), r"\(dict\), not a list"),
    "one number": (returning(1.0), r"returned 1.0 \(float\), not a list"),
    "nothing": (returning(None), r"returned None \(NoneType\), not a list"),
    "raises": (raising, "raised ZeroDivisionError: by zero, at prompt 7 .'the film'"),
    "exits": (leaving, r"raised RuntimeError: SystemExit\(3\), at prompt 3"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_verdict_names_reward_prompt_and_rule(what):
    function, match = BAD[what]
    with pytest.raises(DataError, match=match) as caught:
        asked(function)
    assert caught.value.code == 3
    name = getattr(function, "__name__", "noname")
    assert str(caught.value).startswith(f"reward {name!r} ")
    assert "one finite number, or None for no verdict, for each" in str(caught.value)


def test_an_error_quotes_no_more_than_80_characters():
    with pytest.raises(DataError) as caught:
        asked(returning([]), prompts=["x" * 500] * 4)
    assert "x" * 80 in str(caught.value) and "x" * 81 not in str(caught.value)


def test_a_function_that_hangs_is_left_behind():
    def slow(completions, **columns):
        time.sleep(5.0)

    begun = time.monotonic()
    with pytest.raises(DataError, match="'slow' did not judge 4 samples within 0.2 s"):
        asked(slow, seconds=0.2)
    assert time.monotonic() - begun < 2.0


def test_all_rewards_together_have_the_time():
    def half(completions, **columns):
        time.sleep(0.15)
        return [0.0] * len(completions)

    def other(completions, **columns):
        return half(completions)

    with pytest.raises(DataError, match="reward 'other' did not judge"):
        asked(half, other, seconds=0.25)


def test_none_is_no_verdict_and_never_zero():
    got = asked(returning([None, 1.0, None, None]))  # of 3.0, 3.1, 7.0, 7.1
    np.testing.assert_array_equal(got.total, [np.nan, np.nan, np.nan, 1.0])
    assert got.judged.tolist() == [False, False, False, True]
    assert means(got) == {"reward": 1.0, "rewards/<lambda>/mean": 1.0} | {
        "absent_rewards": 3.0
    }
    assert means(asked(returning([None] * 4))) == {"absent_rewards": 4.0}


def test_of_several_rewards_one_may_not_concern_a_prompt():
    """One judges prompt 3 only: 7 goes without it. Of 3 it leaves out a sample."""

    def some(completions, **columns):
        return [5.0, None, None, None]

    def every(completions, **columns):
        return [1.0, 2.0, 3.0, 4.0]

    got = asked(some, every, weights=(2.0, 1.0))
    np.testing.assert_array_equal(got.total, [3.0, 4.0, 11.0, np.nan])
    logged = asked(some, every, weights=(0.0, 1.0))
    assert logged.total.tolist() == [3.0, 4.0, 1.0, 2.0]
    assert means(logged)["rewards/some/mean"] == 5.0


def test_the_table_judges_reviews_by_hand():
    """`not` turns and `very` strengthens; a prompt's last word acts, a chat's, too."""
    given = {
        "prompts": ["the film was not", [{"role": "user", "content": "this was very"}]],
        "completions": [" good .", [{"role": "assistant", "content": " awful ."}]],
        "completion_ids": [[4, 5], [6, 7, 2]],
    }
    odds = np.array([-0.7, 1.5 * -2.0])
    np.testing.assert_allclose(REWARDS["sentiment_log_odds"](**given), odds)
    np.testing.assert_allclose(REWARDS["sentiment"](**given), 1 / (1 + np.exp(-odds)))
    assert REWARDS["length"](**given) == [2.0, 3.0]
