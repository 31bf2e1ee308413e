"""Which cases run by day, and which at night."""

import pytest


def by_day(chosen, cases):
    """Lets the chosen cases stand for the others, which run at night."""
    return [
        case if case in chosen else pytest.param(case, marks=pytest.mark.nightly)
        for case in cases
    ]
