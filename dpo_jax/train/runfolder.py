"""The run folder: who owns it, which configuration it belongs to, what went wrong.

Nothing is created before `claim`, so a run that is refused leaves nothing behind but
`errors/`, and that only in a folder that stands already.
"""

import contextlib
import datetime
import fcntl
import json
import logging as std_logging
import os
import re
import socket
import traceback
from collections.abc import Iterator
from typing import IO, Any

from absl import logging
from etils import epath

import dpo_jax
from dpo_jax import config as config_lib
from dpo_jax import files
from dpo_jax.errors import ConfigError, RunFolderError, UserError, WriteError
from dpo_jax.files import AnyPath, is_local

PACKAGE = os.path.dirname(dpo_jax.__file__) + os.sep
FILES = (
    "config.json",
    "data.json",
    "results.json",
    "samples.json",
    "rollouts.json",
    "timing.json",
    "report.html",
    "metrics.jsonl",
    "log.txt",
    ".lock",
)


def is_ours(record: std_logging.LogRecord) -> bool:
    """Keeps this package's messages, and of libraries warnings and worse, in a line.

    What they raise in the end is told by whoever called them.
    """
    ours = record.pathname.startswith(PACKAGE)
    if not ours:
        record.exc_info = None
    return ours or record.levelno >= std_logging.WARNING


def check_files(folder: AnyPath) -> None:
    """Refuses a run folder in which something else stands for a file of the run.

    Raises:
      RunFolderError: naming all links, folders, pipes and devices.
      ConfigError: if the folder lies in an object store that cannot be read.
    """
    if not is_local(folder):
        _check_store(folder)
        return
    kinds = {name: files.no_file(os.path.join(folder, name)) for name in FILES}
    wrong = [f"{name} is {kind}" for name, kind in kinds.items() if kind]
    if wrong:
        raise RunFolderError(
            f"{folder}: {', '.join(wrong)}, not a file; move it away, or choose "
            "another --workdir"
        )


def _check_store(folder: AnyPath) -> None:
    try:
        epath.Path(folder).exists()
    except (ImportError, KeyError) as error:  # KeyError: no such kind of store
        raise ConfigError(
            f"{folder} lies in an object store that nothing here reads ({error}); "
            "install its client, or choose a --workdir on a disk"
        ) from error


def read_json(folder: AnyPath, name: str) -> dict[str, Any] | None:
    """Reads a JSON object of the run folder; None if there is no such file.

    Raises:
      RunFolderError: if it is anything else.
    """
    path = epath.Path(folder) / name
    try:
        value = files.read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        value = error
    if isinstance(value, dict):
        return value
    why = f"{value}" if isinstance(value, Exception) else f"{type(value).__name__}"
    attempts = " (its launches' are kept in attempts/)" * (name == "config.json")
    raise RunFolderError(
        f"{path} is not a JSON object: {why}; restore it{attempts}, or choose another "
        "--workdir"
    )


def finished_step(folder: AnyPath) -> int:
    """Tells the last step of a run that is whole; −1 if it is not.

    The report is the last that a run owes. A results.json that is damaged is written
    again.
    """
    try:
        results = read_json(folder, "results.json") or {}
    except RunFolderError as error:
        logging.warning("%s; the end of the run is repeated", error)
        return -1
    step = results.get("step", -1)
    whole = (epath.Path(folder) / "report.html").exists()
    return step if whole and type(step) is int else -1


def check_same(folder: AnyPath, new: dict[str, Any], *, fork: bool) -> None:
    """Refuses a configuration that differs from the folder's where it may not.

    Args:
      folder: the run folder.
      new: the configuration as nested dicts.
      fork: go on from the folder's checkpoint with the new configuration.

    Raises:
      RunFolderError: listing `key: old → new`; if files stand there without a config.
    """
    check_files(folder)
    old = read_json(folder, "config.json")
    path = epath.Path(folder)
    if old is None:
        if (path / "checkpoints").exists() or (path / "metrics.jsonl").exists():
            raise RunFolderError(
                f"{folder} holds a run without config.json; restore it (its launches' "
                "are kept in attempts/), or choose another --workdir"
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
def claim(folder: AnyPath, *, first: bool) -> Iterator[None]:
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
        check_files(folder)
        lock = _open(folder, ".lock")
        handler = std_logging.StreamHandler(_open(folder, "log.txt"))
    except OSError as error:
        raise WriteError(f"cannot make the run folder {folder}: {error}") from error
    with lock, handler.stream:
        _take(lock, folder)
        files.clear_parts(folder)
        handler.setFormatter(logging.PythonFormatter())
        handler.addFilter(is_ours)
        logging.get_absl_logger().addHandler(handler)
        try:
            yield
        finally:
            logging.get_absl_logger().removeHandler(handler)
            with contextlib.suppress(OSError):  # of a full disk: not what ends a run
                os.fsync(handler.stream.fileno())
            lock.truncate(0)  # a clean end leaves no owner's name


def holder(folder: AnyPath) -> str:
    """Names who holds the lock of a run folder; '' = nobody, or it is in a store.

    A lock that looks held is tried for an instant; one that does not is left alone, so
    that no run that is starting meets a mere reader.
    """
    try:
        with open(os.path.join(folder, ".lock"), encoding="utf-8") as lock:
            named = lock.read().strip()
            if named:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return named
    except (OSError, ValueError):  # ValueError: it is not UTF-8
        return ""
    return ""


def _open(folder: AnyPath, name: str) -> IO[str]:
    """Opens a file of the run folder to append; follows no link, waits for no pipe."""

    def opener(path: str, flags: int) -> int:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)

    path = os.path.join(folder, name)
    return open(path, "a+", encoding="utf-8", errors="replace", opener=opener)


def _take(file: IO[str], folder: AnyPath) -> None:
    file.seek(0)
    before = file.read().strip()
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunFolderError(
            f"{folder} is in use by {before or 'another process'}; wait for it, or "
            "choose another --workdir"
        ) from None
    if before:
        logging.warning("took over stale lock of %s", before)
    file.truncate(0)
    file.write(owner())
    file.flush()


def begin_attempt(
    folder: AnyPath, config: dict[str, Any], code: str, number: int = 0
) -> int:
    """Counts a launch: attempts/N.json says when, where, by which code, with what.

    Args:
      folder: the run folder.
      config: the configuration as nested dicts.
      code: names the version.
      number: of the lease on gs://, which is N; 0 = one more than the last launch's.

    Returns:
      N.

    Raises:
      WriteError: if it cannot be written.
    """
    attempts = epath.Path(folder) / "attempts"
    names = [p.name for p in attempts.iterdir()] if attempts.exists() else []
    numbered = [re.fullmatch(r"(\d+)\.json", name) for name in names]
    number = number or 1 + max((int(n[1]) for n in numbered if n), default=0)
    about = {
        "attempt": number,
        "code": code,
        "owner": owner(),
        "config": config,
    }
    text = json.dumps(about, indent=1, sort_keys=True) + "\n"
    files.write_whole(attempts / f"{number:04}.json", text)
    return number


def codes(folder: AnyPath) -> list[str]:
    """Lists the versions that a run was launched by, each once, the first first."""
    found: dict[str, None] = {}
    attempts = epath.Path(folder) / "attempts"
    names = [p.name for p in attempts.iterdir()] if attempts.is_dir() else []
    for name in sorted(name for name in names if name.endswith(".json")):
        with contextlib.suppress(UserError):  # a damaged one says nothing
            about = read_json(attempts, name) or {}
            found[str(about.get("code", "unknown"))] = None
    return list(found)


def owner() -> str:
    """Names this process, with the time."""
    since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return f"pid {os.getpid()} on {socket.gethostname()} since {since}"


def write_config(folder: AnyPath, text: str) -> None:
    """Writes config.json; one that it replaces is kept as config.before-fork-N.json."""
    path = epath.Path(folder) / "config.json"
    old = read_json(folder, "config.json")
    if old is not None and config_lib.changes(old, json.loads(text)):
        number = len(list(path.parent.glob("config.before-fork-*.json"))) + 1
        kept = path.with_name(f"config.before-fork-{number}.json")
        files.write_whole(kept, path.read_bytes())
    files.write_whole(path, text)


def write_error(
    folder: AnyPath, error: BaseException, rank: int | None = None
) -> str | None:
    """Keeps a traceback under errors/, of a rank as rankN.txt.

    What a user can mend makes no folder where none stands: it may be a typing error.

    Returns:
      Its path, or None if that fails.
    """
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%f")
    what = f"{stamp}-{os.getpid()}" if rank is None else f"rank{rank}"
    try:
        path = epath.Path(folder) / f"errors/{what}.txt"
        if isinstance(error, UserError) and not epath.Path(folder).exists():
            return None
        files.write_whole(path, "".join(traceback.format_exception(error)))
    except Exception:  # the handler of errors must not fail
        return None
    return os.fspath(path)
