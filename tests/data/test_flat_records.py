"""Records in flat arrays are those that were gathered, in little room."""

import functools

import numpy as np
import pytest

from dpo_jax.data.layouts import measure
from dpo_jax.data.tokens import Gathered, fingerprint

PAIRS = [  # index, prompt, responses, ratings
    (3, [1, 2], ([4, 5, 6], [7]), (0.1, -2.0)),
    (8, [9], ([1], [2, 3]), (1e-9, 3.0)),
]


def gather(rows, ranked=False, labels=()):
    gathered = Gathered()
    for index, prompt, responses, ratings in rows:
        judged = {"labels": labels, "ratings": ratings}
        gathered.add(index, (prompt, *responses), judged, ranked=ranked)
    return gathered.records()


def plain(record):
    return record.prompt.tolist(), [ids.tolist() for ids in record.responses]


def test_records_are_made_as_they_are_asked_for():
    records = gather(PAIRS)
    assert len(records) == 2 and [r.index for r in records] == [3, 8]
    assert [plain(r) for r in records] == [(p, list(r)) for _, p, r, _ in PAIRS]
    assert [r.response["ratings"] for r in records] == [(0.1, -2.0), (1e-9, 3.0)]
    assert all(r.comparisons == ((0, 1),) and not r.ranked for r in records)
    assert records[-1].index == 8 and [r.index for r in records[1:]] == [8]
    assert records[0].prompt.dtype == np.int32
    with pytest.raises(IndexError):
        records[2]


def test_rankings_compare_all_their_responses():
    """Records of different numbers of responses, without ratings."""
    records = gather([(0, [1], ([2], [3], [4]), ()), (1, [1], ([2], [3]), ())], True)
    assert [r.comparisons for r in records] == [((0, 1), (0, 2), (1, 2)), ((0, 1),)]
    assert all(r.ranked and r.response == {} for r in records)


@pytest.mark.parametrize("ranked", [False, True])
def test_lengths_are_those_of_the_records(ranked):
    """Measured from the arrays, and from the records one by one."""
    rows = [*PAIRS, (9, [1, 1, 1], ([5], [6], [7, 7]), (0.0, 0.0, 0.0))]
    records = gather(rows, ranked)
    want = measure(list(records))
    for column, other in zip(records.table(), want, strict=True):
        np.testing.assert_array_equal(column, other)
        assert column.dtype == other.dtype


def test_pairs_are_taken_apart():
    """Each response with the prompt, the index and what is known of it."""
    records = gather(PAIRS, labels=(1, -1)).apart()
    assert [plain(r) for r in records] == [
        ([1, 2], [[4, 5, 6]]),
        ([1, 2], [[7]]),
        ([9], [[1]]),
        ([9], [[2, 3]]),
    ]
    assert [r.index for r in records] == [3, 3, 8, 8]
    assert [r.response for r in records] == [
        {"labels": (1,), "ratings": (0.1,)},
        {"labels": (-1,), "ratings": (-2.0,)},
        {"labels": (1,), "ratings": (1e-9,)},
        {"labels": (-1,), "ratings": (3.0,)},
    ]
    assert all(r.comparisons == () for r in records)


def test_masks_lie_beside_the_ids():
    """Of records with one and without; apart, measured and in the fingerprint."""
    gathered = Gathered()
    nothing = {"labels": (), "ratings": ()}
    add = functools.partial(gathered.add, judged=nothing, ranked=False)
    add(0, ([1, 2], [4, 5], [6]))
    add(1, ([3], [7, 8, 9], [1]), scored=([True, False, True], [True]))
    records = gathered.records()
    masks = [[m.tolist() for m in r.token["scored"]] for r in records]
    assert masks == [[[True] * 2, [True]], [[True, False, True], [True]]]
    assert [len(r.token["scored"]) for r in records.apart()] == [1] * 4
    assert records.apart()[2].token["scored"][0].tolist() == [True, False, True]
    for column, other in zip(records.table(), measure(list(records)), strict=True):
        np.testing.assert_array_equal(column, other)
    assert records.table().scored.tolist() == [[2, 1], [2, 1]]
    plain = [r._replace(token={}) for r in records]
    assert fingerprint(list(records)) != fingerprint(plain)


def test_a_record_takes_little_more_than_its_ids():
    """200 ids of 4 bytes; a prompt and two responses beside them."""
    records = gather([(i, [1] * 80, ([2] * 60, [3] * 60), ()) for i in range(50)])
    held = sum(
        each.nbytes
        for each in (records.ids, records.starts, records.lengths, records.firsts)
    )
    assert held + records.indices.nbytes < 50 * (200 * 4 + 60)
