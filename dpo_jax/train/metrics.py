"""metrics.jsonl, the source of truth, and the trackers that mirror it.

One JSON object a line, `{"step": 1, "split": "train", …}`. Only process 0 writes. What
a checkpoint stands on lies in parts as well, see `dpo_jax/lines.py`.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging
from etils import epath

from dpo_jax import files, lines
from dpo_jax.lines import Seal
from dpo_jax.train.trackers import Mirror

PART_SECONDS = 60.0  # between the parts of an object store, at least


class MetricsLog:
    """Appends to metrics.jsonl, and tells trackers.

    A resumed run first drops the lines after its checkpoint, so that no line is double,
    missing or extra.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        resume_step: int,
        attempt: int = 1,
        sealed: Seal | None = None,
        mirrors: Sequence[Mirror] = (),
    ):
        """Opens the log.

        Args:
          folder: the run folder.
          resume_step: lines of later steps are dropped; 0 = starting over.
          attempt: number of this launch.
          sealed: what the checkpoint of that step says of the lines; None if it is of
            a version that did not say.
          mirrors: trackers that are told each line; closed with the log.

        Raises:
          WriteError: if the folder does not take it.
        """
        self._folder, self._attempt = epath.Path(folder), attempt
        self._path = self._folder / lines.METRICS
        local = files.is_local(folder)
        kept = recovered(self._folder, resume_step, sealed) if resume_step else []
        text = "".join(line + "\n" for line in kept)
        self._digest, self._count = hashlib.sha256(text.encode()), len(kept)
        in_parts = lines.until(lines.merged(self._folder), resume_step) == kept
        self._pending = "" if in_parts else text
        self._first = resume_step + 1 if kept and in_parts else 0
        self._last = resume_step
        self._flushed = time.monotonic()
        self._mirrors = mirrors
        try:
            self._file = None
            if local:
                files.write_whole(self._path, text)
                self._file = open(self._path, "a")  # noqa: SIM115 (until `close`)
            elif self._path.exists():  # of an earlier version, or copied from a disk
                self._write_part()
                self._path.unlink()
        except OSError as error:
            raise files.unwritable(self._path, error, len(text)) from error

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Appends one line; a value that is not finite becomes a string.

        Raises:
          WriteError: if the disk does not take it.
        """
        row = {"step": step, "split": split, **{k: _plain(values[k]) for k in values}}
        line = json.dumps(row, allow_nan=False) + "\n"
        waited = time.monotonic() - self._flushed
        if self._file is None and step > self._last and waited > PART_SECONDS:
            self._write_part()
        self._last = step
        self._pending += line
        self._digest.update(line.encode())
        self._count += 1
        try:
            if self._file is not None:
                self._file.write(line)
                self._file.flush()
        except OSError as error:
            raise files.unwritable(self._path, error, len(line)) from error
        for mirror in self._mirrors:
            mirror.write(step, split, row)

    def _write_part(self) -> None:
        """Writes the lines since the last part; the next begins behind their steps."""
        if self._pending:
            name = lines.part_name(self._attempt, self._first)
            files.write_whole(self._folder / name, self._pending)
            self._pending, self._first = "", self._last + 1
        self._flushed = time.monotonic()

    def seal(self) -> Seal:
        """Forces all lines to disk, and in a part, as before a checkpoint.

        Raises:
          WriteError: if the disk does not take them.
        """
        self._write_part()
        try:
            if self._file is not None:
                self._file.flush()
                os.fsync(self._file.fileno())
        except OSError as error:
            raise files.unwritable(self._path, error, 0) from error
        return Seal(self._count, self._digest.hexdigest())

    def close(self) -> None:
        """Writes what is left, closes the file, and lets the trackers end."""
        self.seal()
        if self._file is not None:
            self._file.close()
        for mirror in self._mirrors:
            mirror.close()


def recovered(folder: epath.Path, step: int, sealed: Seal | None) -> list[str]:
    """Reads the lines up to `step`, from the parts where metrics.jsonl is damaged.

    Says loudly what was damaged; keeps the damaged text beside.

    Args:
      folder: the run folder.
      step: that the run goes on from.
      sealed: what the checkpoint of that step says of the lines; None = nothing.
    """
    path = folder / lines.METRICS
    local = files.is_local(folder)  # where a missing metrics.jsonl is a loss
    old = lines.split(lines.text_of(path)) if local else lines.read(folder)
    kept = lines.until(old, step)
    broken = sum(lines.parsed(line) is None for line in old[:-1])
    if (kept and not broken) if sealed is None else lines.seal(kept) == sealed:
        return kept
    copy = lines.until(lines.merged(folder), step)
    best = copy if lines.seal(copy) == sealed else max(kept, copy, key=len)
    lost = broken if sealed is None else sealed.lines - len(best)
    beside = files.set_aside(path).name if path.exists() else "there is none"
    logging.error(
        "%s is damaged, cut or missing: %d lines recovered from %s/, %d lost (old text "
        "kept: %s)",
        *(path, len(set(best) - set(kept)), lines.PARTS, max(lost, 0), beside),
    )
    return best


def _plain(value: Any) -> Any:
    if isinstance(value, (str, bool)):
        return value
    number = float(value)
    if not math.isfinite(number):
        return str(number)
    return number
