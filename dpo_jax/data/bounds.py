"""Bounds on a chat template, which is a program of somebody else.

Jinja's sandbox keeps it from files and from the insides of Python, not from running for
ever or from filling the memory.
"""

import contextlib
import gc
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dpo_jax.errors import ModelError

SECONDS = 5.0  # to render one chat
ROW_SECONDS = 20.0  # of a processor, to render a chat up to each of its turns
MEMORY = 256 * 2**20  # bytes, beside what the process holds
CHARACTERS = 2**20  # beside four times what the chat holds
WAY_OUT = "set data.chat_template to another"
STATM = Path("/proc/self/statm")  # of Linux; elsewhere the memory is not bounded


class _Late(Exception):
    """Raised in the middle of whatever runs."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Ends what takes too long or too much memory.

    The time is bounded in the main thread alone: others get no signals.

    Raises:
      ModelError: saying which of the two.
    """
    try:
        with _clock(), _fence():
            yield
    except _Late as error:
        raise ModelError(
            f"the chat template takes more than {SECONDS:g} s for one chat; {WAY_OUT}"
        ) from error
    except MemoryError as error:
        raise ModelError(
            f"the chat template takes more than {MEMORY // 2**20} MiB for one chat; "
            f"{WAY_OUT}"
        ) from error


def within_row(show: Callable[..., str]) -> Callable[..., str]:
    """Bounds how long one row is rendered again and again, as to find its turns.

    Args:
      show: renders messages. What it gives raises a ModelError once `ROW_SECONDS` have
        been spent on the row; it is of this row and this thread alone.
    """
    since = time.thread_time()

    def bounded_show(chat: Any, *, tools: Any = (), answer: bool = False) -> str:
        if time.thread_time() - since > ROW_SECONDS:
            raise ModelError(
                f"the chat template takes more than {ROW_SECONDS:g} s to show where "
                "the turns of one chat lie; shorten the chat, or mark the answers in "
                "the template with {% generation %}"
            )
        return show(chat, tools=tools, answer=answer)

    return bounded_show


def check_size(text: str, *, given: int) -> str:
    """Returns a rendered chat; `given` is the number of characters that it says.

    Raises:
      ModelError: if it is absurdly long.
    """
    if len(text) > (most := CHARACTERS + 4 * given):
        raise ModelError(
            f"the chat template makes {len(text)} characters of a chat of {given}, "
            f"more than {most}; {WAY_OUT}"
        )
    return text


@contextlib.contextmanager
def _clock() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise _Late

    before, collects = signal.signal(signal.SIGALRM, stop), gc.isenabled()
    gc.disable()  # its callbacks would swallow what `stop` raises
    signal.setitimer(signal.ITIMER_REAL, SECONDS, 0.5)  # again, if it was swallowed
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if collects:
            gc.enable()


@contextlib.contextmanager
def _fence() -> Iterator[None]:
    if not STATM.exists():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    held = int(STATM.read_text().split()[5]) * resource.getpagesize()
    free = soft == resource.RLIM_INFINITY
    most = held + MEMORY if free else min(held + MEMORY, soft)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
