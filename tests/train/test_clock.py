"""Time told by hand: every second lies in one bucket, and none is lost."""

import threading

import jax
import jax.numpy as jnp
import pytest
from jax import monitoring

from dpo_jax.train.clock import BUCKETS, Clock

TRACE, LOWER, COMPILE = (
    f"/jax/core/compile/{stage}_duration"
    for stage in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")
)


class Time:
    """A time that moves when it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def pass_by(self, seconds):
        self.now += seconds


@pytest.fixture
def time():
    return Time()


def spent(clock):
    """Returns the buckets that hold something."""
    return {name: value for name, value in clock.seconds().items() if value}


def begin(event):
    monitoring.record_scalar(event, 0.0, fun_name="f")


def end(event):
    monitoring.record_event_duration_secs(event, 999.0, fun_name="f")


def test_an_inner_bucket_suspends_the_outer_one(time):
    """1 s before, 2 + 8 in eval around 4 in step, 16 behind: 31 in all."""
    clock = Clock(time)
    time.pass_by(1)
    with clock.bucket("eval"):
        time.pass_by(2)
        with clock.bucket("step"):
            time.pass_by(4)
        time.pass_by(8)
    time.pass_by(16)
    assert spent(clock) == {"other": 17, "eval": 10, "step": 4}
    assert tuple(clock.seconds()) == BUCKETS
    assert sum(clock.seconds().values()) == 31 == clock.working()


def test_what_raises_is_booked_and_closed(time):
    clock = Clock(time)
    with pytest.raises(KeyError), clock.bucket("data"):
        time.pass_by(3)
        raise KeyError
    time.pass_by(1)
    assert spent(clock) == {"data": 3, "other": 1}


def test_timed_functions_return_what_they_return(time):
    clock = Clock(time)
    taken = clock.timed("checkpoint", lambda a, b: time.pass_by(a) or a + b)
    assert taken(2, 5) == 7 and taken(1, 1) == 2
    assert spent(clock) == {"checkpoint": 3}


def test_compiling_is_taken_out_of_where_it_happens_once(time):
    """Stages within stages: 2 + 4 + 8 seconds of compiling, whatever jax adds up."""
    with Clock(time) as clock, clock.bucket("step"):
        time.pass_by(1)
        begin(TRACE)
        time.pass_by(2)
        begin(COMPILE)  # an array made while tracing
        time.pass_by(4)
        end(COMPILE)
        time.pass_by(8)
        end(TRACE)
        time.pass_by(16)
        begin("/jax/other")
        time.pass_by(32)
        end("/jax/other")
    assert spent(clock) == {"step": 49, "compile": 14}
    assert clock.working() == 49


def test_a_stage_that_never_ends_does_not_outlive_its_bucket(time):
    with Clock(time) as clock:
        with clock.bucket("eval"):
            begin(LOWER)
            time.pass_by(1)
        end(LOWER)
        time.pass_by(2)
    assert spent(clock) == {"compile": 1, "other": 2}


def test_other_threads_and_other_times_are_not_heard(time):
    with Clock(time) as clock:
        thread = threading.Thread(target=begin, args=(COMPILE,))
        thread.start()
        thread.join()
        time.pass_by(1)
    begin(COMPILE)  # the clock has been left
    time.pass_by(2)
    assert spent(clock) == {"other": 3}


def test_programs_of_the_compile_cache_are_counted(time):
    say = monitoring.record_event
    with Clock(time) as clock:
        for name in ("misses", "hits", "hits"):
            say(f"/jax/compilation_cache/cache_{name}")
        say("/jax/compilation_cache/tasks_using_cache")
    say("/jax/compilation_cache/cache_hits")  # the clock has been left
    assert clock.programs == {"compiled": 1, "read": 2}


def test_jax_says_when_it_compiles():
    with Clock() as clock:
        with clock.bucket("step"):
            run = jax.jit(lambda x: jnp.tanh(x) * 3)
            run(jnp.ones(5)).block_until_ready()
            first = clock.seconds()["compile"]
            run(jnp.ones(5)).block_until_ready()
        found = clock.seconds()
    assert 0 < first == found["compile"] < sum(found.values())
    assert found["step"] > 0
