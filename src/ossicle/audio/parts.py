"""The audio files that one file consists of, as byte ranges; `containers` finds them, `decoding` reads them."""

import io
import os
from dataclasses import dataclass

MAX_CHUNKS = 1 << 19
"""Chunks, pages, boxes, elements or frames of a file: an hour in chunks of 10 ms has fewer."""


@dataclass(frozen=True, kw_only=True)
class AudioPart:
    """One audio file among those that were joined into a file; most files are one part."""

    start: int
    end: int
    n_missing: int = 0
    """Bytes that it declares beyond the end of the file."""
    size_fields: tuple[tuple[int, bytes], ...] = ()
    """Positions of sizes that its recorder never finished, and their true values."""


BinaryFile = io.BufferedReader | io.BytesIO


class PartFile:
    """A part of a file, to be read like a file of its own, with its sizes filled in.

    Decoders seek to places before its start; a file would raise an error inside of them.
    """

    def __init__(self, file: BinaryFile, part: AudioPart) -> None:
        self._file, self._part, self._position = file, part, 0

    def tell(self) -> int:
        """Returns the position."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves the position and returns it."""
        n_bytes = self._part.end - self._part.start
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: n_bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, n: int = -1) -> bytes:
        """Reads up to n bytes, or all that are left."""
        first = self._part.start + self._position
        n_left = max(0, self._part.end - first)
        self._file.seek(first)
        content = bytearray(self._file.read(n_left if n < 0 else min(n, n_left)))
        for position, value in self._part.size_fields:
            for index, byte in enumerate(value, position - first):
                if 0 <= index < len(content):
                    content[index] = byte
        self._position += len(content)
        return bytes(content)


def read_at(file: BinaryFile, position: int, n: int) -> bytes:
    """Reads up to n bytes from a position on."""
    file.seek(position)
    return file.read(n)
