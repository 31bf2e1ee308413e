"""Reads rows through `datasets`: from the hub, or from a local data set folder.

Whatever goes wrong inside that library becomes one `DataError` with a way out. Nulls
that it fills in are left in the rows; the check of rows refuses them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpo_jax.data.sources.files import SPLIT_WORDS, Rows, read_folder
from dpo_jax.errors import DataError

HUB_SPLITS = {"train": "train", "eval": "test"}


def read_hub(name: str, split: str, field: str) -> Rows:
    """Reads `owner/name` or `owner/name:split` from the hub or its local cache.

    Args:
      name: the hub id; what follows a colon is the hub's own split.
      split: `train` or `eval`; without a colon they mean the hub's train and test.
      field: the config key that named it, for the message.

    Returns:
      Rows with `where` = `owner/name[index]`.

    Raises:
      DataError: if the data set cannot be had.
    """
    import datasets

    repository, _, wanted = name.partition(":")
    data = _attempt(
        lambda: datasets.load_dataset(repository, split=wanted or HUB_SPLITS[split]),
        f"{field}={name!r} cannot be read from the hub",
        "check the name and the network, or give a local .jsonl or .parquet file",
    )
    return _numbered(data, name)


def read_data_folder(folder: str, split: str, field: str) -> Rows:
    """Reads a local folder: JSONL files, `save_to_disk`, or what `datasets` can load.

    Args:
      folder: an existing folder.
      split: `train` or `eval`; the latter takes eval, test or validation, the first
        that is there.
      field: the config key that named it, for the message.

    Raises:
      DataError: if nothing in it can be read or the split is missing.
    """
    import datasets

    root = Path(folder)
    saved = any((root / name).exists() for name in ("state.json", "dataset_dict.json"))
    if not saved and (rows := read_folder(folder, split, field)) is not None:
        return rows
    load = datasets.load_from_disk if saved else datasets.load_dataset
    data = _attempt(
        lambda: load(folder),
        f"{field}={folder!r} is no folder that `datasets` can load",
        "give a .jsonl, .jsonl.gz or .parquet file",
    )
    if not isinstance(data, dict):
        return _numbered(data, folder)
    words = [word for word in SPLIT_WORDS[split] if word in data]
    if not words:
        raise DataError(
            f"{field}={folder!r} has no split {' or '.join(SPLIT_WORDS[split])}; "
            f"found {', '.join(data)}"
        )
    return _numbered(data[words[0]], folder)


def _attempt(load: Callable[[], Any], what: str, way_out: str) -> Any:
    try:
        return load()
    except Exception as error:  # another library's: hub, network, cache, formats
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        raise DataError(f"{what} ({reason}); {way_out}") from error


def _numbered(data: Any, name: str) -> Rows:
    if len(data) == 0:
        raise DataError(f"{name}: the data set has no rows")
    return ((f"{name}[{index}]", dict(row)) for index, row in enumerate(data))
