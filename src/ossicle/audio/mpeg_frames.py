"""The frames of mp3 files: where files that were joined meet, and what between and behind them is no sound.

Decoders stop at a tag or at padding between frames, and take the length in the first frame for that of everything.
"""

import re

from ossicle.audio.parts import MAX_CHUNKS, AudioPart
from ossicle.errors import AudioError

LENGTH_TAGS = (b"Xing", b"Info", b"VBRI")
"""In the first frame of an mp3 that declares its length."""
_KBITS = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Thousand bits per second by version (1, or 2 and 2.5) and layer, for the indices from 1."""
_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
"""By the bits of the version: 1, 2 and 2.5."""
_OTHER_THAN_ZERO = re.compile(rb"[^\0]")
_MAX_SEARCH_BYTES = 1 << 20
_TAG_SCAN_BYTES = 48
"""Bytes of a frame in which a length tag stands, whatever the version and the number of channels."""


def find_mp3_parts(data: bytes, start: int, name: str) -> list[AudioPart]:
    """Returns the joined parts of an mp3, without the tags and padding between and behind them.

    Returns: nothing where the file does not begin with frames of mp3 whose lengths can be told

    Raises:
        AudioError: other bytes between frames, too many frames, or fewer than a part declares
    """
    n_frames: list[int] = []
    parts = _find_parts(data, start, name, n_frames)
    for part, n in zip(parts, n_frames, strict=True):
        if n < (n_declared := _read_n_frames(data, part.start)):
            raise AudioError(
                f"{name} is cut short: its header declares {n_declared} frames of mp3 and it has {n}; copy or export it"
                " again"
            )
    return parts


def _find_parts(data: bytes, start: int, name: str, n_frames: list[int]) -> list[AudioPart]:
    """Returns the joined parts of an mp3, and appends the number of frames of each to `n_frames`."""
    parts: list[AudioPart] = []
    position, form = skip_tags(data, start), b""
    if not _is_frame(data, position):
        return parts
    for _ in range(MAX_CHUNKS):
        if position >= len(data):
            return parts if position == len(data) else [*parts[:-1], _clip(parts[-1], len(data))]
        if length := _measure_frame(data, position):
            is_next = parts and position == parts[-1].end and _read_form(data, position) == form
            if not is_next or _has_length_tag(data, position):
                parts.append(AudioPart(start=position, end=position))
                n_frames.append(0)
            n_frames[-1] += 1
            form, end = _read_form(data, position), position + length
            parts[-1] = AudioPart(start=parts[-1].start, end=end)
            position = end
        elif (following := skip_tags(data, position)) == position:
            n_other = _find_frame(data, position) - position
            if position + n_other >= len(data):
                return parts
            raise AudioError(
                f"{name} is damaged: {n_other} bytes at byte {position} are no mp3 frames, so a part of the sound is"
                " missing; copy or export it again"
            )
        else:
            position = following
    raise AudioError(f"{name} consists of more than {MAX_CHUNKS} frames; expected a recording: convert it")


def skip_tags(data: bytes, position: int) -> int:
    """Returns where the zeros and tags (ID3, APE, lyrics) from a position on end."""
    start = -1
    while start != position < len(data):
        start = position
        other = _OTHER_THAN_ZERO.search(data, position)
        position = _skip_tag(data, other.start()) if other else len(data)
    return min(position, len(data))


def _skip_tag(data: bytes, position: int) -> int:
    head = data[position : position + 32]
    if head[:3] == b"ID3" and len(head) >= 10:
        n_bytes = sum(byte << 7 * i for i, byte in enumerate(reversed(head[6:10])))
        return position + 10 + n_bytes + 10 * bool(head[5] & 0x10)  # with a footer
    if head[:3] == b"TAG":
        return position + 128
    if head[:8] == b"APETAGEX" and len(head) == 32:
        is_header = bool(head[23] & 0x20)
        return position + 32 + is_header * int.from_bytes(head[12:16], "little")
    if head[:11] == b"LYRICSBEGIN":
        end = data.find(b"LYRICS200", position)
        return end + 9 if end >= 0 else len(data)
    return position


def _measure_frame(data: bytes, position: int) -> int:
    """Returns the bytes of the frame at a position; 0 where there is none whose length can be told."""
    head = data[position : position + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bitrate, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return 0
    is_first_version = version == 3
    bits_per_s = 1000 * _KBITS[1 if is_first_version else 2, layer][bitrate - 1]
    rate_hz = _RATES_HZ[version][rate]
    if layer == 1:
        return (12 * bits_per_s // rate_hz + padding) * 4
    return (144 if is_first_version or layer == 2 else 72) * bits_per_s // rate_hz + padding


def _is_frame(data: bytes, position: int) -> bool:
    """Whether a frame begins here and is followed by another or by the end: four bytes may look like one by chance."""
    length = _measure_frame(data, position)
    end = position + length
    return length > 0 and ((end >= len(data) and position + 4 < len(data)) or _measure_frame(data, end) > 0)


def _find_frame(data: bytes, position: int) -> int:
    """Returns where the next two frames begin, or where the search for them ends."""
    last = position + _MAX_SEARCH_BYTES
    while 0 <= (position := data.find(b"\xff", position + 1)) < last:
        end = position + _measure_frame(data, position)
        if end > position and _measure_frame(data, end):
            return position
    return min(last, len(data))


def _clip(part: AudioPart, n_bytes: int) -> AudioPart:
    return AudioPart(start=part.start, end=n_bytes, n_missing=part.end - n_bytes)


def _read_form(data: bytes, position: int) -> bytes:
    """Returns the bits of a frame's header that do not change in a file: version, layer, rate, mono or not."""
    head = data[position : position + 4]
    return bytes([head[1] & 0x1E, head[2] & 0x0C, head[3] >> 6 == 3])


def _read_n_frames(data: bytes, position: int) -> int:
    """Returns how many frames the tag in a first frame declares, itself not counted by most encoders; 0 if none."""
    head = data[position : position + 2 * _TAG_SCAN_BYTES]
    for tag in LENGTH_TAGS:
        start = head.find(tag, 0, _TAG_SCAN_BYTES)
        if start >= 0:
            has_number = tag == b"VBRI" or int.from_bytes(head[start + 4 : start + 8], "big") & 1
            number = start + (14 if tag == b"VBRI" else 8)
            return int.from_bytes(head[number : number + 4], "big") if has_number else 0
    return 0


def _has_length_tag(data: bytes, position: int) -> bool:
    start = data[position : position + _TAG_SCAN_BYTES]
    return any(tag in start for tag in LENGTH_TAGS)
