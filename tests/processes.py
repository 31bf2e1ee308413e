"""Processes that a test starts: none outlives it."""

import contextlib
import os
import subprocess
import time


@contextlib.contextmanager
def starting(variables, *, stderr=None):
    """Yields what starts a command line under these variables; kills what is left."""
    started = []

    def start(*line):
        process = subprocess.Popen(
            [*map(str, line)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, **variables},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(condition, *, seconds=240, every=0.02):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until
        time.sleep(every)
    return found
