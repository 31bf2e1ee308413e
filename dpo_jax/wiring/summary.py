"""What a run ended with, for whoever called it and for the run folder."""

import json
import os
from typing import Any, NamedTuple

from dpo_jax.train import runfolder
from dpo_jax.train.throughput import Peak


class Summary(NamedTuple):
    """What a run ended with.

    Attributes:
      step: optimizer steps taken.
      resumed_from: step that this launch started from; 0 = from the beginning.
      already_complete: nothing was left to do.
      values: the last evaluation's metrics; {} without one.
      results: the table before / after; {} without rollouts.
      data: what data.json holds.
      seconds: what the time of this launch was spent on; see `train/clock.py`.
      peak: what `mfu` is a share of; None where nothing was trained.
    """

    step: int
    resumed_from: int
    already_complete: bool
    values: dict[str, float]
    results: dict[str, Any]
    data: dict[str, Any]
    seconds: dict[str, float] = {}
    peak: Peak | None = None


def write_timing(workdir: os.PathLike | str, ended: Summary) -> None:
    """Writes timing.json: what the launch's time went to, and what `mfu` is a share of.

    Only the launch that finishes a run leaves one.

    Raises:
      WriteError: if it cannot be written.
    """
    found = {
        "steps": ended.step - ended.resumed_from,
        "seconds": ended.seconds,
        "peak": ended.peak._asdict() if ended.peak else None,
    }
    runfolder.write_text(workdir, "timing.json", json.dumps(found, indent=1) + "\n")
