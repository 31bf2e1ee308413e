"""Step folders on disk: what is committed, what is verified, what may go.

A step folder `N/` is *committed* iff its `MANIFEST.json` stands, which is written last
and in one move; it is *verified* iff every file matches the size and SHA-256 named
there. Knows nothing of jax and of what the files hold; one process calls at a time.
"""

import hashlib
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor

from absl import logging
from etils import epath

from dpo_jax import files
from dpo_jax.errors import ModelError
from dpo_jax.train import published, watchdog
from dpo_jax.train.published import Pointer

MANIFEST = "MANIFEST.json"
GIVEN_UP = "given_up.json"  # says that a finished run gave up its steps
PARAMS = "params"  # the folder in which it kept the parameters of the last
CHUNK = 1 << 22  # bytes hashed at a time
HASHERS = 4  # files hashed at the same time; hashlib frees the interpreter lock


def step_folders(folder: epath.Path) -> dict[int, epath.Path]:
    """Maps step numbers to their folders, committed or not; links are none.

    Of what attempts on gs:// wrote only what is published counts.
    """
    if not folder.is_dir():
        return {}
    names = [p for p in folder.iterdir() if p.name.isdecimal() and p.is_dir()]
    names = [p for p in names if not os.path.islink(p)]
    plain = {int(p.name): p for p in names if p.name == str(int(p.name))}
    try:
        steps = published.read(folder).steps
    except ValueError as error:
        where = folder / published.POINTER
        raise ModelError(f"{where} is damaged: {error}; restore it") from error
    return plain | {step: folder / place for step, place in steps.items()}


def _links(folder: epath.Path) -> list[str]:
    """Names the links that stand for step folders."""
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    return sorted(n for n in names if n.isdecimal() and os.path.islink(folder / n))


def held_step(path: epath.Path) -> int | None:
    """Tells which step the manifest of a folder names; None if none can be read."""
    try:
        return read_manifest(path)["step"]
    except ModelError:
        return None


def is_foreign(path: epath.Path) -> bool:
    """Says whether a step folder is a link, or holds another step than its name."""
    return os.path.islink(path) or held_step(path) not in (None, int(path.name))


def is_committed(path: epath.Path) -> bool:
    """Says whether the manifest of this very step stands; verifies nothing."""
    return (path / MANIFEST).exists() and not is_foreign(path)


def newest_verified(
    folder: epath.Path, *, rename: bool = True, pointer: Pointer | None = None
) -> int | None:
    """Finds the newest step that is sound; sets newer corrupt ones aside.

    Args:
      folder: of the step folders.
      rename: whether those that fail are renamed; a mere reader leaves them.
      pointer: of a run on gs://, where nothing is renamed: they are no longer named.

    Returns:
      The step; None if nothing was ever committed here.

    Raises:
      ModelError: if steps were committed and none is sound; nothing is renamed then,
        so that the next relaunch refuses as well.
    """
    failed: dict[int, str] = {}
    foreign = [f"{name} is a link" for name in _links(folder)]
    for note in foreign:
        logging.warning("%s: ignored", note)
    steps = step_folders(folder)
    for step, path in sorted(steps.items(), reverse=True):
        if is_foreign(path):
            foreign.append(f"{step} holds step {held_step(path)}")
            logging.warning("%s: ignored", foreign[-1])
            continue
        if not is_committed(path):
            logging.warning("ignoring %d: not committed", step)
            continue
        complaint = verify(path)
        if not complaint:
            for bad, why in failed.items():
                logging.error(
                    "step %d failed verification (%s); using step %d", bad, why, step
                )
                if rename:
                    _set_aside(steps[bad], why, pointer)
            return step
        if is_committed(path):  # else a living run has just deleted it
            failed[step] = complaint
    aside = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    aside = sorted(name for name in aside if name.endswith(".corrupt"))
    if failed or aside or foreign:
        told = [f"{step} ({why})" for step, why in failed.items()]
        raise ModelError(
            f"{folder}: no step can be restored: "
            f"{', '.join([*told, *foreign, *aside])}; refusing to start from scratch; "
            "bring back a sound copy under its own number, or use another --workdir"
        )
    return None


def _set_aside(path: epath.Path, why: str, pointer: Pointer | None) -> None:
    """Renames a corrupt step; on gs:// leaves a marker beside it, and its name out."""
    if pointer is None:
        files.set_aside(path)
        return
    text = json.dumps({"why": why}) + "\n"
    files.write_whole(path.parent / f"{path.name}.corrupt", text)
    pointer.change(drop=[int(path.name)])


def verify(path: epath.Path) -> str:
    """Compares the files of a step with its manifest; '' if all match."""
    try:
        listed = read_manifest(path)["files"]
    except ModelError:
        return f"sha256 mismatch in {MANIFEST}"
    for name, entry in listed.items():
        file = path / name
        if not file.is_file():
            return f"missing {name}"  # or a folder, a pipe: nothing to wait for
        if file.stat().length != entry["bytes"]:
            return f"{name} has {file.stat().length} of {entry['bytes']} bytes"
    try:
        hashes = hash_files(path, list(listed))
    except OSError as error:
        return f"cannot read: {error}"
    wrong = [name for name in listed if hashes[name] != listed[name]]
    return f"sha256 mismatch in {', '.join(wrong)}" if wrong else ""


def files_of(path: epath.Path) -> list[str]:
    """Lists the relative names of all files of a step but the manifest."""
    return [n for n in files.names_below(path) if not n.startswith(MANIFEST)]


def hash_files(path: epath.Path, names: list[str] | None = None) -> dict[str, dict]:
    """Maps names to {"bytes", "sha256"} of the files as they lie on disk."""
    names = files_of(path) if names is None else names

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
    files.write_whole(path / MANIFEST, text)


def read_manifest(path: epath.Path) -> dict:
    """Reads the manifest of a step and checks its own digest."""
    try:
        whole = files.read_json(path / MANIFEST)
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
    if not folder.is_dir():
        return
    for child in folder.iterdir():
        head, dot, tail = child.name.partition(".")
        if head.isdecimal() and dot and "tmp" in tail:
            logging.warning("removing %s: left by a save that did not end", child.name)
            child.rmtree(missing_ok=True)


def prune(
    folder: epath.Path,
    *,
    keep: int,
    keep_best: tuple[str, str],
    pointer: Pointer | None = None,
) -> None:
    """Deletes the steps that are not wanted, and older ones never committed.

    Args:
      folder: of the step folders.
      keep: how many of the newest stay.
      keep_best: a metric and `highest` or `lowest`: the best step stays as well.
      pointer: of a run on gs://, which forgets a step before it is deleted.
    """
    steps = step_folders(folder)
    committed = sorted(step for step, path in steps.items() if is_committed(path))
    kept = {*committed[-keep:], *_best({s: steps[s] for s in committed}, keep_best)}
    old = {step for step in steps if not (step in kept or step > committed[-1])}
    gone = {step: steps[step] for step in old if not is_foreign(steps[step])}
    if pointer is not None:
        pointer.change(drop=gone)
    for path in gone.values():
        _delete(path)


def _delete(path: epath.Path) -> None:
    """Deletes a step folder, as far as that can be."""
    try:
        (path / MANIFEST).unlink(missing_ok=True)  # first: a half is no checkpoint
        path.rmtree()
    except OSError as error:
        logging.warning("cannot delete the old checkpoint %s: %s", path, error)


def give_up(folder: epath.Path, after: str, pointer: Pointer | None = None) -> None:
    """Deletes the steps of a finished run, and leaves word of it first.

    Args:
      folder: of the step folders.
      after: `all` deletes nothing, `params` leaves those that were saved apart.
      pointer: as for `prune`.

    Raises:
      WriteError: if the word cannot be left.
    """
    apart = step_folders(folder / PARAMS).values()
    if after == "params" and not any(map(is_committed, apart)):
        logging.warning("%s: no parameters were saved apart: all is kept", folder)
    elif after != "all":
        files.write_whole(folder / GIVEN_UP, json.dumps({"kept": after}) + "\n")
        gone = step_folders(folder)
        if pointer is not None:
            pointer.change(drop=gone)
        for path in gone.values():
            _delete(path)


def given_up(folder: epath.Path) -> str:
    """Tells what a finished run kept of its steps: `params`, `none`; '' = all."""
    if not (folder / GIVEN_UP).exists():
        return ""
    try:
        return str(files.read_json(folder / GIVEN_UP)["kept"])
    except (OSError, ValueError, KeyError, TypeError):
        return "none"


def _best(steps: dict[int, epath.Path], keep_best: tuple[str, str]) -> list[int]:
    """Finds the step whose metric is best, the newest of equals."""
    (name, way), values = keep_best, {}
    for step, path in steps.items():
        try:
            value = read_manifest(path)["metrics"].get(name, math.nan)
        except ModelError:
            continue
        if not math.isnan(value):
            values[step] = -value if way == "lowest" else value
    return [max(values, key=lambda step: (values[step], step))] if values else []
