"""The launcher of this machine: one worker in this process, or several beside it."""

import time
from collections.abc import Mapping, Sequence

from dpo_jax.launch import processes
from dpo_jax.launch.processes import Stop
from dpo_jax.launch.trial import Planned
from dpo_jax.launch.worker import Walk, Worker

POLL = 0.2  # seconds between looks at the workers


def run(
    worker: Worker,
    trials: Sequence[Planned],
    stop: Stop,
    *,
    command: Sequence[str],
    workers: int,
    environment: Mapping[str, str],
) -> Walk:
    """Runs a sweep to its end.

    Several workers are processes of their own; this one waits for them, then walks the
    list itself, for what those who were killed have left, and to tell how it ended.

    Args:
      worker: of this process.
      trials: of the sweep.
      stop: whether to stop.
      command: of another worker, from the verb on.
      workers: how many; 1 = this process alone.
      environment: of the processes that are started.
    """
    worker.remember(trials)
    if workers > 1:
        started = [processes.start(command, None, environment) for _ in range(workers)]
        with stop.passed_on(*started):
            while any(process.poll() is None for process in started):
                time.sleep(POLL)
    return worker.walk(trials, stop)
