"""Mirrors of metrics.jsonl where people watch: TensorBoard, Weights & Biases, Trackio.

The run folder is the record. A tracker is told each line from a thread of its own: one
that fails, hangs or is slow changes neither a number nor the exit code, and holds the
run up by at most `CLOSE_SECONDS` at its end. A resumed run is the same run there, and
lines that come again are not told twice.
"""

import importlib.util
import json
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from absl import logging
from etils import epath
from tensorboardX import SummaryWriter

from dpo_jax import lines

CLOSE_SECONDS = 30.0  # that a tracker may take to end
PROJECT = "dpo_jax"  # where nothing is said
WAITING = 10_000  # lines that may wait for one that is slow; later ones are lost to it


class About(NamedTuple):
    """The run that a tracker is to show.

    Attributes:
      folder: the run folder; '' = it is on no disk of this host, and neither are files
        of the tracker then.
      name: for people.
      id: of the run there; the same over resumes, another after a fork.
      project: that the run is shown in.
      config: `section.key` -> value.
      first: steps that a resumed run stands on; 0 = it starts.
    """

    folder: str
    name: str
    id: str
    project: str
    config: Mapping[str, Any]
    first: int


class Tracker(Protocol):
    """What shows the numbers of a run."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Takes `SPLIT/METRIC` values of a step; steps never fall."""
        ...

    def finish(self) -> None:
        """Ends the run there."""
        ...


class _TensorBoard:
    """Event files in the run folder; steps after the resumed one are hidden there."""

    def __init__(self, about: About):
        self._events = None
        if about.folder:
            purged = about.first + 1 if about.first else 0
            folder = os.path.join(about.folder, "tensorboard")
            self._events = SummaryWriter(folder, purge_step=purged)

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            if self._events is not None:
                self._events.add_scalar(name, value, step)

    def finish(self) -> None:
        if self._events is not None:
            self._events.close()


def _wandb(about: About) -> Tracker:
    import wandb  # pyright: ignore[reportMissingImports]

    settings = wandb.Settings(silent=True, init_timeout=CLOSE_SECONDS)
    return wandb.init(
        project=about.project,
        name=about.name,
        id=about.id,
        resume="allow",
        config=dict(about.config),
        dir=about.folder or None,
        settings=settings,
    )


def _trackio(about: About) -> Tracker:
    import trackio  # pyright: ignore[reportMissingImports]

    name = f"{about.name}-{about.id[:8]}"  # which is the identity there
    config = {key: str(value) for key, value in about.config.items()}
    return trackio.init(
        project=about.project, name=name, config=config, resume="allow", embed=False
    )


class Kind(NamedTuple):
    """A row of the table: how a tracker starts, and the package that it needs."""

    start: Callable[[About], Tracker]
    package: str
    replays: bool = False  # whether it hides by itself what is told again


TRACKERS: dict[str, Kind] = {
    "tensorboard": Kind(_TensorBoard, "tensorboardX", replays=True),
    "trackio": Kind(_trackio, "trackio"),
    "wandb": Kind(_wandb, "wandb"),
}


def named(to: str) -> list[str]:
    """Splits `log.to`."""
    return to.split("+") if to else []


def faults(to: str, project: str) -> list[str]:
    """Says what is wrong with `log.to` and `log.project`."""
    found = [
        f"log.to={to!r} names {name!r}. Known: {', '.join(TRACKERS)}; several are a+b"
        for name in named(to)
        if name not in TRACKERS
    ]
    if project != PROJECT and not {"wandb", "trackio"}.intersection(named(to)):
        found.append(
            f"log.project={project!r} is of wandb and trackio, and log.to={to!r} names "
            f"neither; leave it {PROJECT!r}"
        )
    return found + [
        f"log.to={to!r}: package {TRACKERS[name].package} is not installed; "
        "pip install 'dpo_jax[track]'"
        for name in named(to)
        if name in TRACKERS and importlib.util.find_spec(TRACKERS[name].package) is None
    ]


def read_identity(file: epath.Path) -> dict[str, str]:
    """Reads what `identity` returned for a run folder; {} = nothing of use."""
    try:
        kept = json.loads(file.read_text())
        return {name: str(kept[name]) for name in ("id", "fingerprint")}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def identity(kept: Mapping[str, str], fingerprint: str) -> dict[str, str]:
    """Returns what a run folder keeps of its run in the trackers.

    Args:
      kept: what it kept before; {} = nothing.
      fingerprint: of the configuration; a fork has another, and is another run there.
    """
    if kept.get("fingerprint") == fingerprint:
        return dict(kept)
    return {"id": uuid.uuid4().hex, "fingerprint": fingerprint}


def told(rows: Iterable[str]) -> dict[str, int]:
    """Returns the last step of each split that lines of metrics.jsonl tell of."""
    last: dict[str, int] = {}
    for row in filter(None, map(lines.parsed, rows)):
        split = str(row.get("split"))
        last[split] = max(row["step"], last.get(split, -1))
    return last


class Mirror:
    """Tells a tracker what is appended to metrics.jsonl."""

    def __init__(self, name: str, about: About, told: Mapping[str, int]):
        """Starts the tracker, in its thread.

        Args:
          name: of `TRACKERS`.
          about: the run.
          told: split -> the last step that this run told before it was resumed.
        """
        self._name, self._kind = name, TRACKERS[name]
        self._told = {} if self._kind.replays else dict(told)
        self._lines: queue.Queue[tuple[dict[str, float], int] | None]
        self._lines, self._lost = queue.Queue(WAITING), 0
        self._thread = threading.Thread(
            target=self._run, args=(about,), name=f"log.to={name}", daemon=True
        )
        self._thread.start()

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Hands over a line; returns at once."""
        if step <= self._told.get(split, -1):
            return
        numbers = {
            f"{split}/{name}": value
            for name, value in values.items()
            if isinstance(value, float)
        }
        try:
            self._lines.put_nowait((numbers, step))
        except queue.Full:
            self._lost += 1

    def close(self) -> None:
        """Waits for the tracker to end, for a while."""
        until = time.monotonic() + CLOSE_SECONDS
        while self._thread.is_alive() and time.monotonic() < until:
            try:
                self._lines.put(None, timeout=0.1)
                break
            except queue.Full:
                continue
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            logging.warning(
                "log.to: %s did not end within %g s and is left behind; metrics.jsonl "
                "has all lines",
                self._name,
                CLOSE_SECONDS,
            )
        if self._lost:
            logging.warning(
                "log.to: %s was too slow for %d lines; metrics.jsonl has them",
                self._name,
                self._lost,
            )

    def _run(self, about: About) -> None:
        try:
            tracker = self._kind.start(about)
            while (line := self._lines.get()) is not None:
                tracker.log(*line)
            tracker.finish()
        except Exception as error:  # noqa: BLE001 (of whatever kind: it is not ours)
            logging.warning(
                "log.to: %s failed (%s: %s) and shows no more of this run; "
                "metrics.jsonl has all lines",
                self._name,
                type(error).__name__,
                error,
            )
