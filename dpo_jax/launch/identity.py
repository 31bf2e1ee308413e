"""What a trial is, in 16 hex digits that are the same wherever and whenever it runs."""

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dpo_jax import config as config_lib
from dpo_jax import schema
from dpo_jax.config import Config

PATHS = (  # keys whose values may name files or folders
    *("data.train", "data.eval", "data.chat_template"),
    *("model.adapter", "ref.adapter"),
)
EDGE = 1 << 20  # bytes of a large file's start and end that its digest reads


def identity(config: Config, exports: Mapping[str, str]) -> str:
    """Returns 16 hex digits of all that `--fork` guards, without paths.

    Args:
      config: of the trial.
      exports: path of an export -> id of the trial that writes it.
    """
    made_of = {
        key: _content(value, exports) if _is_path(key) else value
        for key, value in config_lib.flat(config).items()
        if not key.startswith(schema.RELAUNCH)
    }
    text = json.dumps(made_of, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_path(key: str) -> bool:
    return key.endswith(".path") or key in PATHS


def _content(value: str, exports: Mapping[str, str]) -> list[str]:
    """Puts what lies at a path in its place; a name that is none stays."""
    found = []
    for part in value.split("+"):
        cuts = [match.start() for match in re.finditer(r"[:\[]", part)]
        for end in [len(part), *reversed(cuts)]:
            path, rest = part[:end], part[end:]
            if path in exports:
                found.append(f"export of {exports[path]}{rest}")
            elif files := sorted(glob.glob(path)) if path else []:
                found.append(digest_of(files) + rest)
            else:
                continue
            break
        else:
            found.append(part)
    return found


def digest_of(paths: Sequence[str]) -> str:
    """Digests files and folders: sizes, names below folders, starts and ends of files.

    A run compares all of its data when it resumes; this is to tell trials apart.
    """
    digest = hashlib.sha256()
    for name, path in _files(paths):
        size = os.path.getsize(path)
        digest.update(f"{name} {size}\n".encode())
        with open(path, "rb") as file:
            digest.update(file.read(EDGE))
            if size > EDGE:
                file.seek(max(EDGE, size - EDGE))
                digest.update(file.read())
    return digest.hexdigest()[:16]


def _files(paths: Sequence[str]) -> Iterator[tuple[str, Path]]:
    for path in map(Path, paths):
        below = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in below:
            if file.is_file():
                yield os.fspath(file.relative_to(path)), file
