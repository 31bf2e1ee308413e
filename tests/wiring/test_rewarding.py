"""What the first process hears of its rewards, all others hear, bit by bit."""

import itertools
import threading
from unittest import mock

import jax
import numpy as np
import pytest

from dpo_jax.errors import DataError
from dpo_jax.rewards import REWARDS
from dpo_jax.rewards.ask import Reward
from dpo_jax.sharding import agree
from dpo_jax.wiring import rewarding

GIVEN = {
    **{"name": "", "weights": (), "timeout_seconds": 9.0, "path": "", "dtype": ""},
    "standardize": 0,
}
ASKED = {
    "prompts": ["the film"] * 3,
    "completions": [" a", " b", " c"],
    "completion_ids": [[3], [4], [5]],
    "ids": [(0, 0), (0, 1), (0, 2)],
    "columns": {},
}


def on_two_processes(function, times=1):
    """Asks on two threads that stand for processes; returns what each got."""
    rank, met, said = threading.local(), threading.Barrier(2), {}
    calls = itertools.count()

    def of_first(what, text, *, seconds):
        del seconds
        said.setdefault(what, {})[rank.mine] = text
        met.wait(5)
        return said[what][0]

    def judge(completions, **columns):
        next(calls)
        return function(completions)

    got = {0: [], 1: []}

    def process(mine):
        rank.mine = mine
        rewards = [Reward("mine", judge, 0.1)]
        asker = rewarding.make_asker(rewards, name="turn", seconds=5.0)
        for _ in range(times):
            try:
                got[mine].append(asker(**ASKED))
            except DataError as error:
                got[mine].append(str(error))

    with (
        mock.patch.object(jax, "process_index", lambda: rank.mine),
        mock.patch.object(agree, "of_first", of_first),
    ):
        threads = [threading.Thread(target=process, args=(r,)) for r in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert set(said) == {f"turn/{i}" for i in range(times)}
    return got, next(calls)


def test_the_first_process_asks_once_and_all_have_the_same_bits():
    got, calls = on_two_processes(lambda texts: [1 / 3, None, 0.1], times=2)
    assert calls == 2
    for first, second in zip(got[0], got[1], strict=True):
        np.testing.assert_array_equal(first.total, [0.1 / 3, np.nan, 0.1 * 0.1])
        assert first.total.tobytes() == second.total.tobytes()
        assert first.by_name["mine"].tobytes() == second.by_name["mine"].tobytes()


def test_its_error_is_everybodys():
    got, _ = on_two_processes(lambda texts: [1.0])
    assert "returned 1 values for 3 samples" in got[0][0]
    assert got[0] == got[1]


def test_rewards_by_name_and_weight():
    given = GIVEN | {"name": "length+sentiment", "weights": (-0.5, 2)}
    assert not rewarding.faults(given, REWARDS)
    assert rewarding.chosen(given, REWARDS) == (
        Reward("length", REWARDS["length"], -0.5),
        Reward("sentiment", REWARDS["sentiment"], 2.0),
    )
    assert rewarding.chosen(GIVEN, REWARDS) == ()
    assert rewarding.chosen(GIVEN | {"name": "length"}, REWARDS)[0].weight == 1.0


@pytest.mark.parametrize(
    ("name", "weights", "said"),
    [
        ("lenght", (), "reward.name='lenght' is not known; did you mean 'length'"),
        ("length+length", (), "names a reward twice"),
        ("length", (1.0, 2.0), r"2 weights for the 1 rewards of reward.name='length'"),
        ("", (1.0,), "1 weights for the 0 rewards"),
        ("length", (0.0,), "one must not be 0"),
        ("length", (float("nan"),), "must be finite"),
    ],
)
def test_what_does_not_fit_is_said(name, weights, said):
    faults = rewarding.faults(GIVEN | {"name": name, "weights": weights}, REWARDS)
    assert len(faults) == 1 and said in faults[0]
