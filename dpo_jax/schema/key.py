"""What the schema says of a key, and the ranges that recur."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

Range = tuple[float, float, bool]  # lowest, highest, whether the lowest is allowed
UP_TO_ONE = math.nextafter(1.0, 2.0)  # the highest, never allowed, where 1 is

ANY: Range = (-math.inf, math.inf, False)
POSITIVE: Range = (0.0, math.inf, False)
NOT_NEGATIVE: Range = (0.0, math.inf, True)
SAMPLED: Range = (0, 1_000_000, True)  # prompts
COUNT: Range = (1, math.inf, True)
SHARE: Range = (0.0, UP_TO_ONE, True)
POSITIVE_SHARE: Range = (0.0, UP_TO_ONE, False)
BELOW_ONE: Range = (0.0, 1.0, True)
FLOATS = ("float32", "bfloat16", "float16")


class Key(NamedTuple):
    """A key of a configuration.

    Attributes:
      default: its value where nothing is said; off where that makes sense.
      meaning: what it does.
      range: of a number; None = not looked at.
      choices: of a word; () = not looked at here.
      items: what a tuple holds: words (`str`) or finite numbers (`float`).
    """

    default: Any
    meaning: str
    range: Range | None = None
    choices: Sequence[str] = ()
    items: type = str
