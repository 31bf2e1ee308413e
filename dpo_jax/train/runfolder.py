"""The run folder: who owns it, which configuration it belongs to, what went wrong.

Nothing is created before `claim`, so a run that is refused leaves nothing behind but
`errors/`.
"""

import contextlib
import datetime
import fcntl
import json
import logging as std_logging
import os
import socket
import traceback
from collections.abc import Iterator
from typing import Any

from absl import logging
from etils import epath

from dpo_jax import config as config_lib
from dpo_jax.errors import RunFolderError, WriteError

Path = os.PathLike | str


def is_local(folder: Path) -> bool:
    """Tells a folder on this machine's file system from an object store's."""
    return "://" not in os.fspath(folder)


def is_ours(record: std_logging.LogRecord) -> bool:
    """Keeps this project's messages, and of libraries warnings and worse."""
    ours = f"{os.sep}dpo_jax{os.sep}" in record.pathname
    return ours or record.levelno >= std_logging.WARNING


def read_config(folder: Path) -> dict[str, Any] | None:
    """Reads `config.json`; None if the folder has none.

    Raises:
      RunFolderError: if it is not JSON.
    """
    path = epath.Path(folder) / "config.json"
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise RunFolderError(
            f"{path} is not JSON: {error}; restore or remove it"
        ) from error


def read_json(workdir: os.PathLike | str, name: str) -> dict[str, Any]:
    """Reads a JSON file of the run folder; {} if there is none."""
    path = epath.Path(workdir) / name
    return json.loads(path.read_text()) if path.exists() else {}


def is_whole(folder: Path) -> bool:
    """Tells whether the report stands, the last that a run owes (and on disks only)."""
    return not is_local(folder) or (epath.Path(folder) / "report.html").exists()


def check_same(folder: Path, new: dict[str, Any], *, fork: bool) -> None:
    """Refuses a configuration that differs from the folder's where it may not.

    Args:
      folder: the run folder.
      new: the configuration as nested dicts.
      fork: go on from the folder's checkpoint with the new configuration.

    Raises:
      RunFolderError: listing `key: old → new`; if files stand there without a config.
    """
    old = read_config(folder)
    path = epath.Path(folder)
    if old is None:
        if (path / "checkpoints").exists() or (path / "metrics.jsonl").exists():
            raise RunFolderError(
                f"{folder} holds a run without config.json; choose another --workdir"
            )
        return
    differing = config_lib.changes(old, new)
    if differing and not fork:
        raise RunFolderError(
            f"{folder} was started with another configuration: {'; '.join(differing)}; "
            "choose another --workdir, or --fork to go on from its checkpoint with the "
            "new one"
        )


@contextlib.contextmanager
def claim(folder: Path, *, first: bool) -> Iterator[None]:
    """Makes the folder and holds its lock; log.txt is written while it is held.

    Args:
      folder: the run folder; object stores have no locks.
      first: whether this is the first process of the run, which acts for all.

    Raises:
      RunFolderError: if a live process holds the lock, with its pid, host and start.
      WriteError: if the folder cannot be made.
    """
    if not is_local(folder) or not first:
        yield
        return
    try:
        os.makedirs(folder, exist_ok=True)
        file = open(os.path.join(folder, ".lock"), "a+")
    except OSError as error:
        raise WriteError(f"cannot make the run folder {folder}: {error}") from error
    with file:
        _take(file, folder)
        handler = std_logging.FileHandler(os.path.join(folder, "log.txt"))
        handler.setFormatter(logging.PythonFormatter())
        handler.addFilter(is_ours)
        logging.get_absl_logger().addHandler(handler)
        try:
            yield
        finally:
            logging.get_absl_logger().removeHandler(handler)
            handler.close()
            file.truncate(0)  # a clean end leaves no owner's name


def _take(file: Any, folder: Path) -> None:
    file.seek(0)
    owner = file.read().strip()
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunFolderError(
            f"{folder} is in use by {owner or 'another process'}; wait for it, or "
            "choose another --workdir"
        ) from None
    if owner:
        logging.warning("took over stale lock of %s", owner)
    since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    file.truncate(0)
    file.write(f"pid {os.getpid()} on {socket.gethostname()} since {since}")
    file.flush()


def write_text(folder: Path, name: str, text: str) -> None:
    """Writes a file of the run folder in one piece.

    Raises:
      WriteError: if it cannot be written.
    """
    path = epath.Path(folder) / name
    partial = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text)
        partial.replace(path)
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error}") from error


def write_config(folder: Path, text: str) -> None:
    """Writes config.json; one that it replaces is kept as config.before-fork-N.json."""
    path = epath.Path(folder) / "config.json"
    if path.exists() and path.read_text() != text:
        old = json.loads(path.read_text())
        if config_lib.changes(old, json.loads(text)):
            number = len(list(path.parent.glob("config.before-fork-*.json"))) + 1
            kept = f"config.before-fork-{number}.json"
            write_text(folder, kept, path.read_text())
    write_text(folder, "config.json", text)


def write_error(
    folder: Path, error: BaseException, rank: int | None = None
) -> str | None:
    """Keeps a traceback under errors/, of a rank as rankN.txt.

    Returns:
      Its path, or None if even that fails.
    """
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%f")
    what = f"{stamp}-{os.getpid()}" if rank is None else f"rank{rank}"
    name = f"errors/{what}.txt"
    try:
        write_text(folder, name, "".join(traceback.format_exception(error)))
    except WriteError:
        return None
    return os.path.join(os.fspath(folder), name)
