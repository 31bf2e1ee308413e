"""Which files a path means: a file, a glob, or the shards of a split in a folder."""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from dpo_jax.data.sources.files import SPLIT_WORDS, missing_package
from dpo_jax.data.sources.formats import ending_of
from dpo_jax.errors import DataError
from dpo_jax.files import is_local

SAVED = ("state.json", "dataset_dict.json")  # what `save_to_disk` leaves
WORDS = {word for words in SPLIT_WORDS.values() for word in words}
PATTERN = re.compile(r"[*?]|\[[^\]]+\]")


def is_place(path: str) -> bool:
    """Says whether a path is a file, a folder, or could match files."""
    return os.path.exists(path) or not is_local(path) or bool(PATTERN.search(path))


def words_of(wanted: str, split: str) -> tuple[str, ...]:
    """Returns the names that a split may have: its own, or those of train or eval."""
    return (wanted,) if wanted else SPLIT_WORDS[split]


def matching(pattern: str, field: str) -> list[str]:
    """Lists the files of a glob in order, local or remote.

    Raises:
      DataError: if there are none.
    """
    if is_local(pattern):
        found = glob.glob(pattern, recursive=True)
    else:
        import fsspec

        try:
            system, path = fsspec.url_to_fs(pattern)
            found = [system.unstrip_protocol(file) for file in system.glob(path)]
        except ImportError as error:
            raise missing_package(pattern, field, error) from error
        except (OSError, ValueError) as error:
            what = f"{field}={pattern!r} cannot be listed"
            raise DataError(f"{what}: {error}") from error
    files = sorted(path for path in found if ending_of(path))
    if not files:
        raise DataError(f"{field}={pattern!r}: no data file has such a name")
    return files


def shards(folder: Path, words: Sequence[str], field: str) -> list[str]:
    """Lists the files of a split in a folder and its subfolders, in order.

    A file is of a split whose name its path holds as a word. Where no path holds the
    name of any split, all files are one source.

    Args:
      folder: that exists.
      words: names of the split; the first that any file has.
      field: the config key that named it, for the message.

    Returns:
      [] where no reader knows any of its files.

    Raises:
      DataError: if none is of this split, or they are of several formats.
    """
    paths = [p for p in sorted(folder.rglob("*")) if p.is_file() and ending_of(p.name)]
    tables = [path for path in paths if not path.name.endswith(".json")]
    paths = tables or paths  # .json beside data is about them
    if len(endings := sorted({ending_of(path.name) for path in paths})) > 1:
        raise DataError(
            f"{field}={str(folder)!r} holds files of several formats: "
            f"{', '.join(endings)}; name one, as {folder}/*{endings[0]}"
        )
    named = {str(path): str(path.relative_to(folder)).lower() for path in paths}
    for word in words:
        whole = re.compile(rf"(?<![a-z_]){re.escape(word.lower())}(?![a-z_])")
        part = re.compile(rf"(?<![a-z]){re.escape(word.lower())}(?![a-z])")
        for pattern in (whole, part):
            if chosen := [p for p, name in named.items() if pattern.search(name)]:
                return chosen
    others = [n for n in named.values() if WORDS & set(re.split(r"[^a-z]+", n))]
    if not others:
        return list(named)
    raise DataError(
        f"{field}={str(folder)!r}: no data file with {' or '.join(words)} in its name; "
        f"found {', '.join(list(named.values())[:5])}; name one file instead"
    )


def of_library(folder: Path) -> bool:
    """Says whether a folder is one that only `datasets` understands."""
    if any((folder / name).exists() for name in SAVED):
        return True
    card = folder / "README.md"
    return card.exists() and "\nconfigs:" in card.read_text(errors="replace")
