"""Where compiled programs are kept on disk, for runs that compile the same.

Jax writes an entry in place and never replaces one: what a killed process left half
written would be warned of and compiled again in every run to come. So entries written
since the last look are read, and those that are cut are removed.
"""

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import os
import platform
import sys
import time
import zlib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import jax
from absl import logging

from dpo_jax.files import is_local

ENTRIES = "*-cache"  # as jax names them
LOOKED = "looked"  # its time of change is that of the last look
WRITING_SECONDS = 2.0  # an entry as young may be half written by a process that lives
MIN_SECONDS = 0.5  # of compilation, for a program to be kept
ZSTD = b"\x28\xb5\x2f\xfd"


def use(folder: str | os.PathLike | None = None) -> None:
    """Keeps compiled programs on disk, unless jax was told where before.

    Several processes on CPUs keep none: a program of XLA's CPU compiler that was read
    from disk has lost the order of its collectives, so that processes which run them
    in different orders hang or abort (seen with jax 0.10.2; none in a program that was
    just compiled).

    Args:
      folder: what versions and processors share; None = below the user's cache.
    """
    if jax.distributed.is_initialized() and jax.default_backend() == "cpu":
        if jax.process_count() > 1:
            jax.config.update("jax_enable_compilation_cache", False)
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    parent = Path.home() / ".cache" / "dpo_jax" / "jax" if folder is None else folder
    if not is_local(parent):
        place = f"{os.fspath(parent).rstrip('/')}/{variant()}"
    else:
        place = str(Path(parent).absolute() / variant())
        remove_cut(Path(place))
    jax.config.update("jax_compilation_cache_dir", place)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)


@functools.cache
def variant() -> str:
    """Names what a program depends on and jax's key leaves out, or may."""
    versions = [metadata.version(name) for name in ("jax", "jaxlib")]
    codec = "zstd" if _zstd() else "zlib"
    with contextlib.suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text().partition("\nflags")[2]
        digest = hashlib.sha256(flags.partition("\n")[0].encode()).hexdigest()[:8]
        return "-".join([*versions, platform.machine(), digest, codec])
    return "-".join([*versions, platform.machine(), codec])


def _zstd() -> str:
    """Names the module that jax compresses with; '' = zlib."""
    new = "compression.zstd" if sys.version_info >= (3, 14) else ""
    return new or ("zstandard" if importlib.util.find_spec("zstandard") else "")


def remove_cut(folder: Path) -> None:
    """Removes entries that are not whole, of those written since the last look."""
    now, looked = time.time(), folder / LOOKED
    since = looked.stat().st_mtime if looked.exists() else 0.0
    with contextlib.suppress(OSError):  # a folder that cannot be written is no cache
        for path in _changed(folder, since, now - WRITING_SECONDS):
            if not is_whole(path.read_bytes()):
                path.unlink()
                logging.warning("%s was cut: removed, to be compiled again", path)
        folder.mkdir(parents=True, exist_ok=True)
        looked.touch()
        os.utime(looked, (now - WRITING_SECONDS, now - WRITING_SECONDS))


def _changed(folder: Path, since: float, until: float) -> Iterator[Path]:
    for path in folder.glob(ENTRIES):
        with contextlib.suppress(FileNotFoundError):  # removed by another process
            if since <= path.stat().st_mtime < until:
                yield path


def is_whole(entry: bytes) -> bool:
    """Tells whether an entry can be decompressed to its end."""
    if entry.startswith(ZSTD):
        module = importlib.import_module(_zstd())
        try:
            return bool(module.decompress(entry))
        except Exception:  # each of the modules has its own
            return False
    reader = zlib.decompressobj()
    try:
        reader.decompress(entry)
    except zlib.error:
        return False
    return reader.eof
