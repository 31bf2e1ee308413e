"""Model folders of gs://: downloaded once for each state that they are in."""

import fnmatch
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from etils import epath

from dpo_jax import gcs
from dpo_jax.errors import ModelError

CACHE = Path("~/.cache/dpo_jax/models")


def fetched(url: str, wanted: Iterable[str], cache: Path = CACHE) -> Path:
    """Returns a local copy of a folder of gs://.

    Args:
      url: of the folder.
      wanted: patterns of the files to download.
      cache: where copies are kept, each under a digest of the objects' generations.

    Raises:
      ModelError: if there are no such files, or they cannot be read.
    """
    patterns = list(wanted)
    while True:
        found = _matching(url, patterns)
        if not found:
            raise ModelError(f"{url} holds no files of a model")
        about = json.dumps([url, sorted(found.items())]).encode()
        folder = cache.expanduser() / hashlib.sha256(about).hexdigest()[:32]
        if folder.is_dir():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            whole = Path(scratch) / "whole"
            whole.mkdir()
            for name in found:
                _download(f"{url.rstrip('/')}/{name}", whole / name)
            if _matching(url, patterns) == found:  # else it changed meanwhile
                _place(whole, folder)


def _matching(url: str, patterns: Iterable[str]) -> dict[str, int]:
    """Maps the wanted files of a folder to their generations."""
    kept = lambda name: any(fnmatch.fnmatch(name, p) for p in patterns)  # noqa: E731
    return {n: generation for n, generation in gcs.listed(url).items() if kept(n)}


def _download(url: str, path: Path) -> None:
    try:
        with epath.Path(url).open("rb") as remote, path.open("wb") as file:
            shutil.copyfileobj(remote, file, 1 << 24)
    except ImportError as error:
        raise ModelError(f"{url} needs the extra `gcs` ({error})") from error
    except OSError as error:
        raise ModelError(f"{url} cannot be downloaded: {error}") from error


def _place(whole: Path, folder: Path) -> None:
    """Moves a download to its place, unless another process was faster."""
    try:
        os.rename(whole, folder)
    except OSError:
        if not folder.is_dir():
            raise
