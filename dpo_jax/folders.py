"""Folders in which of many who create a file one wins: on a disk, and on gs://.

What attempts and pointers need, and no more: list, read, create, replace. A disk has no
generations (0 stands for them): there a file is replaced by its one owner only.
"""

import contextlib
import os
from pathlib import Path
from typing import Protocol

from dpo_jax import files, gcs
from dpo_jax.gcs import Object


class Folder(Protocol):
    """A folder, which may not exist yet.

    Attributes:
      rest: seconds that should lie between two changes of one file.
    """

    rest: float

    def path(self, name: str) -> str:
        """Names a file in full."""
        ...

    def names(self) -> list[str]:
        """Lists the files."""
        ...

    def has(self, name: str) -> bool:
        """Tells whether there is a file."""
        ...

    def read(self, name: str) -> Object | None:
        """Reads a file; None if there is none."""
        ...

    def create(self, name: str, data: bytes, mark: bytes) -> int | None:
        """Creates a file where none is; see `gcs.create`."""
        ...

    def replace(
        self, name: str, data: bytes, generation: int, mark: bytes
    ) -> int | None:
        """Replaces a file of one's own; see `gcs.replace`."""
        ...


class Disk:
    """A folder of a file system that this host shares with the others, if any."""

    rest = 0.0

    def __init__(self, folder: Path):
        """Touches nothing."""
        self._folder = folder

    def path(self, name: str) -> str:
        """Names a file in full."""
        return str(self._folder / name)

    def names(self) -> list[str]:
        """Lists the files."""
        return os.listdir(self._folder) if self._folder.is_dir() else []

    def has(self, name: str) -> bool:
        """Tells whether there is a file."""
        return (self._folder / name).exists()

    def read(self, name: str) -> Object | None:
        """Reads a file; None if there is none."""
        try:
            return Object(files.read_small(self._folder / name), 0)
        except FileNotFoundError:
            return None

    def create(self, name: str, data: bytes, mark: bytes) -> int | None:
        """Creates a file where none is."""
        path = self._folder / name
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with open(path, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            return None
        except OSError as error:
            raise files.unwritable(path, error, len(data)) from error
        with contextlib.suppress(OSError):  # of a file system that syncs no folders
            files.sync(self._folder)
        return 0

    def replace(
        self, name: str, data: bytes, generation: int, mark: bytes
    ) -> int | None:
        """Replaces a file whole; its owner alone may."""
        files.write_whole(self._folder / name, data)
        return 0


class Bucket:
    """A folder of gs://."""

    rest = 10.0  # the store takes one change of an object a second

    def __init__(self, url: str):
        """Asks nothing."""
        self._url = url.rstrip("/")

    def path(self, name: str) -> str:
        """Names an object in full."""
        return f"{self._url}/{name}"

    def names(self) -> list[str]:
        """Lists the objects."""
        return gcs.names(self._url)

    def has(self, name: str) -> bool:
        """Tells whether there is an object."""
        return gcs.exists(self.path(name))

    def read(self, name: str) -> Object | None:
        """Reads an object; None if there is none."""
        return gcs.read(self.path(name))

    def create(self, name: str, data: bytes, mark: bytes) -> int | None:
        """Creates an object where none is."""
        return gcs.create(self.path(name), data, mark)

    def replace(
        self, name: str, data: bytes, generation: int, mark: bytes
    ) -> int | None:
        """Replaces an object of one's own."""
        return gcs.replace(self.path(name), data, generation, mark)


def folder_at(path: files.AnyPath) -> Folder:
    """Opens a folder of a disk or of gs://."""
    text = os.fspath(path)
    return Bucket(text) if text.startswith(gcs.SCHEME) else Disk(Path(text))


def has(path: str) -> bool:
    """Tells whether there is a file of a disk or of gs://, named in full."""
    return gcs.exists(path) if path.startswith(gcs.SCHEME) else os.path.exists(path)
