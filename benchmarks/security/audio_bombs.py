"""Files that exhaust or mislead a decoder: each asks for memory, time, or another file.

None of them can be decoded within a server's limits.
"""

import io
import struct
from collections.abc import Callable, Sequence

import numpy as np
import soundfile

from benchmarks.security.audio_files import SOUNDFILE_FORMATS, build_wav
from benchmarks.security.containers import (
    AAC,
    EBML,
    FTYP,
    build_edited_mp4,
    build_fragmented_mp4,
    build_mkv,
    build_mp4,
    build_reference_mp4,
    build_track,
    build_zip_bomb_mkv,
    pack_block,
    pack_box,
)


def encode_constant(name: str, n_seconds: int, *, rate: int = 8000, n_channels: int = 1) -> bytes:
    """Encodes hours of sound that never changes, which codecs store in a few bytes."""
    format_name, subtype = SOUNDFILE_FORMATS[name]
    file, second = io.BytesIO(), np.full((rate, n_channels), 0.1, np.float32)
    with soundfile.SoundFile(file, "w", rate, n_channels, format=format_name, subtype=subtype) as sound:
        for _ in range(n_seconds):
            sound.write(second)
    return file.getvalue()


def remove_flac_length(flac: bytes) -> bytes:
    """Removes the length from a FLAC header, as in a file that a program wrote into a pipe."""
    return flac[:21] + bytes([flac[21] & 0xF0]) + bytes(4) + flac[26:]


BOMBS: dict[str, Callable[[], bytes]] = {
    "twenty minutes of flac": lambda: encode_constant("flac", 1200),
    "twenty minutes of flac, no length": lambda: remove_flac_length(encode_constant("flac", 1200)),
    "eight channels of flac, no length": lambda: remove_flac_length(
        encode_constant("flac", 700, n_channels=8)
    ),
    "twelve minutes of vorbis": lambda: encode_constant("ogg", 720),
    "twelve minutes of mp3, no length": lambda: (
        encode_constant("mp3", 720).replace(b"Xing", b"Ping").replace(b"Info", b"Ping")
    ),
    "a table of 2^26 samples": lambda: build_mp4(build_track(AAC, 3 << 24)),
    "a fragment of 2^26 samples": lambda: build_fragmented_mp4(1 << 26, 1),
    "fragments of 2^27 samples": lambda: build_fragmented_mp4(1 << 20, 128),
    "10,000 edits of 10,000 samples": lambda: build_edited_mp4(10_000, 10_000),
    "1,000 tracks": lambda: build_mp4(*[build_track(AAC, 100)] * 1000),
    "boxes in boxes": lambda: (
        FTYP + b"".join(struct.pack(">I", 8 * n) + b"moov" for n in range(50_000, 0, -1))
    ),
    "3,000,000 empty boxes": lambda: FTYP + pack_box(b"free") * 3_000_000,
    "3,000,000 empty chunks": lambda: b"RIFF\xff\xff\xff\x7fWAVE" + b"junk\0\0\0\0" * 3_000_000,
    "1,000,000 empty pages": lambda: (b"OggS" + bytes(23)) * 1_000_000,
    "10,000,000 empty elements": lambda: (
        EBML + b"\x18\x53\x80\x67\x01" + b"\xff" * 7 + b"\xec\x80" * 10_000_000
    ),
    "segments in segments": lambda: EBML + (b"\x18\x53\x80\x67\x01" + b"\xff" * 7) * 500_000,
    "600,000 packets of a sample": lambda: build_mkv(pack_block(b"\1\2") * 600_000),
    "1,000,000 packets of no track": lambda: build_mkv(pack_block(b"\1\2", 9) * 1_000_000),
    "1,000,000 packets of another track": lambda: build_mkv(pack_block(b"\1\2", 2) * 1_000_000, n_tracks=2),
    "packets that unpack to 5 GB": lambda: build_zip_bomb_mkv(9_800_000, 500),
    "64 channels": lambda: build_mkv(pack_block(b"\3\t" * 64_000) * 10, n_channels=64),
    "1,024 channels": lambda: build_wav(bytes(range(256)) * 40_000, n_channels=1024, bits=8, rate=8000),
    "2^31 samples a second": lambda: build_wav(b"\3\t" * 1_000_000, rate=(1 << 31) - 1),
    "20 MB of empty frames": lambda: bytes.fromhex("fff1508000fffc") * 3_000_000,
    "48 MB of zeros": lambda: bytes(48_000_000),
    "a tag of 256 MB": lambda: b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + bytes(1000),
}
"""Files that ask for far more memory, time or anything else than a spoken question; each must be refused."""


def build_references(path: str, address: str) -> Sequence[bytes]:
    """Builds files whose sound is in a file of this machine, or at an address."""
    locations = (
        f"file://{path}",
        f"file:{path}",
        path,
        address,
        address.replace("http", "tcp"),
        f"concat:{path}",
    )
    files = []
    for location in locations:
        files += [
            build_reference_mp4(location),
            f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{location}\n#EXT-X-ENDLIST\n".encode(),
            f"ffconcat version 1.0\nfile '{location}'\n".encode(),
            f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "{location}">]>'
            f"<MPD>&x;<BaseURL>{location}</BaseURL></MPD>"
            .encode(),
            f"[playlist]\nFile1={location}\nNumberOfEntries=1\n".encode(),
            f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\na=control:{location}\n".encode(),
            f'<ASX version="3"><Entry><Ref href="{location}"/></Entry></ASX>'.encode(),
        ]  # fmt: skip
    return files
