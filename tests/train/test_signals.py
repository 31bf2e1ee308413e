"""What a signal does between steps, at rest, in another thread, and among processes."""

import os
import signal
import threading

import jax
import pytest
from jax.experimental import multihost_utils

from dpo_jax.errors import Preempted
from dpo_jax.train import signals


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", signals.NUMBERS)
def test_at_rest_a_signal_ends_the_run_where_it_is(number):
    with pytest.raises(Preempted, match="^preempted before step 1$"):
        with signals.stop_requests():
            send(number)
            raise AssertionError("it went on")


@pytest.mark.parametrize("number", signals.NUMBERS)
def test_between_steps_it_is_a_question(number):
    """After the last step it ends the run again, which has nothing left to save."""
    with pytest.raises(Preempted, match="^preempted; step 9 committed$"):
        with signals.stop_requests() as stop:
            assert not stop(7)
            send(number)
            assert stop(8)
            stop.rest(9)


def test_behind_a_restored_step_its_number_is_told():
    with pytest.raises(Preempted, match="step 500 committed"):
        with signals.stop_requests() as stop:
            stop.rest(500)
            send(signal.SIGTERM)


def test_no_handler_of_exceptions_swallows_it():
    with pytest.raises(Preempted):
        with signals.stop_requests():
            try:
                send(signal.SIGTERM)
            except Exception:
                raise AssertionError("swallowed") from None


def test_a_second_interrupt_interrupts():
    with pytest.raises(KeyboardInterrupt):
        with signals.stop_requests() as stop:
            stop(1)
            send(signal.SIGINT)
            send(signal.SIGINT)


def test_handlers_come_back():
    before = [signal.getsignal(number) for number in signals.NUMBERS]
    with signals.stop_requests():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in signals.NUMBERS] == before


def test_in_another_thread_signals_are_left_alone():
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def work():
        with signals.stop_requests() as stop:
            found.append((stop(1), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, before)]


def test_among_processes_an_interrupt_becomes_the_signal_that_jax_agrees_on(
    monkeypatch,
):
    """SIGTERM is jax's own there; SIGINT was logged once, and then forgotten."""
    taken = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        multihost_utils, "reached_preemption_sync_point", lambda step: bool(taken)
    )
    before = signal.signal(signal.SIGTERM, lambda number, frame: taken.append(number))
    try:
        with signals.stop_requests() as stop:
            assert not stop(1)
            send(signal.SIGINT)
            assert taken == [signal.SIGTERM] and stop(2)
            stop.rest(2)  # the others got no signal: they would go on alone
    finally:
        signal.signal(signal.SIGTERM, before)
