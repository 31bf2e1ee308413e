"""metrics.jsonl, the source of truth, with TensorBoard events beside it.

One JSON object a line, `{"step": 1, "split": "train", …}`. Only process 0 writes.
"""

import json
import math
import os
from collections.abc import Mapping
from typing import Any

from etils import epath
from tensorboardX import SummaryWriter

from dpo_jax.errors import WriteError

TIMING_KEYS = frozenset(
    (
        "tokens_per_second",
        "pairs_per_second",
        "step_seconds",
        "data_wait_seconds",
        "mfu",
    )
)


def keep_until(text: str, step: int) -> str:
    """Drops the lines of later steps, and a last line that was cut short."""
    kept = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if row["step"] <= step:
            kept.append(line + "\n")
    return "".join(kept)


class MetricsLog:
    """Appends to metrics.jsonl and to TensorBoard events.

    A resumed run first drops the lines after its checkpoint, so that no line is double,
    missing or extra.
    """

    def __init__(self, folder: str | os.PathLike, *, resume_step: int):
        """Opens the log.

        Args:
          folder: the run folder.
          resume_step: lines of later steps are dropped; 0 = starting over.
        """
        self._path = epath.Path(folder) / "metrics.jsonl"
        old = self._path.read_text() if resume_step and self._path.exists() else ""
        try:
            if "://" in os.fspath(folder):
                self._events = None
            else:
                self._events = SummaryWriter(
                    os.fspath(epath.Path(folder) / "tensorboard"),
                    purge_step=resume_step + 1 if resume_step else 0,
                )
            self._lines = keep_until(old, resume_step)
            self._replace()
            self._file = None if self._events is None else open(self._path, "a")
        except OSError as error:
            raise WriteError(f"cannot write {self._path}: {error}") from error

    def _replace(self) -> None:
        partial = self._path.with_name(self._path.name + ".part")
        partial.write_text(self._lines)
        partial.replace(self._path)

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Appends one line; a value that is not finite becomes a string.

        Raises:
          WriteError: if the disk does not take it.
        """
        row = {"step": step, "split": split, **{k: _plain(values[k]) for k in values}}
        line = json.dumps(row, allow_nan=False) + "\n"
        try:
            if self._file is None:  # an object store has no append
                self._lines += line
                self._replace()
            else:
                self._file.write(line)
                self._file.flush()
        except OSError as error:
            raise WriteError(f"cannot write {self._path}: {error}") from error
        if self._events is not None:
            for name, value in row.items():
                if isinstance(value, float):
                    self._events.add_scalar(f"{split}/{name}", value, step)

    def sync(self) -> None:
        """Forces the lines to disk, as before a checkpoint.

        Raises:
          WriteError: if the disk does not take them.
        """
        if self._file is None:
            return
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise WriteError(f"cannot write {self._path}: {error}") from error

    def close(self) -> None:
        """Closes the files."""
        self.sync()
        if self._file is not None:
            self._file.close()
        if self._events is not None:
            self._events.close()


def _plain(value: Any) -> Any:
    if isinstance(value, (str, bool)):
        return value
    number = float(value)
    if not math.isfinite(number):
        return str(number)
    return number
