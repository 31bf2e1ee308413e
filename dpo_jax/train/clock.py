"""Where the time of a launch goes: buckets that sum to its wall time.

At any moment one bucket runs; opening another suspends it, so nothing is counted twice
and nothing is left out. Compilation is heard of from jax, wherever it happens. This
room knows neither the loop nor what its buckets are spent on.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar, TypeVarTuple

from jax import monitoring

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

BUCKETS: tuple[str, ...] = (
    "compile",  # tracing, lowering, XLA, and reading the cache of all that
    "setup",  # rows, tokens, weights, the reference's cache
    "data",  # waiting for batches
    "step",  # dispatching steps and waiting for their metrics
    "eval",
    "checkpoint",  # as far as the loop waits for it
    "export",  # the policy's folder
    "report",  # samples, results, the page about the run
    "other",  # lines of metrics.jsonl, progress, all between
)
COMPILING = frozenset(  # jax tells when each begins (a scalar) and ends (a duration)
    f"/jax/core/compile/{stage}_duration"
    for stage in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")
)
PROGRAMS = {  # what jax tells of the compile cache -> what happened to a program
    "/jax/compilation_cache/cache_misses": "compiled",  # and kept
    "/jax/compilation_cache/cache_hits": "read",
}


class Clock:
    """Books every moment since its making under one bucket; `other` if none is open.

    While it is entered, time that its thread spends compiling goes to `compile`.

    Attributes:
      programs: how many were compiled and kept in the compile cache, and read from it;
        those that compile in a moment are not kept, and not counted.
    """

    def __init__(self, read: Callable[[], float] = time.perf_counter):
        """Starts.

        Args:
          read: tells the time in seconds.
        """
        self._read, self._mark = read, read()
        self._seconds = dict.fromkeys(BUCKETS, 0.0)
        self._open = ["other"]
        self._thread = threading.get_ident()
        self.programs = dict.fromkeys(PROGRAMS.values(), 0)

    def __enter__(self) -> "Clock":
        monitoring.register_scalar_listener(self._begun)
        monitoring.register_event_duration_secs_listener(self._ended)
        monitoring.register_event_listener(self._cached)
        return self

    def __exit__(self, *_: object) -> None:
        monitoring.unregister_scalar_listener(self._begun)
        monitoring.unregister_event_duration_listener(self._ended)
        monitoring.unregister_event_listener(self._cached)

    def _cached(self, event: str, **_: object) -> None:
        if event in PROGRAMS:
            self.programs[PROGRAMS[event]] += 1

    def _begun(self, event: str, value: float, **_: object) -> None:
        del value
        if event in COMPILING and threading.get_ident() == self._thread:
            self._book()
            self._open.append("compile")

    def _ended(self, event: str, duration_secs: float, **_: object) -> None:
        del duration_secs  # would count twice what a stage holds of another
        compiling = self._open[-1] == "compile"
        if event in COMPILING and compiling and threading.get_ident() == self._thread:
            self._book()
            self._open.pop()

    def _book(self) -> None:
        now = self._read()
        self._seconds[self._open[-1]] += now - self._mark
        self._mark = now

    @contextlib.contextmanager
    def bucket(self, name: str) -> Iterator[None]:
        """Books what happens inside under `name`, what it opens in turn excepted."""
        assert name in BUCKETS, name
        self._book()
        depth = len(self._open)
        self._open.append(name)
        try:
            yield
        finally:
            self._book()
            del self._open[depth:]

    def timed(
        self, name: str, function: Callable[[*Arguments], Result]
    ) -> Callable[[*Arguments], Result]:
        """Books each call of a function under `name`."""

        def call(*arguments: *Arguments) -> Result:
            with self.bucket(name):
                return function(*arguments)

        return call

    def seconds(self) -> dict[str, float]:
        """Returns the seconds of each bucket up to now; their sum is the wall time."""
        self._book()
        return dict(self._seconds)

    def working(self) -> float:
        """Returns the seconds since the clock was made, compilation left out."""
        seconds = self.seconds()
        return sum(seconds.values()) - seconds["compile"]
