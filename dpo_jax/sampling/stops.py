"""Where a continuation ends that was asked to end at certain strings.

Strings are looked for in decoded text, on the host, between chunks of tokens; what is
kept does not depend on the chunks.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

Decode = Callable[[Sequence[int]], str]


class Cut(NamedTuple):
    """What is left of a continuation.

    Attributes:
      tokens: that are kept; the last is the one that completed a stop string.
      text: before the stop string.
      found: whether there was one.
    """

    tokens: int
    text: str
    found: bool


def cut(tokens: Sequence[int], decode: Decode, strings: Sequence[str]) -> Cut:
    """Cuts a continuation at the first stop string that its tokens complete.

    Args:
      tokens: ids.
      decode: ids -> text.
      strings: none of them empty.
    """
    text = decode(tokens)
    if not any(string in text for string in strings):
        return Cut(len(tokens), text, False)
    for count in range(1, len(tokens) + 1):
        begun = decode(tokens[:count])
        starts = [begun.find(string) for string in strings if string in begun]
        if starts:
            return Cut(count, begun[: min(starts)], True)
    return Cut(len(tokens), text, False)
