"""What the processes of trials print: on disks as it comes, on gs:// at the end.

An object has no append, so what is printed lies on a disk of this host and is uploaded
when the process has ended.
"""

import contextlib
import tempfile
from pathlib import Path

from dpo_jax.folders import Disk, Folder

KEPT = 4 * 2**20  # bytes at the end of what was printed, which are uploaded


class Log:
    """What one process prints."""

    def __init__(self, folder: Folder, name: str):
        """Names the file.

        Args:
          folder: where it is kept.
          name: of the file.
        """
        self._folder, self._name = folder, name
        local = isinstance(folder, Disk)
        scratch = "" if local else tempfile.mkdtemp(prefix="dpo_jax-")
        self.path = Path(folder.path(name) if local else f"{scratch}/{name}")

    def __str__(self) -> str:
        return self._folder.path(self._name)

    def size(self) -> int:
        """Tells how many bytes were printed."""
        return self.path.stat().st_size if self.path.exists() else 0

    def tail(self, size: int) -> bytes:
        """Reads what was printed last."""
        with contextlib.suppress(FileNotFoundError), open(self.path, "rb") as file:
            file.seek(max(0, self.path.stat().st_size - size))
            return file.read()
        return b""

    def keep(self) -> None:
        """Uploads it, if it lies elsewhere; that may fail."""
        if isinstance(self._folder, Disk):
            return
        with contextlib.suppress(OSError):
            self._folder.create(self._name, self.tail(KEPT), b"\0")
        self.path.unlink(missing_ok=True)
        self.path.parent.rmdir()
