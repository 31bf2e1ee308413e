"""Layouts by hand, and properties that hold for any lengths."""

from itertools import combinations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from layout_cases import longest, rows_of

from dpo_jax.data import layouts, planning
from dpo_jax.data.layouts import Shape
from dpo_jax.errors import ConfigError
from dpo_jax.types import Batch, Record

REQUIRED = [name for name in Batch._fields if name not in Batch._field_defaults]


def record(index, prompt, *responses):
    ids = iter(range(100 * (index + 1), 100 * (index + 2)))
    take = lambda n: np.array([next(ids) for _ in range(n)], np.int32)  # noqa: E731
    comparisons = ((0, 1),) * (len(responses) == 2)
    return Record(index, take(prompt), tuple(take(n) for n in responses), comparisons)


def judged(record, **response):
    """Gives a record columns of responses."""
    return record._replace(response=response, comparisons=())


def test_prefix_shared_row_by_hand():
    """A prompt of 2, responses of 2 and 1: both first tokens hang on token 1."""
    _, shape, batch = rows_of("prefix_shared", [record(0, 2, 2, 1)], 8)
    assert shape == Shape(rows=1, tokens=8, scored=3, slots=2, comparisons=1)
    np.testing.assert_array_equal(batch.tokens, [[100, 101, 102, 103, 104, 0, 0, 0]])
    np.testing.assert_array_equal(batch.positions, [[0, 1, 2, 3, 2, 0, 0, 0]])
    np.testing.assert_array_equal(batch.docs, [[1, 1, 1, 1, 1, 0, 0, 0]])
    np.testing.assert_array_equal(batch.branches, [[0, 0, 1, 1, 2, 0, 0, 0]])
    np.testing.assert_array_equal(batch.parents, [[1, 2, 1]])
    np.testing.assert_array_equal(batch.targets, [[102, 103, 104]])
    np.testing.assert_array_equal(batch.slots, [[0, 0, 1]])
    np.testing.assert_array_equal(batch.ends, [[3, 4]])
    np.testing.assert_array_equal(batch.ids, [[0, 0]])
    np.testing.assert_array_equal(batch.pairs, [[[0, 1]]])


def masked(record, *masks):
    """Says which tokens of each response count."""
    return record._replace(token={"scored": tuple(np.array(m) > 0 for m in masks)})


@pytest.mark.parametrize("layout", sorted(planning.LAYOUTS))
def test_tokens_that_do_not_count_are_seen_and_not_listed(layout):
    """A prompt of 2; of the responses 102…105 and 106…107, only 102, 105 and 107."""
    plain = record(0, 2, 4, 2)
    one = masked(plain, [1, 0, 0, 1], [0, 1])
    with_column = one._replace(
        token={**one.token, "ref_logps": (np.float32([1, 2]), np.float32([3]))}
    )
    _, shape, batch = rows_of(layout, [with_column], token=("ref_logps",))
    _, _, whole = rows_of(layout, [plain])
    for name in ("tokens", "positions", "docs", "branches", "ends", "pairs"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(whole, name))
    listed = batch.slots < shape.slots
    assert batch.targets[listed].tolist() == [102, 105, 107]
    parents = np.take_along_axis(batch.tokens, batch.parents, axis=1)
    assert parents[listed].tolist() == [101, 104, 106]
    assert batch.token["ref_logps"][listed].tolist() == [1, 2, 3]
    assert shape.scored == {"prefix_shared": 3}.get(layout, 2)


def test_padded_pair_lies_in_two_rows():
    """One response a row, one slot a row, so slots 0 and 1 are rows 0 and 1."""
    _, shape, batch = rows_of("padded", [record(0, 2, 2, 1)], 4)
    assert shape.rows == 2 and shape.slots == 1
    np.testing.assert_array_equal(
        batch.tokens, [[100, 101, 102, 103], [100, 101, 104, 0]]
    )
    np.testing.assert_array_equal(batch.pairs, [[[0, 1]], [[-1, -1]]])
    np.testing.assert_array_equal(batch.slots, [[0, 0], [0, 1]])


def test_first_fit_decreasing_by_hand():
    """Sizes 3, 5, 2, 6 in rows of 8: 6 + 2, then 5 + 3."""
    rows, _, _ = rows_of("packed", [record(0, 1, n) for n in (2, 4, 1, 5)], 8)
    assert [[d.record for d in row] for row in rows] == [[3, 2], [1, 0]]


def test_too_long_a_document_is_refused():
    for layout in planning.LAYOUTS:
        with pytest.raises(ConfigError, match="9 tokens do not fit a row of 8"):
            rows_of(layout, [record(0, 4, 5)], 8)


def test_a_process_fills_only_its_rows_and_counts_slots_globally():
    records = [record(i, 2, 2, 1) for i in range(3)]
    rows, shape, whole = rows_of("padded", records, 4)
    shape = shape._replace(rows=8)
    whole = layouts.fill(rows, records, shape)
    for here in ([0, 1, 2, 3], [1, 5, 6]):
        part = layouts.fill(rows, records, shape, here)
        for name in REQUIRED:
            np.testing.assert_array_equal(
                getattr(part, name), getattr(whole, name)[here]
            )


records_strategy = st.lists(
    st.tuples(st.integers(1, 9), st.integers(1, 8), st.integers(1, 8)),
    min_size=1,
    max_size=7,
)


@settings(deadline=None, max_examples=60)
@given(records_strategy, st.sampled_from(sorted(planning.LAYOUTS)), st.integers(0, 3))
def test_every_response_is_scored_once_behind_its_own_prompt(sizes, layout, spare):
    """Reading a row back through parents and branches gives each record again."""
    records = [record(i, *n) for i, n in enumerate(sizes)]
    row_tokens = longest(layout, records) + spare
    _, shape, batch = rows_of(layout, records, row_tokens)
    found = {}
    for b in range(shape.rows):
        for slot in range(shape.slots):
            entries = np.flatnonzero(batch.slots[b] == slot)
            if not len(entries):
                assert batch.ids[b, slot] == -1
                continue
            own = records[batch.ids[b, slot]]
            parents = batch.parents[b, entries]
            seen = (batch.docs[b] == batch.docs[b, parents[0]]) & (
                batch.branches[b] == 0
            )
            np.testing.assert_array_equal(batch.tokens[b, seen], own.prompt)
            assert parents[0] == np.flatnonzero(seen)[-1]
            assert batch.ends[b, slot] == (
                parents[-1] + 1 if len(entries) > 1 else batch.ends[b, slot]
            )
            assert batch.tokens[b, batch.ends[b, slot]] == batch.targets[b, entries[-1]]
            found[b * shape.slots + slot] = (
                own.index,
                tuple(batch.targets[b, entries]),
            )
    pairs = batch.pairs[batch.pairs[..., 0] >= 0]
    assert len(pairs) == len(records) and len(found) == 2 * len(records)
    for chosen, rejected in pairs:
        index = found[chosen][0]
        assert found[chosen] == (index, tuple(records[index].responses[0]))
        assert found[rejected] == (index, tuple(records[index].responses[1]))


def ranking(index, prompt, *responses):
    order = tuple(combinations(range(len(responses)), 2))
    plain = record(index, prompt, *responses)
    return plain._replace(comparisons=order, ranked=True)


def test_padded_ranking_lies_in_three_rows_by_hand():
    """One slot a row: the ranking's places are 0, 1, 2; the pair's are 3 and 4."""
    records = [ranking(0, 2, 1, 1, 1), ranking(1, 1, 1, 1)]
    _, shape, batch = rows_of("padded", records, 3)
    assert shape == Shape(5, 3, 1, 1, comparisons=3, rankings=1, group=3)
    none = [-1, -1, -1]
    np.testing.assert_array_equal(
        batch.groups, [[[0, 1, 2]], [none], [none], [[3, 4, -1]], [none]]
    )
    np.testing.assert_array_equal(batch.pairs[0], [[0, 1], [0, 2], [1, 2]])
    np.testing.assert_array_equal(batch.pairs[3], [[3, 4], [-1, -1], [-1, -1]])
    assert (batch.pairs[[1, 2, 4]] == -1).all()
    assert batch.groups.dtype == batch.pairs.dtype == np.int32


def test_two_rankings_share_a_row_by_hand():
    """Sizes 5 and 3 in a row of 8, the longer first: slots 0–2 and 3–4."""
    records = [ranking(0, 1, 1, 1), ranking(1, 2, 1, 1, 1)]
    _, shape, batch = rows_of("prefix_shared", records, 8)
    assert shape == Shape(1, 8, 5, 5, comparisons=4, rankings=2, group=3)
    np.testing.assert_array_equal(batch.groups, [[[0, 1, 2], [3, 4, -1]]])
    np.testing.assert_array_equal(batch.pairs, [[[0, 1], [0, 2], [1, 2], [3, 4]]])
    np.testing.assert_array_equal(batch.branches, [[0, 0, 1, 2, 3, 0, 1, 2]])
    np.testing.assert_array_equal(batch.parents, [[1, 1, 1, 5, 5]])


def test_labels_and_ratings_stand_in_their_slots():
    """A row of 5 with the document of 3 tokens, then that of 2; and an empty one."""
    records = [
        judged(record(0, 1, 1), labels=(-1,), ratings=(0.5,)),
        judged(record(1, 1, 1, 1), labels=(1, 0), ratings=(2.5, 0.0)),
    ]
    rows, shape, bare = rows_of("prefix_shared", records, 5)
    assert not bare.response and not bare.token and bare.groups is None
    assert shape.comparisons == 1 and (bare.pairs == -1).all()
    shape = shape._replace(rows=2, response=("labels", "ratings"))
    batch = layouts.fill(rows, records, shape)
    np.testing.assert_array_equal(batch.ids, [[1, 1, 0], [-1, -1, -1]])
    found = batch.response
    np.testing.assert_array_equal(found["labels"], [[1, 0, -1], [0, 0, 0]])
    np.testing.assert_array_equal(found["ratings"], [[2.5, 0.0, 0.5], [0, 0, 0]])
    assert {column.dtype for column in found.values()} == {np.dtype(np.float32)}


def test_a_column_of_tokens_stands_beside_the_scored_list():
    """A response of 2 tokens, then one of 1, and an empty row."""
    one = record(0, 1, 2, 1)
    known = (np.float32([-1.5, -2.5]), np.float32([-3.5]))
    rows, shape, _ = rows_of("prefix_shared", [one], 4)
    shape = shape._replace(rows=2, token=("ref_logps",))
    batch = layouts.fill(rows, [one._replace(token={"ref_logps": known})], shape)
    want = [[-1.5, -2.5, -3.5], [0, 0, 0]]
    np.testing.assert_array_equal(batch.token["ref_logps"], want)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.lists(st.integers(1, 6), min_size=3, max_size=5), min_size=1, max_size=5
    ),
    st.sampled_from(sorted(planning.LAYOUTS)),
    st.integers(0, 3),
)
def test_groups_and_pairs_name_the_responses_in_order(sizes, layout, spare):
    """Reading targets back through `groups` gives each ranking; `pairs` its pairs."""
    records = [ranking(i, *n) for i, n in enumerate(sizes)]
    row_tokens = longest(layout, records) + spare
    _, shape, batch = rows_of(layout, records, row_tokens)
    texts = {
        b * shape.slots + s: tuple(batch.targets[b, batch.slots[b] == s])
        for b in range(shape.rows)
        for s in range(shape.slots)
    }
    expected = {tuple(tuple(r) for r in record.responses) for record in records}
    groups = batch.groups.reshape(-1, shape.group)
    found = [tuple(texts[at] for at in group if at >= 0) for group in groups]
    assert {group for group in found if group} == expected
    pairs = batch.pairs[batch.pairs[..., 0] >= 0]
    assert sorted((texts[a], texts[b]) for a, b in pairs) == sorted(
        pair for group in expected for pair in combinations(group, 2)
    )


@pytest.mark.parametrize("layout", planning.LAYOUTS)
@pytest.mark.parametrize("window", [0, 1, 3, 100])
def test_visible_pairs_are_those_of_the_mask(layout, window):
    """Counted one by one in the arrays, as the dimension key says who sees whom."""
    records = [record(0, 5, 3, 1), record(1, 2, 4), record(2, 1, 2, 2, 6)]
    batch = rows_of(layout, records, 24)[2]
    seen = 0
    for docs, branches, positions in zip(
        batch.docs, batch.branches, batch.positions, strict=True
    ):
        for q, k in zip(*np.tril_indices(24), strict=True):
            near = not window or positions[q] - positions[k] < window
            on_the_way = branches[k] in (0, branches[q])
            seen += docs[q] > 0 and docs[q] == docs[k] and on_the_way and near
    table = layouts.measure(records)
    documents = planning.LAYOUTS[layout].split(table)
    assert planning.visible_pairs(table, documents, window) == seen > 0
