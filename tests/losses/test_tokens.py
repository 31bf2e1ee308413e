"""Weights on tokens, by hand."""

import numpy as np
import pytest

from dpo_jax.losses import tokens
from dpo_jax.types import TokenPlaces

# Row 0: four tokens against two; row 1: two tokens against four; row 2: compared with
# none.
PLACES = TokenPlaces(
    index=np.int32([[0, 1, 2, 3], [0, 1, 0, 0], [0, 1, 2, 3]]),
    rank=np.int32([[2, 0, 3, 1], [1, 0, 0, 0], [3, 2, 1, 0]]),
    length=np.float32([[4] * 4, [2] * 4, [4] * 4]),
    partner=np.float32([[2] * 4, [4] * 4, [0] * 4]),
)


def test_d2po_decays_with_the_position():
    want = [[1, 0.5, 0.25, 0.125], [1, 0.5, 1, 1], [1, 1, 1, 1]]
    np.testing.assert_array_equal(tokens.d2po(PLACES, decay=0.5), want)


def test_sampo_keeps_as_many_tokens_as_the_shorter_response_has():
    want = [[0, 1, 0, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    np.testing.assert_array_equal(tokens.sampo(PLACES), want)


def test_ld_weighs_what_lies_past_the_shorter_response():
    want = np.float32([[1, 1, 0.3, 0.3], [1, 1, 1, 1], [1, 1, 1, 1]])
    np.testing.assert_array_equal(tokens.ld(PLACES, ld_alpha=0.3), want)


@pytest.mark.parametrize(
    "weights", [tokens.d2po(PLACES, decay=1.0), tokens.ld(PLACES, ld_alpha=1.0)]
)
def test_off_is_one_everywhere(weights):
    np.testing.assert_array_equal(weights, np.ones((3, 4), np.float32))
    assert weights.dtype == np.float32


def test_names():
    assert set(tokens.WEIGHTS) == {"d2po", "sampo", "ld"}
