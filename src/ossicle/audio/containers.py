"""Where the audio in a file begins and ends, by the lengths that its own structure declares; it decodes nothing.

Decoders play what is there and say nothing about what is missing or follows, so a file cut short by an upload or a full
disk would be heard as a shorter sentence, and of two files joined into one only the first.
"""

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from ossicle.audio.mpeg_frames import find_mp3_parts, skip_tags
from ossicle.audio.ogg_pages import find_ogg_parts
from ossicle.audio.parts import MAX_CHUNKS, AudioPart, BinaryFile, read_at
from ossicle.errors import AudioError

STREAMED_SIZE = 0x7FFF_0000  # bytes; programs that write into a pipe declare at least this much
MAX_PARTS = 1_000
_MAX_PADDING_BYTES = 1 << 16
"""Zeros between joined files."""
_MAX_EXCESS = 44
"""Bytes that a size may be too large: some recorders count the header of a plain WAV, or a part of it, as samples."""
_KNOWN_CHUNKS = (
    b"LIST",
    b"bext",
    b"id3 ",
    b"ID3 ",
    b"iXML",
    b"fact",
    b"cue ",
    b"smpl",
    b"JUNK",
    b"PEAK",
    b"_PMX",
)
"""Chunks that often follow the samples, and do not matter where they are cut."""
_PLAIN_WAV_TAGS = (1, 3, 6, 7, 0xFFFE)
"""Encodings of WAV whose samples can be told apart: in the others a few bytes are many samples."""
_START_BYTES = 40
"""Bytes at the beginning of a file by which its structure is known."""
_W64_RIFF = bytes.fromhex("726966662e91cf11a5d628db04c10000")
_W64_WAVE = bytes.fromhex("77617665f3acd3118cd100c04f8edb8a")
_W64_DATA = bytes.fromhex("64617461f3acd3118cd100c04f8edb8a")
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_EBML_HEADER = b"\x1a\x45\xdf\xa3"
_EBML_SEGMENT = b"\x18\x53\x80\x67"
_EBML_CLUSTER = b"\x1f\x43\xb6\x75"
_FLAC_STARTS = (b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22")


@dataclass(frozen=True, kw_only=True)
class _ChunkForm:
    """How the chunks of a container are laid out."""

    header_bytes: int = 12
    """Bytes before the first chunk."""
    id_bytes: int = 4
    size_bytes: int = 4
    byteorder: Literal["little", "big"] = "big"
    counts_header: bool = False
    """Whether the size of a chunk includes its id and size."""
    alignment: int = 2
    data_id: bytes
    data_offset: int = 0
    """Bytes of the chunk of samples before the first of them."""

    @property
    def chunk_header_bytes(self) -> int:
        """Bytes of a chunk's id and size."""
        return self.id_bytes + self.size_bytes


_RIFF = _ChunkForm(byteorder="little", data_id=b"data")
_RIFX = _ChunkForm(data_id=b"data")
_AIFF = _ChunkForm(data_id=b"SSND", data_offset=8)
_SVX = _ChunkForm(data_id=b"BODY")
_CAF = _ChunkForm(header_bytes=8, size_bytes=8, alignment=1, data_id=b"data", data_offset=4)
_W64 = _ChunkForm(
    header_bytes=40,
    id_bytes=16,
    size_bytes=8,
    byteorder="little",
    counts_header=True,
    alignment=8,
    data_id=_W64_DATA,
)


def find_parts(file: BinaryFile, name: str) -> list[AudioPart]:
    """Returns the audio files that a file consists of: one, or several that were joined.

    A file without declared lengths (another container, a length that was never written, a recording without an end
    mark) is one complete part: the decoder decides. The file is left at its start.

    Raises:
        AudioError: a part is cut short or damaged, or has more chunks than any recording, which would take minutes to
            read
    """
    n_bytes = file.seek(0, os.SEEK_END)
    parts = _find_all(_Reader(file=file, name=name, n_bytes=n_bytes))
    if len(parts) > MAX_PARTS:
        raise AudioError(
            f"{name} consists of {len(parts)} joined files; expected at most {MAX_PARTS}: decode and join them"
        )
    for part in parts:
        if part.n_missing:
            raise AudioError(
                f"{name} is cut short: at least {part.n_missing} of the bytes that it declares are missing; copy or"
                " export it again"
            )
    file.seek(0)
    return parts


def _find_all(reader: "_Reader") -> list[AudioPart]:
    parts: list[AudioPart] = []
    while True:
        start = reader.start
        parts += _find_next(reader)
        if parts[-1].n_missing or not start < parts[-1].end < reader.n_bytes:
            return parts
        reader.start = _find_start(reader, parts[-1].end)
        if reader.start == reader.n_bytes:
            return parts


def _find_next(reader: "_Reader") -> list[AudioPart]:
    """Returns the part that begins at the reader's start; of a form whose parts are found together, all of them."""
    reader.count_chunk()
    head = reader.read(reader.start, _START_BYTES)
    if head.startswith(b"OggS"):
        return find_ogg_parts(reader.file, reader.name, reader.start, reader.n_bytes)
    if _detect(head) is None and head.startswith((b"ID3", b"\xff", b"\0", *_FLAC_STARTS)):
        data = reader.read(0, reader.n_bytes)
        if parts := _find_flac_parts(data, reader.start) or find_mp3_parts(data, reader.start, reader.name):
            return parts
    return [(_detect(head) or _take_rest)(reader)]


def _find_start(reader: "_Reader", position: int) -> int:
    """Returns where another file begins, at a position or after zeros; the end where none does."""
    padding = reader.read(position, _MAX_PADDING_BYTES)
    end = position + len(padding) - len(padding.lstrip(b"\0"))
    for start in (position, end, max(position, end - 3)):  # the size of an MP4's first box begins with zeros
        if _is_start(reader.read(start, _START_BYTES)):
            return start
    return reader.n_bytes


def _is_start(head: bytes) -> bool:
    """Whether a file begins like this; mp3 is not told from samples by its first bytes."""
    return _detect(head) is not None or head.startswith((b"OggS", *_FLAC_STARTS))


@dataclass(kw_only=True)
class _Reader:
    """A file from the start of a part on, and the number of chunks that were read of it."""

    file: BinaryFile
    name: str
    n_bytes: int
    start: int = 0
    n_chunks: int = 0

    def read(self, position: int, n: int) -> bytes:
        return read_at(self.file, min(position, self.n_bytes), n)  # a position may be of any size

    def count_chunk(self) -> None:
        self.n_chunks += 1
        if self.n_chunks > MAX_CHUNKS:
            raise AudioError(
                f"{self.name} consists of more than {MAX_CHUNKS} chunks; expected a recording: convert it"
            )

    def build_part(self, end: int, size_fields: tuple[tuple[int, bytes], ...] = ()) -> AudioPart:
        return AudioPart(
            start=self.start,
            end=min(end, self.n_bytes),
            n_missing=max(0, end - self.n_bytes),
            size_fields=size_fields,
        )


_FindPart = Callable[[_Reader], AudioPart]


def _detect(head: bytes) -> _FindPart | None:
    """Returns the function that finds the end of a part which begins like this; None for an unknown beginning."""
    if head[:16] == _W64_RIFF and head[24:40] == _W64_WAVE:
        return partial(_find_chunked_part, form=_W64)
    if form := _CHUNK_FORMS.get((head[:4], head[8:12])):
        return partial(_find_chunked_part, form=form)
    if head[4:8] == b"ftyp":
        return partial(_find_boxed_part, find_end=_find_iso_end, is_start=lambda box: box[4:8] == b"ftyp")
    return next((find_part for start, find_part in _STARTS.items() if head.startswith(start)), None)


def _take_rest(reader: _Reader) -> AudioPart:
    return reader.build_part(reader.n_bytes)


# Chunks: one holds the samples


@dataclass(frozen=True)
class _Chunk:
    """A chunk by its own header."""

    id: bytes
    payload: int
    """Position of its content."""
    size: int
    """Bytes of its content."""


def _find_chunked_part(reader: _Reader, *, form: _ChunkForm) -> AudioPart:
    """Returns a part made of chunks; those behind its samples do not matter, except that another file may follow."""
    position, long_size_at, samples, is_plain = reader.start + form.header_bytes, None, None, False
    size_fields: tuple[tuple[int, bytes], ...] = ()
    while chunk := _read_chunk(reader, form, position):
        reader.count_chunk()
        if chunk.id == b"ds64":
            long_size_at = chunk.payload + 8
        if chunk.id == b"fmt ":
            is_plain = int.from_bytes(reader.read(chunk.payload, 2), form.byteorder) in _PLAIN_WAV_TAGS
        if chunk.id == form.data_id and samples is None:
            size_at, n_size = position + form.id_bytes, form.size_bytes
            if long_size_at is not None and chunk.size == 0xFFFF_FFFF:
                size_at, n_size = long_size_at, 8
                chunk = replace(chunk, size=int.from_bytes(reader.read(size_at, 8), "little"))
            if chunk.size >= (STREAMED_SIZE if n_size == 4 else 1 << 62):
                return _take_rest(reader)
            size = _correct_size(reader, form, chunk, is_plain=is_plain)
            if size != chunk.size:
                declared = size + form.counts_header * form.chunk_header_bytes
                size_fields = ((size_at, _pack_size(declared, n_size, form.byteorder)),)
            samples = chunk = replace(chunk, size=size)
            if chunk.payload + size > reader.n_bytes:
                return reader.build_part(chunk.payload + size)
        end = chunk.payload + chunk.size
        position = _align(reader, form, end)
        for start in range(end, min(position, reader.n_bytes)):  # some recorders leave out the bytes between
            if _is_start(reader.read(start, _START_BYTES)):
                position = start
                break
    if samples is None:  # the header itself may be cut
        return reader.build_part(max(position, reader.n_bytes))
    return reader.build_part(min(position, reader.n_bytes), size_fields)


def _read_chunk(reader: _Reader, form: _ChunkForm, position: int) -> _Chunk | None:
    """Returns the chunk at a position; None where there is none, or another file begins."""
    head = reader.read(position, max(form.chunk_header_bytes, _START_BYTES))
    name = head[: form.id_bytes]
    if len(head) < form.chunk_header_bytes or not name[:4].isascii() or not name[:4].decode().isprintable():
        return None
    if _is_start(head):
        return None
    size = int.from_bytes(head[form.id_bytes : form.chunk_header_bytes], form.byteorder)
    size = max(0, size - form.counts_header * form.chunk_header_bytes)
    return _Chunk(name, position + form.chunk_header_bytes, size)


def _align(reader: _Reader, form: _ChunkForm, position: int) -> int:
    return position + (reader.start - position) % form.alignment


def _correct_size(reader: _Reader, form: _ChunkForm, chunk: _Chunk, *, is_plain: bool) -> int:
    """Returns the size of the samples' chunk, also where its recorder never finished its header or counted wrongly."""
    n_available = reader.n_bytes - chunk.payload
    n_header = chunk.payload - reader.start
    n_excess = chunk.size - n_available
    if is_plain and (0 < n_excess <= _MAX_EXCESS or n_excess in (n_header, n_header - 8)):
        return n_available
    if n_excess >= 0 or _ends_here(reader, form, chunk.payload + chunk.size):
        return chunk.size
    # The size of the whole file may be known where that of the samples is not, or is that of an earlier moment.
    n_left = _read_file_size(reader, form) - n_header
    if chunk.size < n_left <= n_available:
        return n_left
    is_padding = not any(reader.read(chunk.payload + chunk.size, _MAX_PADDING_BYTES))
    is_unfinished = chunk.size <= form.data_offset or (is_plain and not is_padding)
    return n_available if is_unfinished else chunk.size


def _pack_size(size: int, n_bytes: int, byteorder: Literal["little", "big"]) -> bytes:
    """Returns the bytes of a size; of one that has no room in them, an open size."""
    return min(size, (1 << 8 * n_bytes) - 1).to_bytes(n_bytes, byteorder)


def _read_file_size(reader: _Reader, form: _ChunkForm) -> int:
    """Returns the bytes of the whole part by its first header; 0 where they are not known."""
    if form in (_W64, _CAF):
        return 0
    size = int.from_bytes(reader.read(reader.start + 4, 4), form.byteorder)
    return size + 8 if size < STREAMED_SIZE else 0


def _ends_here(reader: _Reader, form: _ChunkForm, position: int) -> bool:
    """Whether no more samples follow, but another chunk or file, a tag or a few bytes."""
    for start in {position, _align(reader, form, position)}:  # some recorders leave out the byte between
        chunk = _read_chunk(reader, form, start)
        if chunk and (chunk.id in _KNOWN_CHUNKS or chunk.payload + chunk.size <= reader.n_bytes):
            return True
    rest = reader.read(position, _MAX_PADDING_BYTES)
    is_tag = len(rest) <= _MAX_EXCESS or rest.startswith((b"ID3", b"TAG", b"APETAGEX"))
    return is_tag or _find_start(reader, position) < reader.n_bytes


# Headers with the number of bytes or samples


def _find_au_part(reader: _Reader) -> AudioPart:
    byteorder = "big" if reader.read(reader.start, 4) == b".snd" else "little"
    offset, size = (int.from_bytes(reader.read(reader.start + at, 4), byteorder) for at in (4, 8))
    if size >= STREAMED_SIZE:
        return _take_rest(reader)
    n_available = reader.n_bytes - reader.start - offset
    if size == 0 < n_available:
        fields = ((reader.start + 8, _pack_size(n_available, 4, byteorder)),)
        return reader.build_part(reader.n_bytes, fields)
    return reader.build_part(reader.start + offset + size)


def _find_nist_part(reader: _Reader) -> AudioPart:
    """Returns a part in NIST's SPHERE form; compressed samples have no known size."""
    head = reader.read(reader.start, 1024).decode("latin-1")
    fields = dict(re.findall(r"^(\S+) -\S+ (.+)$", head, re.MULTILINE))
    try:
        n_header = int(head.split("\n")[1])
        counts = [int(fields[key]) for key in ("sample_count", "sample_n_bytes")]
        n_samples = math.prod([*counts, int(fields.get("channel_count", 1))])
    except (IndexError, KeyError, ValueError):
        return _take_rest(reader)
    end = reader.start + n_header + n_samples
    is_compressed = "," in fields.get("sample_coding", "pcm")
    if n_samples <= 0 or is_compressed:
        return _take_rest(reader)
    return reader.build_part(end)


def _find_voc_part(reader: _Reader) -> AudioPart:
    position = reader.start + int.from_bytes(reader.read(reader.start + 20, 2), "little")
    while (
        (head := reader.read(position, _START_BYTES)) and head[0] and not _is_start(head)
    ):  # block 0 is the end
        reader.count_chunk()
        position += 4 + int.from_bytes(head[1:4], "little")
    return reader.build_part(position + 1 if head[:1] == b"\0" else position)


# Boxes: all of them belong to the sound


_FindEnd = Callable[[_Reader, int], int]
"""Returns where the box at a position ends by its own header; the file's end where the length is open."""


def _find_boxed_part(reader: _Reader, *, find_end: _FindEnd, is_start: Callable[[bytes], bool]) -> AudioPart:
    """Returns a part made of boxes, up to one with which another file begins."""
    position = reader.start
    while position < reader.n_bytes:
        if position > reader.start and is_start(reader.read(position, 16)):
            break
        if reader.read(position, 8) == bytes(8):  # padding
            break
        reader.count_chunk()
        position = find_end(reader, position)
    return reader.build_part(position)


def _find_iso_end(reader: _Reader, position: int) -> int:
    """Returns the end of a top-level box of an MP4 file (m4a)."""
    header = reader.read(position, 16)
    size = int.from_bytes(header[:4], "big")
    if size == 1:
        size = int.from_bytes(header[8:], "big")
    return position + max(size, 8) if size else reader.n_bytes  # 0: to the end of the file


def _find_asf_end(reader: _Reader, position: int) -> int:
    """Returns the end of a top-level object of an ASF file (wma); a size that no object has ends the search."""
    size = int.from_bytes(reader.read(position, 24)[16:], "little")
    return position + size if size >= 24 else reader.n_bytes


def _find_ebml_end(reader: _Reader, position: int) -> int:
    """Returns the end of an element of a Matroska file (webm).

    Browsers record without knowing the length: a segment or cluster of unknown size is entered, not skipped.
    """
    head = reader.read(position, 12)
    n_id = 9 - head[0].bit_length()
    n_size = 9 - head[n_id].bit_length() if n_id < len(head) else 1
    if n_id > 4 or n_size > 8:
        return reader.n_bytes
    unknown = (1 << (7 * n_size)) - 1
    size = int.from_bytes(head[n_id : n_id + n_size], "big") & unknown
    if size != unknown:
        return position + n_id + n_size + size
    return position + n_id + n_size if head[:n_id] in (_EBML_SEGMENT, _EBML_CLUSTER) else reader.n_bytes


# FLAC: the number of samples in its header is checked when they are decoded


def _find_flac_parts(data: bytes, begin: int) -> list[AudioPart]:
    """Returns the joined parts of a FLAC file; none if it is no FLAC."""
    start, parts = skip_tags(data, begin), []
    if data[start : start + 4] != b"fLaC":
        return parts
    while True:
        position, is_last = start + 4, False
        while not is_last and position + 4 <= len(data):  # over pictures and tags, which may hold anything
            is_last = bool(data[position] & 0x80)
            position += 4 + int.from_bytes(data[position + 1 : position + 4], "big")
        starts = [found for mark in _FLAC_STARTS if (found := data.find(mark, position)) >= 0]
        if not starts:
            return [*parts, AudioPart(start=begin, end=len(data))]
        start = min(starts)
        parts.append(AudioPart(start=begin, end=start))
        begin = start


_CHUNK_FORMS = {
    (b"RIFF", b"WAVE"): _RIFF,
    (b"RF64", b"WAVE"): _RIFF,
    (b"BW64", b"WAVE"): _RIFF,
    (b"RIFX", b"WAVE"): _RIFX,
    (b"FORM", b"AIFF"): _AIFF,
    (b"FORM", b"AIFC"): _AIFF,
    (b"FORM", b"8SVX"): _SVX,
    (b"FORM", b"16SV"): _SVX,
}
_STARTS: dict[bytes, _FindPart] = {
    b"caff\0\1": partial(_find_chunked_part, form=_CAF),
    b".snd": _find_au_part,
    b"dns.": _find_au_part,
    b"NIST_1A\n": _find_nist_part,
    b"Creative Voice File\x1a": _find_voc_part,
    _EBML_HEADER: partial(
        _find_boxed_part, find_end=_find_ebml_end, is_start=lambda box: box.startswith(_EBML_HEADER)
    ),
    _ASF_HEADER: partial(
        _find_boxed_part, find_end=_find_asf_end, is_start=lambda box: box.startswith(_ASF_HEADER)
    ),
}
