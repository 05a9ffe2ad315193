"""Reading of binary files whose lengths are compared with what is there before anything is read or reserved."""

import struct
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from ossicle.errors import CheckpointError


def map_file(path: Path) -> memoryview:
    """Maps a file.

    Raises:
        OSError: it cannot be read
        ValueError: it is empty
    """
    content: Any = np.memmap(path, dtype=np.uint8, mode="r")
    return memoryview(content)  # parts of it are had faster than of the array


class ByteCursor(ABC):
    """Reads one little-endian value after the other, never beyond the end."""

    def __init__(self, content: memoryview) -> None:
        self.content, self.position = content, 0

    def take(self, n_bytes: int) -> memoryview:
        """Returns the next bytes.

        Raises:
            CheckpointError: fewer are left
        """
        if n_bytes > len(self.content) - self.position:
            raise self.damage(
                f"{n_bytes} bytes are to follow byte {self.position}, but it has {len(self.content)}"
            )
        self.position += n_bytes
        return self.content[self.position - n_bytes : self.position]

    def unpack(self, form: str) -> tuple[Any, ...]:
        """Returns the next values, whose types are named as `struct` does.

        Raises:
            CheckpointError: fewer bytes are left
        """
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))

    def read_text(self, length_type: str) -> str:
        """Returns the next text, which follows its length in bytes.

        Raises:
            CheckpointError: fewer bytes are left, or it is not UTF-8
        """
        (length,) = self.unpack(length_type)
        try:
            return self.take(length).tobytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damage(f"a text before byte {self.position} is not UTF-8") from error

    @abstractmethod
    def damage(self, reason: str) -> CheckpointError:
        """Returns the error for a file that is damaged for this reason."""
