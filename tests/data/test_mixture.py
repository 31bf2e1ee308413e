"""Which record of which source comes when; sources laid end to end."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_jax.data import mixture
from dpo_jax.data.loader import train_steps
from dpo_jax.data.mixture import Sources
from dpo_jax.data.prepare import Prepared
from dpo_jax.data.tokens import Gathered, fingerprint

HOW = {"seed": 5, "shuffle": True}


def sources(*sizes, weights=()):
    names = tuple("abcdef"[: len(sizes)])
    starts = tuple(int(at) for at in np.cumsum([0, *sizes[:-1]]))
    return Sources(names, tuple(weights), sizes, starts)


def order(of, pairs, steps, **changed):
    steps = mixture.train_steps(of, pairs=pairs, steps=steps, **HOW | changed)
    assert {len(step) for step in steps} == {pairs}
    return np.concatenate(steps)


def test_turns_by_hand():
    """Of 3 : 1, the third position is the first at which the small one is due.

    After p positions it is owed p/4: ½ at p = 2, when both are due, and the large one,
    owed ½ of its ¾ a position, must come sooner.
    """
    assert mixture.turns([3, 1], 8).tolist() == [0, 0, 1, 0, 0, 0, 1, 0]
    assert mixture.turns([0.75, 0.25], 5).tolist() == [0, 0, 1, 0, 0]
    assert mixture.turns([2.0], 3).tolist() == [0, 0, 0]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0.01, 9.0), min_size=1, max_size=6), st.integers(1, 300))
def test_a_source_is_never_a_whole_turn_off_its_share(weights, count):
    owners = mixture.turns(weights, count)
    shares = np.array(weights) / np.sum(weights)
    taken = np.cumsum(owners[:, None] == np.arange(len(weights)), axis=0)
    due = shares * np.arange(1, count + 1)[:, None]
    assert np.abs(taken - due).max() < 1.0


def test_without_weights_a_mixture_is_its_sources_end_to_end():
    """Each record once an epoch, in the very order of one file of both."""
    found = order(sources(5, 7), pairs=4, steps=3)
    assert sorted(found) == list(range(12))
    want = train_steps(12, pairs=4, steps=3, **HOW)
    np.testing.assert_array_equal(found, np.concatenate(want))


def test_a_source_goes_through_epochs_of_its_own():
    """600 positions at 1 : 2 are 200 of 10 records, each 20 times, and 400 of 40."""
    of = sources(10, 40, weights=(1, 2))
    found = order(of, pairs=6, steps=100)
    small, large = found[found < 10], found[found >= 10]
    assert (len(small), len(large)) == (200, 400)
    for own, size in ((small, 10), (large, 40)):
        epochs = own.reshape(-1, size)
        assert all(len(set(epoch)) == size for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    for step in found.reshape(100, 6):
        assert (step < 10).sum() == 2


def test_the_order_is_a_function_of_seed_weights_and_position_alone():
    """A longer run begins alike, and so do larger steps."""
    of = sources(10, 40, weights=(0.3, 0.7))
    found = order(of, pairs=6, steps=10)
    np.testing.assert_array_equal(order(of, pairs=6, steps=25)[:60], found)
    np.testing.assert_array_equal(order(of, pairs=30, steps=2), found)
    assert order(of, pairs=6, steps=10, seed=6).tolist() != found.tolist()
    other = sources(10, 40, weights=(0.4, 0.6))
    assert order(other, pairs=6, steps=10).tolist() != found.tolist()


def test_a_run_may_be_too_short_for_a_source():
    of = sources(10, 40, weights=(1e-300, 1))
    for shuffle in (True, False):
        assert order(of, pairs=6, steps=10, shuffle=shuffle).min() >= 10


def test_unshuffled_sources_come_in_their_order():
    of = sources(2, 3, weights=(1, 1))
    found = order(of, pairs=4, steps=2, shuffle=False)
    assert found[found < 2].tolist() == [0, 1, 0, 1]
    assert found[found >= 2].tolist() == [2, 3, 4, 2]


def test_sources_of_one_size_are_not_shuffled_alike():
    found = order(sources(50, 50, weights=(1, 1)), pairs=10, steps=10)
    assert found[found < 50].tolist() != (found[found >= 50] - 50).tolist()


def test_an_evaluation_step_has_records_of_one_source():
    of = sources(5, 2, 3)
    steps = mixture.eval_steps(of, pairs=2)
    assert steps == [[0, 1], [2, 3], [4], [5, 6], [7, 8], [9]]
    assert mixture.eval_steps(sources(5), pairs=2) == [[0, 1], [2, 3], [4]]


def test_rows_tell_their_source():
    """Numbered through: of 4, 3 and 5 rows read, whichever were kept."""
    of = Sources(("a", "b", "c"), (), (2, 3, 4), (0, 4, 7))
    assert [of.name_of(i) for i in (0, 3, 4, 6, 7, 11)] == [*"aabbcc"]
    assert of.shares([0, 1, 4, 11]) == {"a": 0.5, "b": 0.25, "c": 0.25}


def prepared(first, rows, masked=False, **judged):
    gathered = Gathered()
    for at in range(rows):
        ids = ([first + at], [7, 8], [9])
        marks = ([True, False], [True]) if masked else ()
        known = {"labels": (), "ratings": (), **judged}
        gathered.add(at, ids, known, ranked=False, scored=marks)
    records = gathered.records()
    report = {
        "read": rows + 1,
        "kept": rows,
        "dropped": {"empty": 1},
        "summary": "dropped 1",
        "cut": {"kept": rows, "dropped": {}, "cut_rows": 1},
        "unread_columns": [f"column {first}"],
    }
    return Prepared(records, report, fingerprint(list(records)))


def test_one_source_is_left_as_it_was():
    one = prepared(10, 3)
    assert mixture.together({"a": one}, ()) == (one, Sources(("a",), (), (3,), (0,)))


def test_records_lie_end_to_end():
    """With masks where one has some, and columns that both have."""
    parts = {
        "a": prepared(10, 2, ratings=(1.0, 0.5)),
        "b": prepared(20, 3, masked=True),
    }
    whole, of = mixture.together(parts, (0.5, 1.0))
    assert of == Sources(("a", "b"), (0.5, 1.0), (2, 3), (0, 3))
    assert [r.index for r in whole.records] == [0, 1, 3, 4, 5]
    assert [r.prompt.tolist() for r in whole.records] == [[10], [11], [20], [21], [22]]
    for record in whole.records:
        assert [r.tolist() for r in record.responses] == [[7, 8], [9]]
        assert record.response == {}
    masks = [r.token["scored"][0].tolist() for r in whole.records]
    assert masks == [[True, True]] * 2 + [[True, False]] * 3
    rated = {"ratings": (1.0, 0.5)}
    both = {"a": prepared(10, 2, **rated), "b": prepared(20, 1, **rated)}
    whole, _ = mixture.together(both, ())
    assert whole.records[2].response == rated
    assert whole.records.table().responses.tolist() == [[2, 1]] * 3


def test_what_is_said_of_a_mixture_is_said_of_each_source_too():
    parts = {"a": prepared(10, 2), "b": prepared(20, 3)}
    report = mixture.together(parts, (0.5, 1.0))[0].report
    assert (report["read"], report["kept"], report["dropped"]) == (7, 5, {"empty": 2})
    assert report["cut"] == {"kept": 5, "dropped": {}, "cut_rows": 2}
    assert report["unread_columns"] == ["column 10", "column 20"]
    assert report["summary"] == ("a 2 of 3 rows; dropped 1 · b 3 of 4 rows; dropped 1")
    assert report["sources"]["b"] == parts["b"].report | {"weight": 1.0}
    plain = mixture.together(parts, ())[0].report
    assert plain["sources"]["b"] == parts["b"].report


@pytest.mark.parametrize(
    "names, weights", [("ab", (0.5, 1.0)), ("ab", (0.5, 2.0)), ("ba", ()), ("ab", ())]
)
def test_a_fingerprint_changes_with_weights_and_order(names, weights):
    made = {"a": prepared(10, 2), "b": prepared(20, 3)}
    usual = mixture.together(made, (0.25, 1.0))[0].fingerprint
    parts = {name: made[name] for name in names}
    assert mixture.together(parts, weights)[0].fingerprint != usual
    again = mixture.together(made, (0.25, 1.0))[0].fingerprint
    assert again == usual
