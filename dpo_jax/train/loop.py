"""The one loop: batches in, steps, evaluations and checkpoints out.

It receives functions and knows no model, no data and no loss. Metrics of a step are
read when the next one has been dispatched, so the device never waits for the host;
before an evaluation, a checkpoint or the end they are read at once. On-policy, what the
loop calls a step is a turn: one rollout with all its updates.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from absl import logging

from dpo_jax.errors import NonFiniteError, Preempted
from dpo_jax.train import watchdog
from dpo_jax.train.step import Metrics
from dpo_jax.types import Batch, TrainState

MAX_SKIPS = 3  # consecutive steps that on_nonfinite='skip' forgives


class Evaluator(NamedTuple):
    """Something that is measured besides training.

    Attributes:
      measure: state -> (name, value) of each thing that it measures.
      every_steps: updates between two measurements; 0 = at the start and the end.
    """

    measure: Callable[[TrainState], Iterator[tuple[str, float]]]
    every_steps: int


@dataclasses.dataclass(frozen=True)
class Cadence:
    """How often things happen, in updates; 0 = only at the end.

    Attributes:
      log: lines of metrics.
      checkpoint: checkpoints.
      updates: of one turn of the loop, at whose end things may happen; they do at the
        first end at or behind the update that they were due at.
    """

    log: int
    checkpoint: int
    updates: int = 1

    def due(self, step: int, every: int, last: int) -> bool:
        """Tells whether an update that is due every so often fell into this turn."""
        before = step - self.updates
        return step == last or (every > 0 and step // every > before // every)


@dataclasses.dataclass(frozen=True)
class Functions:
    """The functions that a run is made of.

    Attributes:
      next_batch: state -> the batch of its next turn, in order from the first on.
      step: `(state, batch) -> (state, metrics)`, annotation included.
      facts: (step, metrics) -> what the host knows of its batch: `tokens`, `pairs`,
        `flops` as a share of what the devices do in a second, and values to log as they
        are.
      compiles: step -> whether its batch has a shape that no step had before.
      now: tells the time in seconds, compilation left out.
      evaluators: name -> what is measured, in order.
      save: `(step, state, values of an evaluation of that state or {})`, asynchronous.
      wait: waits until the last save is committed.
      log: `(step, split, values)`.
      progress: `(step, values)`, for a person at a terminal.
      on_bad: called with the step whose loss is not finite; names its examples.
      to_host: copies metrics from the device.
      stop: step -> whether a signal asks the run to stop, agreed among processes.
    """

    next_batch: Callable[[TrainState], Batch]
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    facts: Callable[[int, Mapping[str, float]], dict[str, float]]
    compiles: Callable[[int], bool]
    now: Callable[[], float]
    evaluators: Mapping[str, Evaluator]
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

    def __init__(
        self, functions: Functions, cadence: Cadence, last: int, *, skip: bool
    ):
        self._functions, self._cadence = functions, cadence
        self._last, self._skip = last, skip
        self._pending: tuple[int, Metrics, float] | None = None
        self._since = functions.now()
        self._skipped = 0
        self._reached = 1.0  # the largest share of the devices' peak, at least all

    def restart_clock(self) -> None:
        """Leaves out time that was not spent on steps."""
        self._since = self._functions.now()

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
        values = self._functions.to_host(metrics)
        now = self._functions.now()
        seconds, self._since = now - self._since, now
        ok = bool(values.pop("ok"))
        facts = self._functions.facts(step, values)
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
        first, due = step == self._cadence.updates, self._cadence.due
        if first or due(step, self._cadence.log, self._last) or not ok:
            self._functions.log(step, "train", values)
        self._functions.progress(step, values)
        self._guard(step, ok)

    def _guard(self, step: int, ok: bool) -> None:
        self._skipped = 0 if ok else self._skipped + 1
        if ok:
            return
        where = self._functions.on_bad(step)
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
    functions: Functions,
    *,
    first: int,
    last: int,
    cadence: Cadence,
    skip_nonfinite: bool,
    measured: bool = True,
    at_start: bool = True,
) -> tuple[TrainState, dict[str, float]]:
    """Trains from update `first + 1` to update `last`.

    A stop signal is answered by a save and never by a measurement: what was due then is
    measured when the run is resumed.

    Args:
      state: after `first` updates.
      functions: of the run.
      first: updates already taken.
      last: updates of the whole run, whole turns.
      cadence: when to log and save.
      skip_nonfinite: go on after a non-finite step, within a budget.
      measured: whether the evaluations that were due after `first` updates were made.
      at_start: whether all is measured before the first update.

    Returns:
      The final state and the last value of everything measured.

    Raises:
      Preempted: after a signal, with the step committed.
      NonFiniteError: see `Meter`.
    """
    meter = Meter(functions, cadence, last, skip=skip_nonfinite)
    results: dict[str, float] = {}

    def measure(step: int, *, every: bool = False) -> dict[str, float]:
        due = [
            evaluator
            for evaluator in functions.evaluators.values()
            if every or cadence.due(step, evaluator.every_steps, last)
        ]
        if not due:
            return {}
        meter.flush()
        values = {name: v for one in due for name, v in one.measure(state)}
        functions.log(step, "eval", values)
        meter.restart_clock()
        results.update(values)
        return values

    if at_start if first == 0 else not measured:
        measure(first, every=first == 0)
    meter.restart_clock()
    for step in range(first + cadence.updates, last + 1, cadence.updates):
        watchdog.beat(step)
        asked = functions.now()
        batch = functions.next_batch(state)
        waited = functions.now() - asked
        if functions.compiles(step):
            meter.flush()  # or the step in flight would run while no clock does
        state, metrics = functions.step(state, batch)
        meter.push(step, metrics, waited)
        stopping = functions.stop(step) and step < last
        values = {} if stopping else measure(step)
        if stopping or cadence.due(step, cadence.checkpoint, last):
            meter.flush()
            functions.save(step, state, values)
            meter.restart_clock()
        if stopping:
            functions.wait()
            raise Preempted(step)
    if functions.evaluators and not results:  # resumed behind the last step
        for evaluator in functions.evaluators.values():
            results.update(evaluator.measure(state))
    functions.wait()
    return state, results
