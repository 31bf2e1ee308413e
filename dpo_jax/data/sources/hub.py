"""Reads rows through `datasets`: from the hub, or from a local data set folder.

Whatever goes wrong inside that library becomes one `DataError` with a way out. Nulls
that it fills in are left in the rows; the check of rows refuses them.
"""

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from dpo_jax.data.sources.files import Rows
from dpo_jax.data.sources.places import SAVED
from dpo_jax.data.sources.tables import arrow_rows
from dpo_jax.errors import DataError

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
HUB_SPLITS = {"train": "train", "eval": "test"}


def read_hub(name: str, split: str, field: str, config: str = "") -> Rows:
    """Reads a data set of the hub, or of its local cache.

    Args:
      name: the hub id, `owner/name`.
      split: the hub's own.
      field: the config key that named it, for the message.
      config: the hub's own; '' = its default.

    Returns:
      Rows with `where` = `owner/name[index]`.

    Raises:
      DataError: if the data set cannot be had.
    """
    import datasets

    data = _attempt(
        lambda: datasets.load_dataset(name, config or None, split=split),
        f"{field}={name!r} (split {split!r}) cannot be read from the hub",
        "check the name and the network, or give a local copy: a file or a folder",
    )
    return _numbered(data, f"{name}:{split}")


def read_data_folder(
    folder: str, words: Sequence[str], field: str, config: str = ""
) -> Rows:
    """Reads a local folder that `save_to_disk` made or that `datasets` can load.

    Args:
      folder: an existing folder.
      words: names of the split, of which the first that is there is read.
      field: the config key that named it, for the message.
      config: of a folder that was downloaded from the hub; '' = its default.

    Raises:
      DataError: if nothing in it can be read or the split is missing.
    """
    import datasets

    saved = any(os.path.exists(os.path.join(folder, name)) for name in SAVED)
    data = _attempt(
        lambda: (
            datasets.load_from_disk(folder)
            if saved
            else datasets.load_dataset(folder, config or None)
        ),
        f"{field}={folder!r} is no folder that `datasets` can load",
        "give a file, or a glob of files",
    )
    if not isinstance(data, dict):
        return _numbered(data, folder)
    found = [word for word in words if word in data]
    if not found:
        raise DataError(
            f"{field}={folder!r} has no split {' or '.join(words)}; "
            f"found {', '.join(map(str, data))}"
        )
    return _numbered(data[found[0]], folder)


def _attempt(load: Callable[[], Any], what: str, way_out: str) -> Any:
    try:
        return load()
    except Exception as error:  # another library's: hub, network, cache, formats
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        raise DataError(f"{what} ({reason}); {way_out}") from error


def _numbered(data: Any, name: str) -> Rows:
    if len(data) == 0:
        raise DataError(f"{name}: the data set has no rows")
    tables = data.with_format("arrow").iter(batch_size=1024)
    return arrow_rows((b for table in tables for b in table.to_batches()), name)
