"""Random access to many files, a limited number of which stay open."""

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

_MAX_OPEN_FILES = 64
"""Few enough for any system's limit, in any number of workers."""


class FileReader:
    """Reads byte ranges of files and keeps the most recently used files open.

    Processes may share a reader after a fork, or receive copies of it.
    """

    def __init__(self) -> None:
        self._open_files: OrderedDict[Path, _OpenFile] = OrderedDict()

    def read(self, path: Path, offset: int, n_bytes: int) -> bytes:
        """Returns `n_bytes` bytes from an offset on, or fewer where the file ends before.

        Raises:
            OSError: the file cannot be read
        """
        file = self._open_files.pop(path, None) or _OpenFile(path)
        self._open_files[path] = file
        while len(self._open_files) > _MAX_OPEN_FILES:
            self._open_files.popitem(last=False)
        if hasattr(os, "pread"):  # keeps no file position that a fork would share
            return os.pread(file.descriptor, n_bytes, offset)
        os.lseek(file.descriptor, offset, os.SEEK_SET)  # on Windows, which has no fork
        return os.read(file.descriptor, n_bytes)

    def __getstate__(self) -> dict[str, Any]:
        return {"_open_files": OrderedDict()}


class _OpenFile:
    """An open file, closed when it is garbage-collected."""

    def __init__(self, path: Path) -> None:
        self.descriptor = -1
        self.descriptor = os.open(
            path, os.O_RDONLY | getattr(os, "O_BINARY", 0)
        )  # Windows would change line ends

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
