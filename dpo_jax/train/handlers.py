"""Handlers of signals, for as long as a block runs. No jax."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def handled(
    numbers: Sequence[signal.Signals], take: Callable[[int, FrameType | None], Any]
) -> Iterator[None]:
    """Gives signals to a function, and then back to whom they went before.

    Python handles signals in its main thread alone: in another, nothing changes.

    Args:
      numbers: of the signals.
      take: called with the number and the frame that was interrupted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, take) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
