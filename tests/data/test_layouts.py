"""Layouts by hand, and properties that hold for any lengths."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from dpo_jax.data import layouts
from dpo_jax.data.layouts import Lengths, Shape
from dpo_jax.types import Batch, Record

REQUIRED = [name for name in Batch._fields if name not in Batch._field_defaults]


def record(index, prompt, *responses):
    ids = iter(range(100 * (index + 1), 100 * (index + 2)))
    take = lambda n: np.array([next(ids) for _ in range(n)], np.int32)  # noqa: E731
    return Record(index, take(prompt), tuple(take(n) for n in responses))


def rows_of(layout, records, row_tokens):
    lengths = [layouts.lengths_of(r) for r in records]
    rows = layouts.LAYOUTS[layout](lengths, row_tokens)
    shape = layouts.measure(rows, lengths, row_tokens)
    return rows, shape, layouts.fill(rows, records, shape)


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
    lengths = [Lengths(1, (n,)) for n in (2, 4, 1, 5)]
    rows = layouts.packed(lengths, 8)
    assert [[d.record for d in row] for row in rows] == [[3, 2], [1, 0]]


def test_too_long_a_document_is_refused():
    with pytest.raises(ValueError, match="9 tokens do not fit a row of 8"):
        layouts.packed([Lengths(4, (5,))], 8)
    with pytest.raises(ValueError, match="9 tokens do not fit a row of 8"):
        layouts.padded([Lengths(4, (5,))], 8)


def test_a_host_fills_only_its_rows_and_counts_slots_globally():
    records = [record(i, 2, 2, 1) for i in range(3)]
    rows, shape, whole = rows_of("padded", records, 4)
    shape = shape._replace(rows=8)
    whole = layouts.fill(rows, records, shape)
    halves = [layouts.fill(rows, records, shape, s) for s in (slice(0, 4), slice(4, 8))]
    for name in REQUIRED:
        a, b, c = (getattr(each, name) for each in (whole, *halves))
        np.testing.assert_array_equal(a, np.concatenate([b, c]))


records_strategy = st.lists(
    st.tuples(st.integers(1, 9), st.integers(1, 8), st.integers(1, 8)),
    min_size=1,
    max_size=7,
)


@settings(deadline=None, max_examples=60)
@given(records_strategy, st.sampled_from(sorted(layouts.LAYOUTS)), st.integers(0, 3))
def test_every_response_is_scored_once_behind_its_own_prompt(sizes, layout, spare):
    """Reading a row back through parents and branches gives each record again."""
    records = [record(i, *n) for i, n in enumerate(sizes)]
    lengths = [layouts.lengths_of(r) for r in records]
    row_tokens = layouts.longest_document(layout, lengths) + spare
    rows, shape, batch = rows_of(layout, records, row_tokens)
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
