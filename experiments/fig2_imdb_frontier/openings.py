"""Openings of film reviews that a language model is asked to go on with."""

import itertools

import numpy as np

WHO = ("I watched", "We saw", "My brother rented", "I finally saw", "They showed us")
WHAT = (
    *("the remake", "the sequel", "this documentary", "the new thriller"),
    *("that old western", "the director's cut", "this small comedy", "the musical"),
    *("a horror film", "the spy movie", "the animated version", "a war drama"),
)
WHEN = ("last night", "on a plane", "with my family", "at the festival", "yesterday")
SPLIT_SEED = 0


def openings(count: int) -> list[str]:
    """Returns different openings, in an order that is always the same.

    "Film review. I watched the remake last night and"

    Args:
      count: at most `len(WHO) * len(WHAT) * len(WHEN)`.
    """
    every = list(itertools.product(WHO, WHAT, WHEN))
    assert count <= len(every), f"{count} of {len(every)}"
    order = np.random.default_rng(SPLIT_SEED).permutation(len(every))[:count]
    return [f"Film review. {' '.join(every[i])} and" for i in order]
