"""SIGTERM and SIGINT as a question that the loop asks between steps."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
from absl import logging
from jax.experimental import multihost_utils


@contextmanager
def stop_requests() -> Iterator[Callable[[int], bool]]:
    """Yields `step -> bool`: whether the run should save and stop after that step.

    In a multi-process run JAX's own preemption service turns SIGTERM into an agreement
    on a step, so every process stops after the same one. A second Ctrl-C interrupts.
    """
    asked: list[int] = []

    def handle(number: int, frame: object) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)
        name = signal.Signals(number).name
        logging.warning("%s: saving after this step, then stopping", name)

    many = jax.process_count() > 1
    numbers = (signal.SIGINT,) if many else (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, handle) for number in numbers}

    def stop(step: int) -> bool:
        if many:
            return multihost_utils.reached_preemption_sync_point(step)
        return bool(asked)

    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
