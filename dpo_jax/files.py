"""Files that appear whole or not at all, on disks and in object stores.

An object store has no append, no rename and no links; an object appears whole. Knows
nothing of what the files hold.
"""

import errno
import hashlib
import json
import math
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import logging
from etils import epath

from dpo_jax.errors import WriteError

AnyPath = os.PathLike | str

DEPTH = 100  # levels of JSON
SMALL = 64 * 2**20  # bytes of a file that is read whole: what describes, not what holds


def is_local(path: AnyPath) -> bool:
    """Tells a path of this machine's file system from one of an object store."""
    return "://" not in os.fspath(path)


def no_file(path: AnyPath) -> str:
    """Says what stands in the place of a file of a disk; '' if a file or nothing."""
    try:
        return _other(os.lstat(path).st_mode)
    except OSError:
        return ""


def _other(mode: int) -> str:
    """Says what has a mode; '' of a file."""
    if stat.S_ISREG(mode):
        return ""
    named = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe"}
    return named.get(stat.S_IFMT(mode), "a device")


def read_small(path: AnyPath) -> bytes:
    """Reads a file whole; waits for no pipe, and takes no gigabytes.

    Raises:
      OSError: if it cannot be read, is none, or has more than `SMALL` bytes.
    """
    if not is_local(path):
        return epath.Path(path).read_bytes()
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except ValueError as error:  # a NUL in its name
        raise OSError(errno.EINVAL, str(error)) from error
    try:
        if why := _unfit(os.fstat(handle), SMALL):
            raise OSError(errno.EINVAL, f"it {why}")
        with open(handle, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(handle)


def unfit(path: AnyPath, most: float = math.inf) -> str:
    """Says why a file should not be read; '' of a file, or of nothing.

    Args:
      path: links are followed.
      most: bytes, where it is read whole.
    """
    try:
        return _unfit(os.stat(path), most)
    except (OSError, ValueError):
        return ""


def _unfit(found: os.stat_result, most: float) -> str:
    if kind := _other(found.st_mode):
        return f"is {kind}, not a file"
    big = found.st_size > most
    return f"has {found.st_size} bytes, more than {most / 2**20:.0f} MiB" if big else ""


def read_json(path: AnyPath) -> Any:
    """Reads a small JSON file.

    Raises:
      OSError: as `read_small`.
      ValueError: as `parse_json`.
    """
    return parse_json(read_small(path))


def parse_json(text: bytes | str) -> Any:
    """Parses JSON.

    Raises:
      ValueError: if it is none, nests too deeply, or says two things of one key.
    """
    try:
        value = json.loads(text, object_pairs_hook=_agreeing)
    except RecursionError as error:
        raise ValueError("it nests too deeply") from error
    level = [value]
    for _ in range(DEPTH):
        inner = [list(v.values()) if isinstance(v, dict) else v for v in level]
        level = [child for v in inner if isinstance(v, list) for child in v]
        if not level:
            return value
    raise ValueError(f"it nests more than {DEPTH} levels")


def _agreeing(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(items)
    if len(found) < len(items):
        for key, value in items:
            if repr(value) != repr(found[key]):
                raise ValueError(f"the key {key[:80]!r} stands twice and differs")
    return found


def write_whole(path: AnyPath, data: bytes | str) -> None:
    """Makes a file appear with all its bytes, forced to disk, or not at all.

    A link of that name is replaced, never followed; a device is written to.

    Raises:
      WriteError: if it cannot be written; what stood there is as it was.
    """
    target = epath.Path(path)
    data = data.encode() if isinstance(data, str) else data
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if is_local(target) and not Path(target).is_char_device():
            _replace(Path(target), data)
        else:
            target.write_bytes(data)
    except OSError as error:
        raise unwritable(path, error, len(data)) from error


def unwritable(path: AnyPath, error: OSError, size: int) -> WriteError:
    """Explains why a file of `size` bytes cannot be written, with the way out."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    way_out = "free some space" if full else "name a place where you may write"
    return WriteError(
        f"cannot write {path} ({size} bytes): {error.strerror or error}; {way_out}"
    )


def _replace(target: Path, data: bytes) -> None:
    partial = target.parent / f".{uuid.uuid4().hex}.part"
    try:
        with open(partial, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    sync(target.parent)


def sync(path: AnyPath) -> None:
    """Forces a local file, or the names in a local folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def clear_parts(folder: AnyPath) -> None:
    """Removes what killed writers left in a local folder and the folders in it."""
    for pattern in (".*.part", "*/.*.part"):
        for partial in Path(folder).glob(pattern):
            partial.unlink(missing_ok=True)


def set_aside(path: AnyPath) -> epath.Path:
    """Renames a file or folder to `NAME.corrupt`, or `NAME.2.corrupt` and so on.

    An object store renames nothing: there it is copied, then deleted.

    Returns:
      The new path.
    """
    old = epath.Path(path)
    target, number = old.with_name(f"{old.name}.corrupt"), 2
    while os.path.lexists(target) or target.exists():
        target = old.with_name(f"{old.name}.{number}.corrupt")
        number += 1
    if is_local(old):
        return old.rename(target)
    if not old.is_dir():
        target.write_bytes(old.read_bytes())
        old.unlink()
        return target
    for name in names_below(old):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes((old / name).read_bytes())
    old.rmtree()
    return target


def read_named(path: epath.Path, digest: str, whose: str, without: str) -> bytes | None:
    """Reads a file that is named by its SHA-256; one that is not is set aside.

    Args:
      path: of the file.
      digest: what its name says: the first hex digits.
      whose: whose file it is, for the log.
      without: what is done without it, for the log.

    Returns:
      None if the bytes are others.

    Raises:
      OSError: if it cannot be read.
    """
    if is_local(path) and (why := unfit(path)):
        raise OSError(errno.EINVAL, f"it {why}")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest().startswith(digest):
        return data
    try:
        kept = set_aside(path).name
    except OSError as error:
        kept = f"it is ({error})"
    logging.error(
        "%s: sha256 mismatch in %s (%d bytes): cut short or altered; %s, the file is "
        "kept as %s",
        *(whose, path, len(data), without, kept),
    )
    return None


def names_below(folder: epath.Path, prefix: str = "") -> Iterator[str]:
    """Yields the relative names of all files below a folder."""
    for child in sorted(folder.iterdir()):
        if child.is_dir():
            yield from names_below(child, f"{prefix}{child.name}/")
        else:
            yield prefix + child.name
