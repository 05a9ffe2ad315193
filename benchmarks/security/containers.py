"""Crafted MP4 and Matroska files, written byte by byte: valid ones, and ones that no program writes."""

import struct
import zlib

# MP4


def pack_box(kind: bytes, *content: bytes) -> bytes:
    """Packs a box of an MP4 file."""
    body = b"".join(content)
    return struct.pack(">I", len(body) + 8) + kind + body


def pack_full_box(kind: bytes, *content: bytes) -> bytes:
    """Packs a box with a version and flags."""
    return pack_box(kind, bytes(4), *content)


def pack_uint32(*numbers: int) -> bytes:
    """Packs numbers of 32 bits."""
    return struct.pack(f">{len(numbers)}I", *numbers)


FTYP = pack_box(b"ftyp", b"isom\0\0\0\0isommp42")
AAC = pack_box(
    b"mp4a",
    bytes(6) + b"\0\1" + bytes(8) + struct.pack(">HHHHI", 2, 16, 0, 0, 44_100 << 16),
    pack_full_box(b"esds", bytes.fromhex("031900010004114015000000 0001f4000001f400 05021210 060102")),
)
_PCM = pack_box(b"sowt", bytes(6) + b"\0\1" + bytes(8) + struct.pack(">HHHHI", 2, 16, 0, 0, 44_100 << 16))
_SAME_FILE = pack_box(b"url ", b"\0\0\0\1")


def build_track(
    sample: bytes,
    n: int,
    *,
    size: int = 1,
    duration: int = 1024,
    edits: bytes = b"",
    data: bytes = _SAME_FILE,
) -> bytes:
    """Builds a track of n samples in one chunk at the file's beginning.

    Args:
        size: of a sample, in bytes
        duration: ticks that a sample duration
        data: the reference to the file with the samples
    """
    stbl = pack_box(
        b"stbl",
        pack_full_box(b"stsd", pack_uint32(1), sample),
        pack_full_box(b"stts", pack_uint32(1, n, duration) if n else pack_uint32(0)),
        pack_full_box(b"stsc", pack_uint32(1, 1, n, 1) if n else pack_uint32(0)),
        pack_full_box(b"stsz", pack_uint32(size, n)),
        pack_full_box(b"stco", pack_uint32(1, len(FTYP) + 8) if n else pack_uint32(0)),
    )
    minf = pack_box(
        b"minf",
        pack_full_box(b"smhd", bytes(4)),
        pack_box(b"dinf", pack_full_box(b"dref", pack_uint32(1), data)),
        stbl,
    )
    mdhd = pack_full_box(b"mdhd", pack_uint32(0, 0, 44_100, n), bytes(4))
    mdia = pack_box(b"mdia", mdhd, pack_full_box(b"hdlr", bytes(4) + b"soun" + bytes(13)), minf)
    return pack_box(b"trak", pack_full_box(b"tkhd", pack_uint32(0, 0, 1, 0, n), bytes(60)), edits, mdia)


def build_mp4(*tracks: bytes, content: bytes = bytes(4096), extra: bytes = b"") -> bytes:
    """Builds an MP4 file of some tracks."""
    mvhd = pack_full_box(b"mvhd", pack_uint32(0, 0, 1000, 1000), bytes(80))
    return FTYP + pack_box(b"mdat", content) + pack_box(b"moov", mvhd, *tracks, extra)


def build_fragmented_mp4(n_samples: int, n_fragments: int) -> bytes:
    """Builds an MP4 file whose fragments announce samples, and have none."""
    trex = pack_box(b"mvex", pack_full_box(b"trex", pack_uint32(1, 1, 1024, 1, 0)))
    traf = pack_box(
        b"traf", pack_full_box(b"tfhd", pack_uint32(1)), pack_full_box(b"trun", pack_uint32(n_samples))
    )
    return (
        build_mp4(build_track(AAC, 0), extra=trex)
        + pack_box(b"moof", pack_full_box(b"mfhd", pack_uint32(1)), traf) * n_fragments
    )


def build_edited_mp4(n_edits: int, n_samples: int) -> bytes:
    """Builds an MP4 file whose edit list plays all its samples again and again."""
    edits = pack_box(
        b"edts", pack_full_box(b"elst", pack_uint32(n_edits), pack_uint32(10_000_000, 0, 1 << 16) * n_edits)
    )
    return build_mp4(build_track(AAC, n_samples, edits=edits))


def build_reference_mp4(path: str) -> bytes:
    """Builds an MP4 file whose sound is in another file, which it names as QuickTime does."""
    name = path.encode()
    alias = bytes(4) + struct.pack(">HHH", 150, 2, 0) + b"\4disk" + bytes(31) + b"\4file" + bytes(75)
    alias = alias[:146] + bytes(8) + struct.pack(">HH", 2, len(name)) + name + b"\0" * (len(name) % 2)
    reference = pack_box(b"alis", bytes(4), alias, struct.pack(">HH", 18, 5), b"/disk\0", b"\xff\xff\0\0")
    return build_mp4(build_track(_PCM, 1000, size=4, duration=1, data=reference))


# Matroska


def _pack_size(n: int) -> bytes:
    n_bytes = next(n_bytes for n_bytes in range(1, 9) if n < (1 << 7 * n_bytes) - 1)
    return (1 << 7 * n_bytes | n).to_bytes(n_bytes, "big")


def pack_element(identity: str, *content: bytes | int) -> bytes:
    """Packs an element of a Matroska file."""
    body = b"".join(
        part.to_bytes(max(1, (part.bit_length() + 7) // 8), "big") if isinstance(part, int) else part
        for part in content
    )
    return bytes.fromhex(identity) + _pack_size(len(body)) + body


EBML = pack_element(
    "1a45dfa3", pack_element("4282", b"matroska"), pack_element("4287", 4), pack_element("4285", 2)
)
_DEFLATED = pack_element(
    "6d80", pack_element("6240", pack_element("5033", 0), pack_element("5034", pack_element("4254", 0)))
)


def pack_block(data: bytes, number: int = 1) -> bytes:
    """Packs a block of a track."""
    return pack_element("a3", _pack_size(number), b"\0\0\x80", data)


def build_mkv(*content: bytes, n_channels: int = 1, encoding: bytes = b"", n_tracks: int = 1) -> bytes:
    """Builds a Matroska file of PCM at 16 kHz with some blocks."""
    audio = pack_element(
        "e1",
        pack_element("b5", struct.pack(">d", 16_000.0)),
        pack_element("9f", n_channels),
        pack_element("6264", 16),
    )
    tracks = [
        pack_element(
            "ae", pack_element("d7", number), pack_element("73c5", number), pack_element("83", 2),
            pack_element("86", b"A_PCM/INT/LIT"),
            encoding, audio,
        )
        for number in range(1, n_tracks + 1)
    ]  # fmt: skip
    info = pack_element("1549a966", pack_element("2ad7b1", 1_000_000))
    cluster = pack_element("1f43b675", pack_element("e7", 0), *content)
    return EBML + pack_element("18538067", info, pack_element("1654ae6b", *tracks), cluster)


def build_zip_bomb_mkv(n_bytes: int, n_blocks: int) -> bytes:
    """Builds a Matroska file whose blocks are a thousand times as large when they are decompressed."""
    return build_mkv(pack_block(zlib.compress(b"\3\t" * (n_bytes // 2), 9)) * n_blocks, encoding=_DEFLATED)
