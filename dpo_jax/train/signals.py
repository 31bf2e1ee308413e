"""SIGTERM and SIGINT: between steps a question that the loop asks, else the end.

Run in another thread than the main one, a run leaves them to the program around it.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import jax
from absl import logging
from jax.experimental import multihost_utils

from dpo_jax.errors import Preempted
from dpo_jax.train.handlers import handled

NUMBERS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Whether a signal asks the run to stop.

    In a multi-process run jax's preemption service turns SIGTERM into an agreement on a
    step, so every process stops after the same one; SIGINT is passed on as SIGTERM. It
    has taken the place of any handler for SIGTERM that was there before it.
    """

    def __init__(self):
        self._many = jax.process_count() > 1
        self._asked = self._stepping = False
        self._committed = 0

    def __call__(self, step: int) -> bool:
        """Tells whether the run should save and stop after `step`."""
        self._stepping = True
        if self._many:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def rest(self, step: int) -> None:
        """Tells that no steps are taken now: a signal ends the run as it stands.

        Args:
          step: the last that is committed.

        Raises:
          Preempted: here if a signal came before, else wherever one finds the run; not
            with several processes, which would not raise it together.
        """
        self._stepping, self._committed = False, step
        if self._asked and not self._many:
            raise Preempted(step)

    def take(self, number: int, frame: object) -> None:
        """Handles a signal; a second Ctrl-C interrupts."""
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
        if self._many:
            os.kill(os.getpid(), signal.SIGTERM)
        elif not self._stepping:
            raise Preempted(self._committed)
        name = signal.Signals(number).name
        logging.warning("%s: saving after this step, then stopping", name)


@contextmanager
def stop_requests() -> Iterator[Stop]:
    """Yields what the run asks whether to stop; gives the handlers back at the end."""
    stop = Stop()
    numbers = (signal.SIGINT,) if jax.process_count() > 1 else NUMBERS
    with handled(numbers, stop.take):
        yield stop
