"""Step folders on disk: what is committed, what is verified, what may go.

A step folder `N/` is *committed* iff its `MANIFEST.json` stands, which is written last
and in one move; it is *verified* iff every file matches the size and SHA-256 named
there. Knows nothing of jax and of what the files hold; one process calls at a time.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from absl import logging
from etils import epath

from dpo_jax.errors import ModelError
from dpo_jax.train import watchdog

MANIFEST = "MANIFEST.json"
CHUNK = 1 << 22  # bytes hashed at a time
HASHERS = 4  # files hashed at the same time; hashlib frees the interpreter lock


def step_folders(folder: epath.Path) -> dict[int, epath.Path]:
    """Maps step numbers to their folders, committed or not."""
    if not folder.exists():
        return {}
    names = [p for p in folder.iterdir() if p.name.isdecimal() and p.is_dir()]
    return {int(p.name): p for p in names if p.name == str(int(p.name))}


def is_committed(path: epath.Path) -> bool:
    """Says whether the manifest of a step folder stands; verifies nothing."""
    return (path / MANIFEST).exists()


def newest_verified(folder: epath.Path) -> int | None:
    """Finds the newest step that is sound; sets newer corrupt ones aside.

    Args:
      folder: of the step folders.

    Returns:
      The step; None if nothing was ever committed here.

    Raises:
      ModelError: if steps were committed and none is sound; nothing is renamed then,
        so that the next relaunch refuses as well.
    """
    failed: dict[int, str] = {}
    for step, path in sorted(step_folders(folder).items(), reverse=True):
        if not is_committed(path):
            logging.warning("ignoring %d: not committed", step)
            continue
        complaint = verify(path)
        if not complaint:
            _set_aside(folder, failed, step)
            return step
        if is_committed(path):  # else a living run has just deleted it
            failed[step] = complaint
    aside = [p.name for p in folder.iterdir()] if folder.exists() else []
    aside = sorted(name for name in aside if name.endswith(".corrupt"))
    if failed or aside:
        told = [f"{step} ({why})" for step, why in failed.items()]
        raise ModelError(
            f"{folder}: no step can be restored: {', '.join([*told, *aside])}; "
            "refusing to start from scratch; bring back a sound copy, or use another "
            "--workdir"
        )
    return None


def _set_aside(folder: epath.Path, failed: dict[int, str], sound: int) -> None:
    """Renames the steps that failed; says so, loudly."""
    for step, complaint in failed.items():
        logging.error(
            "step %d failed verification (%s); using step %d", step, complaint, sound
        )
        target, n = folder / f"{step}.corrupt", 2
        while target.exists():
            target, n = folder / f"{step}.{n}.corrupt", n + 1
        (folder / str(step)).rename(target)


def verify(path: epath.Path) -> str:
    """Compares the files of a step with its manifest; '' if all match."""
    try:
        files = read_manifest(path)["files"]
    except ModelError:
        return f"sha256 mismatch in {MANIFEST}"
    for name, entry in files.items():
        file = path / name
        if not file.exists():
            return f"missing {name}"
        if file.stat().length != entry["bytes"]:
            return f"{name} has {file.stat().length} of {entry['bytes']} bytes"
    try:
        found = hash_files(path, list(files))
    except OSError as error:
        return f"cannot read: {error}"
    wrong = [name for name in files if found[name] != files[name]]
    return f"sha256 mismatch in {', '.join(wrong)}" if wrong else ""


def _files_below(path: epath.Path, prefix: str = "") -> Iterator[str]:
    """Yields the relative names of all files of a step but the manifest."""
    for child in sorted(path.iterdir()):
        name = prefix + child.name
        if child.is_dir():
            yield from _files_below(child, name + "/")
        elif not name.startswith(MANIFEST):
            yield name


def hash_files(path: epath.Path, names: list[str] | None = None) -> dict[str, dict]:
    """Maps names to {"bytes", "sha256"} of the files as they lie on disk."""
    names = list(_files_below(path)) if names is None else names

    def entry(name: str) -> dict:
        digest, size = hashlib.sha256(), 0
        with (path / name).open("rb") as f:
            while chunk := f.read(CHUNK):
                digest.update(chunk)
                size += len(chunk)
                watchdog.beat()
        return {"bytes": size, "sha256": digest.hexdigest()}

    with ThreadPoolExecutor(HASHERS) as pool:
        return dict(zip(names, pool.map(entry, names), strict=True))


def _digest(body: dict) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def write_manifest(path: epath.Path, body: dict) -> None:
    """Writes the manifest, which holds its own digest, in one atomic move."""
    text = json.dumps({"manifest": body, "sha256": _digest(body)}, indent=1)
    target = path / MANIFEST
    if "://" in os.fspath(path):  # an object appears whole or not at all
        target.write_text(text)
        return
    tmp = path / f"{MANIFEST}.tmp"
    with open(tmp, "w") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    os.replace(tmp, target)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_manifest(path: epath.Path) -> dict:
    """Reads the manifest of a step and checks its own digest."""
    try:
        whole = json.loads((path / MANIFEST).read_bytes())
        if whole["sha256"] == _digest(whole["manifest"]):
            return whole["manifest"]
        why = "its sha256 does not match"
    except FileNotFoundError:
        why = "it is missing: the step was never committed"
    except (ValueError, KeyError, TypeError, OSError) as error:
        why = f"it cannot be read ({type(error).__name__})"
    raise ModelError(f"{path / MANIFEST}: {why}; use another step")


def clear_leftovers(folder: epath.Path) -> None:
    """Removes the temporary folders and files of saves that did not end."""
    if not folder.exists():
        return
    for child in folder.iterdir():
        head, dot, tail = child.name.partition(".")
        if head.isdecimal() and dot and "tmp" in tail:
            logging.warning("removing %s: left by a save that did not end", child.name)
            child.rmtree(missing_ok=True)
    for path in step_folders(folder).values():
        (path / f"{MANIFEST}.tmp").unlink(missing_ok=True)


def prune(folder: epath.Path, *, keep: int, keep_best: str) -> None:
    """Deletes the steps that are not wanted, and older ones never committed."""
    steps = step_folders(folder)
    committed = sorted(step for step, path in steps.items() if is_committed(path))
    kept = {*committed[-keep:], *_best({s: steps[s] for s in committed}, keep_best)}
    for step, path in steps.items():
        if step in kept or step > committed[-1]:
            continue
        try:
            (path / MANIFEST).unlink(missing_ok=True)  # first: a half is no checkpoint
            path.rmtree()
        except OSError as error:
            logging.warning("cannot delete the old checkpoint %s: %s", path, error)


def _best(steps: dict[int, epath.Path], name: str) -> list[int]:
    """Finds the step whose metric `name` is best, the newest of equals."""
    values = {}
    for step, path in steps.items():
        try:
            value = read_manifest(path)["metrics"].get(name, math.nan)
        except ModelError:
            continue
        if not math.isnan(value):
            values[step] = -value if "loss" in name else value
    return [max(values, key=lambda step: (values[step], step))] if values else []
