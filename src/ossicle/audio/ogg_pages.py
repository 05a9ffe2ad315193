"""The pages of Ogg files (vorbis, opus): where streams that follow each other meet, and whether pages are missing.

Decoders skip a missing or damaged page; libsndfile's then repeats sound from elsewhere in the file.
"""

import zlib

from ossicle.audio.parts import MAX_CHUNKS, AudioPart, BinaryFile, read_at
from ossicle.errors import AudioError

_CAPTURE = b"OggS"
_HEADER_BYTES = 27
_FIRST_PAGE = 2
"""Flag of the first page of a stream."""
_LAST_PAGE = 4
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def find_ogg_parts(file: BinaryFile, name: str, start: int, n_bytes: int) -> list[AudioPart]:
    """Returns the chained parts of an Ogg file: each begins with the first pages of its streams.

    Raises:
        AudioError: pages are missing, damaged or too many
    """
    parts: list[AudioPart] = []
    position = start
    next_numbers: dict[bytes, int] = {}
    has_content = is_ended = False
    for _ in range(MAX_CHUNKS):
        if position >= n_bytes:
            last = AudioPart(start=start, end=n_bytes, n_missing=position - n_bytes)
            return [*parts, last]
        header = read_at(file, position, _HEADER_BYTES)
        if not header.startswith(_CAPTURE[: len(header)]):
            following = _find_page(file, position)
            if following is None:
                if not is_ended and read_at(file, position, n_bytes).strip(b"\0"):
                    raise AudioError(_describe_damage(name, f"{n_bytes - position} bytes are no Ogg page"))
                return [*parts, AudioPart(start=start, end=position)]  # a tag or padding follows
            if not _is_first(read_at(file, following, _HEADER_BYTES)):
                raise AudioError(_describe_damage(name, f"{following - position} bytes are no Ogg page"))
            position = following
            continue
        n_segments = header[26] if len(header) == _HEADER_BYTES else 0
        segments = file.read(n_segments)
        end = position + _HEADER_BYTES + n_segments + sum(segments)
        if end <= n_bytes:
            if _is_first(header) and has_content:
                parts.append(AudioPart(start=start, end=position))
                start, next_numbers, has_content = position, {}, False
            has_content |= not _is_first(header)
            is_ended = bool(header[5] & _LAST_PAGE)
            _check_page(header, header + segments + file.read(sum(segments)), next_numbers, name)
        position = end
    raise AudioError(f"{name} consists of more than {MAX_CHUNKS} pages; expected a recording: convert it")


def _is_first(header: bytes) -> bool:
    return len(header) == _HEADER_BYTES and bool(header[5] & _FIRST_PAGE)


def _find_page(file: BinaryFile, position: int) -> int | None:
    """Returns where the next page begins."""
    file.seek(position)
    offset = file.read().find(_CAPTURE)
    return None if offset < 0 else position + offset


def _check_page(header: bytes, page: bytes, next_numbers: dict[bytes, int], name: str) -> None:
    """Raises AudioError if a page is damaged, or not the one after the page before it."""
    serial, number = header[14:18], int.from_bytes(header[18:22], "little")
    expected = next_numbers.get(serial, number)
    if number != expected:
        raise AudioError(_describe_damage(name, f"after page {expected - 1} comes page {number}"))
    next_numbers[serial] = (number + 1) % (1 << 32)
    if _compute_checksum(page[:22] + bytes(4) + page[26:]) != header[22:26]:
        raise AudioError(_describe_damage(name, f"page {number} has another checksum than it declares"))


def _describe_damage(name: str, problem: str) -> str:
    return f"{name} is damaged: {problem}, so a part of the sound is missing; copy or export it again"


def _compute_checksum(page: bytes) -> bytes:
    """Returns Ogg's CRC-32: zlib's with the bits of all bytes and of the result reversed, and no inversion."""
    crc = zlib.crc32(page.translate(_REVERSED_BITS), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return crc.to_bytes(4, "big").translate(_REVERSED_BITS)
