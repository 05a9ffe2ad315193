"""Whether an audio file is complete, by the lengths that its own structure declares; it decodes nothing.

Decoders play what is there and say nothing about what is missing, so a file cut short by an upload or a full disk would
be heard as a shorter sentence.
"""

import io
import os
from collections.abc import Callable

from ossicle.errors import AudioError

BinaryFile = io.BufferedReader | io.BytesIO

STREAMED_WAV_SIZE = 0x7FFF_0000  # bytes; programs that write WAV into a pipe declare at least this much
_MAX_CHUNKS = 1 << 19
"""Chunks, pages, boxes or elements of a file: an hour in chunks of 10 ms has fewer."""
_EBML_SEGMENT = b"\x18\x53\x80\x67"
_EBML_CLUSTER = b"\x1f\x43\xb6\x75"


def count_missing_bytes(file: BinaryFile, name: str) -> int:
    """Returns how many bytes the file's own structure declares beyond its end: 0 for a complete file.

    A file without this information (another container, a length that was never written, a recording without an end
    mark) counts as complete: the decoder decides. The file is left at its start.

    Raises:
        AudioError: more chunks than any recording has, which would take minutes to read
    """
    n_bytes = file.seek(0, os.SEEK_END)
    position, find_chunk_end = _detect_structure(_read_at(file, 0, 12))
    n_chunks = 0
    while position < n_bytes:
        position = find_chunk_end(file, position, n_bytes)
        n_chunks += 1
        if n_chunks > _MAX_CHUNKS:
            raise AudioError(
                f"{name} consists of more than {_MAX_CHUNKS} chunks; expected a recording: convert it"
            )
    file.seek(0)
    return position - n_bytes


_FindChunkEnd = Callable[[BinaryFile, int, int], int]
"""Returns where the chunk at a position ends by its own header; the file's end where the length is open."""


def _detect_structure(start: bytes) -> tuple[int, _FindChunkEnd]:
    """Returns where the first chunk of a file begins, and the function that finds the end of a chunk."""
    if start[:4] == b"RIFF" and start[8:] == b"WAVE":
        return 12, _find_riff_end
    if start[:4] == b"OggS":
        return 0, _find_ogg_end
    if start[:4] == b"\x1a\x45\xdf\xa3":
        return 0, _find_ebml_end
    if start[4:8] == b"ftyp":
        return 0, _find_iso_end
    return 0, lambda file, position, n_bytes: n_bytes


def _read_at(file: BinaryFile, position: int, n: int) -> bytes:
    file.seek(position)
    return file.read(n)


def _find_riff_end(file: BinaryFile, position: int, n_bytes: int) -> int:
    """Returns the end of a chunk of a WAV file; chunks behind the samples do not matter."""
    header = _read_at(file, position, 8)
    size = int.from_bytes(header[4:], "little")
    if header[:4] == b"data":
        return n_bytes if size >= STREAMED_WAV_SIZE else max(n_bytes, position + 8 + size)
    return position + 8 + size + size % 2


def _find_ogg_end(file: BinaryFile, position: int, n_bytes: int) -> int:
    """Returns the end of a page of an Ogg file (vorbis, opus)."""
    header = _read_at(file, position, 27)
    if not header.startswith(b"OggS"[: len(header)]):
        return n_bytes
    n_segments = header[26] if len(header) == 27 else 0
    return position + 27 + n_segments + sum(file.read(n_segments))


def _find_iso_end(file: BinaryFile, position: int, n_bytes: int) -> int:
    """Returns the end of a top-level box of an MP4 file (m4a)."""
    header = _read_at(file, position, 16)
    size = int.from_bytes(header[:4], "big")
    if size == 1:
        size = int.from_bytes(header[8:], "big")
    return position + max(size, 8) if size else n_bytes  # 0: to the end of the file


def _find_ebml_end(file: BinaryFile, position: int, n_bytes: int) -> int:
    """Returns the end of an element of a Matroska file (webm).

    Browsers record without knowing the length: a segment or cluster of unknown size is entered, not skipped.
    """
    head = _read_at(file, position, 12)
    n_id = 9 - head[0].bit_length()
    n_size = 9 - head[n_id].bit_length() if n_id < len(head) else 1
    if n_id > 4 or n_size > 8:
        return n_bytes
    unknown = (1 << (7 * n_size)) - 1
    size = int.from_bytes(head[n_id : n_id + n_size], "big") & unknown
    if size != unknown:
        return position + n_id + n_size + size
    return position + n_id + n_size if head[:n_id] in (_EBML_SEGMENT, _EBML_CLUSTER) else n_bytes
