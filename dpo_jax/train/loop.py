"""The one loop: batches in, steps, evaluations and checkpoints out.

It receives functions and knows no model, no data and no loss. Metrics of a step are
read when the next one has been dispatched, so the device never waits for the host;
before an evaluation, a checkpoint or the end they are read at once.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from absl import logging

from dpo_jax.errors import NonFiniteError, Preempted
from dpo_jax.train import watchdog
from dpo_jax.train.step import Metrics
from dpo_jax.types import Batch, TrainState

MAX_SKIPS = 3  # consecutive steps that on_nonfinite='skip' forgives


@dataclasses.dataclass(frozen=True)
class Cadence:
    """How often things happen, in steps; 0 = only at the end."""

    log: int
    evaluate: int
    checkpoint: int


@dataclasses.dataclass(frozen=True)
class Parts:
    """The functions that a run is made of.

    Attributes:
      step: `(state, batch) -> (state, metrics)`, annotation included.
      next_batch: returns the batch of each step from the first one on.
      facts: step -> what the host knows of its batch: `tokens`, `pairs`, `flops`
        as a share of what the devices do in a second, and values to log as they are.
      compiles: step -> whether its batch has a shape that no step had before.
      now: tells the time in seconds, compilation left out.
      evaluate: `state -> values`; None = no evaluation.
      save: `(step, state, values of an evaluation of that state or {})`, asynchronous.
      wait: waits until the last save is committed.
      log: `(step, split, values)`.
      progress: `(step, values)`, for a person at a terminal.
      on_bad: called with the step whose loss is not finite; names its examples.
      to_host: copies metrics from the device.
      stop: step -> whether a signal asks the run to stop, agreed among processes.
    """

    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    next_batch: Callable[[], Batch]
    facts: Callable[[int], dict[str, float]]
    compiles: Callable[[int], bool]
    now: Callable[[], float]
    evaluate: Callable[[TrainState], dict[str, float]] | None
    save: Callable[[int, TrainState, dict[str, float]], None]
    wait: Callable[[], None]
    log: Callable[[int, str, dict[str, Any]], None]
    progress: Callable[[int, dict[str, float]], None]
    on_bad: Callable[[int], str]
    to_host: Callable[[Metrics], dict[str, float]]
    stop: Callable[[int], bool]


class Meter:
    """Reads a step's metrics late, times it, and guards against non-finite ones.

    The seconds of a step run from the reading of the step before to its own.
    """

    def __init__(self, parts: Parts, every: int, last: int, *, skip: bool):
        self._parts, self._every, self._last, self._skip = parts, every, last, skip
        self._pending: tuple[int, Metrics, float] | None = None
        self._since = parts.now()
        self._skipped = 0
        self._reached = 1.0  # the largest share of the devices' peak, at least all

    def restart_clock(self) -> None:
        """Leaves out time that was not spent on steps."""
        self._since = self._parts.now()

    def push(self, step: int, metrics: Metrics, waited: float) -> None:
        """Takes the metrics of a dispatched step and reads those of the one before."""
        self.flush()
        self._pending = (step, metrics, waited)

    def flush(self) -> None:
        """Reads what is pending, writes its line.

        Raises:
          NonFiniteError: as `train.on_nonfinite` says.
        """
        if self._pending is None:
            return
        step, metrics, waited = self._pending
        self._pending = None
        values = self._parts.to_host(metrics)
        now = self._parts.now()
        seconds, self._since = now - self._since, now
        ok = bool(values.pop("ok"))
        facts = self._parts.facts(step)
        share = facts.pop("flops") / seconds
        self._reached = max(self._reached, share)
        values |= {
            "tokens_per_second": facts.pop("tokens") / seconds,
            "pairs_per_second": facts.pop("pairs") / seconds,
            "step_seconds": seconds,
            "data_wait_seconds": waited,
            "mfu": share / self._reached,
            **facts,
        }
        if step == 1 or step % self._every == 0 or step == self._last or not ok:
            self._parts.log(step, "train", values)
        self._parts.progress(step, values)
        self._guard(step, ok)

    def _guard(self, step: int, ok: bool) -> None:
        self._skipped = 0 if ok else self._skipped + 1
        if ok:
            return
        where = self._parts.on_bad(step)
        if not self._skip:
            raise NonFiniteError(
                f"loss or gradient is not finite at step {step}, {where}; parameters "
                f"kept those of step {step - 1}. Lower optimizer.lr, look at the rows, "
                "or set train.on_nonfinite='skip'"
            )
        if self._skipped > MAX_SKIPS:
            raise NonFiniteError(
                f"{self._skipped} steps in a row are not finite, last {step}, {where}; "
                f"the budget of train.on_nonfinite='skip' is {MAX_SKIPS}"
            )
        logging.warning(
            "step %d is not finite, %s; skipped %d, of at most %d in a row",
            step,
            where,
            self._skipped,
            MAX_SKIPS,
        )


def run(
    state: TrainState,
    parts: Parts,
    *,
    first: int,
    last: int,
    cadence: Cadence,
    skip_nonfinite: bool,
) -> tuple[TrainState, dict[str, float]]:
    """Trains from step `first + 1` to step `last`.

    Args:
      state: after `first` steps.
      parts: the functions of the run.
      first: steps already taken.
      last: steps of the whole run.
      cadence: when to log, evaluate and save.
      skip_nonfinite: go on after a non-finite step, within a budget.

    Returns:
      The final state and the values of the last evaluation.

    Raises:
      Preempted: after a signal, with the step committed.
      NonFiniteError: see `Meter`.
    """
    meter = Meter(parts, cadence.log, last, skip=skip_nonfinite)
    results: dict[str, float] = {}
    if parts.evaluate is not None and first == 0:
        results = parts.evaluate(state)
        parts.log(0, "eval", results)
    meter.restart_clock()
    for step in range(first + 1, last + 1):
        watchdog.beat(step)
        asked = parts.now()
        batch = parts.next_batch()
        waited = parts.now() - asked
        if parts.compiles(step):
            meter.flush()  # or the step in flight would run while no clock does
        state, metrics = parts.step(state, batch)
        meter.push(step, metrics, waited)
        stopping = parts.stop(step) and step < last
        measured: dict[str, float] = {}
        if parts.evaluate is not None and _due(step, cadence.evaluate, last):
            meter.flush()
            results = measured = parts.evaluate(state)
            parts.log(step, "eval", results)
            meter.restart_clock()
        if stopping or _due(step, cadence.checkpoint, last):
            meter.flush()
            parts.save(step, state, measured)
            meter.restart_clock()
        if stopping:
            parts.wait()
            raise Preempted(step)
    if parts.evaluate is not None and not results:  # resumed behind the last step
        results = parts.evaluate(state)
    parts.wait()
    return state, results


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)
