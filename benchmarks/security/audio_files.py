"""Sound files as they are, and as somebody writes them who wants to break what reads them; it knows no server.

The broken ones are written byte by byte, as no program writes them: each asks for something that is not in it, such as
memory, time, a decoder or another file.
"""

import io
import random
import struct
import zlib
from collections.abc import Callable, Sequence

import av
import numpy as np
import soundfile

WITH_SOUNDFILE = {
    "wav": ("WAV", "PCM_16"),
    "wav_float": ("WAV", "FLOAT"),
    "wav_ulaw": ("WAV", "ULAW"),
    "wav_adpcm": ("WAV", "MS_ADPCM"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", None),
}
WITH_FFMPEG = {
    "webm": ("webm", "libopus", {}),
    "webm_live": ("webm", "libopus", {"live": "1"}),  # as browsers record: no length is known
    "m4a": ("ipod", "aac", {}),
    "m4a_fragmented": ("mp4", "aac", {"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
    "m4a_alac": ("ipod", "alac", {}),
}
FORMATS = (*WITH_SOUNDFILE, *WITH_FFMPEG)


def encode_audio(name: str, samples: np.ndarray, rate: int) -> bytes:
    """Mono sound in one of the formats.

    Args:
        rate: 48,000 Hz, which all of them know
    """
    file = io.BytesIO()
    if name in WITH_SOUNDFILE:
        form, subtype = WITH_SOUNDFILE[name]
        soundfile.write(file, samples, rate, format=form, subtype=subtype)
        return file.getvalue()
    form, codec, options = WITH_FFMPEG[name]
    with av.open(file, "w", format=form, options=options) as container:
        track = container.add_stream(codec, rate=rate, layout="mono")
        context = track.codec_context
        frame = av.AudioFrame.from_ndarray(samples.astype(np.float32)[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        size = {"aac": 1024, "libopus": rate // 50}.get(codec, 4096)
        cut = av.AudioResampler(context.format.name, "mono", rate, frame_size=size)
        for piece in [*cut.resample(frame), *cut.resample(None), None]:
            container.mux(track.encode(piece))
    return file.getvalue()


def damage(draw: random.Random, data: bytes) -> bytes:
    """A file with a few bytes, numbers or stretches changed, taken out, repeated or left out at its end."""
    made = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        # Headers are at the beginning, and decide more than what follows.
        place = draw.randrange(min(len(made), draw.choice((64, 512, len(made)))) or 1)
        match draw.randrange(7):
            case 0 | 1:
                made[place : place + 1] = bytes([draw.randrange(256)])
            case 2:
                number = draw.choice((0, 1, 0x7F, 0x80, 0xFF, 1 << 15, 1 << 24, (1 << 31) - 1, (1 << 32) - 1))
                n_bytes = draw.choice((1, 2, 4, 8))
                order = draw.choice(("little", "big"))
                made[place : place + n_bytes] = (number % (1 << 8 * n_bytes)).to_bytes(n_bytes, order)
            case 3:
                del made[place : place + draw.choice((1, 4, 64, 1024))]
            case 4:
                made[place:place] = made[place : place + draw.choice((1, 8, 256))] * draw.choice((1, 2, 50))
            case 5:
                other = draw.randrange(len(made) or 1)
                made[place : place + 64] = made[other : other + 64]
            case _:
                del made[draw.randrange(len(made) or 1) :]
    return bytes(made)


def build_wav(
    samples: bytes, *, rate: int = 16_000, n_channels: int = 1, bits: int = 16, size: int | None = None
) -> bytes:
    """A WAV file that says of its samples whatever it is told to.

    Args:
        size: of the samples, in bytes, as the header has it
    """
    block = n_channels * bits // 8
    head = struct.pack("<HHIIHH", 1, n_channels, rate, rate * block % (1 << 32), block % (1 << 16), bits)
    body = b"WAVEfmt " + struct.pack("<I", len(head)) + head + b"data"
    body += struct.pack("<I", len(samples) if size is None else size) + samples
    return b"RIFF" + struct.pack("<I", len(body) % (1 << 32)) + body


def build_lying_wav(draw: random.Random, samples: bytes) -> bytes:
    """A WAV file that announces what it does not hold, or what nobody records."""
    match draw.randrange(4):
        case 0:
            return build_wav(samples, size=len(samples) + draw.choice((1, 1000, 1 << 30)))
        case 1:
            return build_wav(samples, rate=draw.choice((0, 1, 7, 1 << 24, (1 << 31) - 1, (1 << 32) - 1)))
        case 2:
            return build_wav(samples, n_channels=draw.choice((0, 49, 255, 1024, 65535)))
        case _:
            return build_wav(samples, bits=draw.choice((0, 128, 65535)))


# MP4


def pack_box(kind: bytes, *content: bytes) -> bytes:
    """Of an MP4 file."""
    body = b"".join(content)
    return struct.pack(">I", len(body) + 8) + kind + body


def pack_full_box(kind: bytes, *content: bytes) -> bytes:
    """A box with a version and flags."""
    return pack_box(kind, bytes(4), *content)


def pack_uint32(*numbers: int) -> bytes:
    """Of 32 bits."""
    return struct.pack(f">{len(numbers)}I", *numbers)


_FTYP = pack_box(b"ftyp", b"isom\0\0\0\0isommp42")
_AAC = pack_box(
    b"mp4a",
    bytes(6) + b"\0\1" + bytes(8) + struct.pack(">HHHHI", 2, 16, 0, 0, 44_100 << 16),
    pack_full_box(b"esds", bytes.fromhex("031900010004114015000000 0001f4000001f400 05021210 060102")),
)
_PCM = pack_box(b"sowt", bytes(6) + b"\0\1" + bytes(8) + struct.pack(">HHHHI", 2, 16, 0, 0, 44_100 << 16))
_HERE = pack_box(b"url ", b"\0\0\0\1")


def build_track(
    sample: bytes, n: int, *, size: int = 1, lasts: int = 1024, edits: bytes = b"", data: bytes = _HERE
) -> bytes:
    """A track of so many samples, in one chunk at the file's beginning.

    Args:
        lasts: ticks that each of them lasts
        data: where the sound is
    """
    stbl = pack_box(
        b"stbl",
        pack_full_box(b"stsd", pack_uint32(1), sample),
        pack_full_box(b"stts", pack_uint32(1, n, lasts) if n else pack_uint32(0)),
        pack_full_box(b"stsc", pack_uint32(1, 1, n, 1) if n else pack_uint32(0)),
        pack_full_box(b"stsz", pack_uint32(size, n)),
        pack_full_box(b"stco", pack_uint32(1, len(_FTYP) + 8) if n else pack_uint32(0)),
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


def build_mp4(*tracks: bytes, content: bytes = bytes(4096), more: bytes = b"") -> bytes:
    """A file of tracks."""
    mvhd = pack_full_box(b"mvhd", pack_uint32(0, 0, 1000, 1000), bytes(80))
    return _FTYP + pack_box(b"mdat", content) + pack_box(b"moov", mvhd, *tracks, more)


def build_fragmented_mp4(n_samples: int, n_fragments: int) -> bytes:
    """Fragments that say how many samples they have, and have none."""
    trex = pack_box(b"mvex", pack_full_box(b"trex", pack_uint32(1, 1, 1024, 1, 0)))
    traf = pack_box(
        b"traf", pack_full_box(b"tfhd", pack_uint32(1)), pack_full_box(b"trun", pack_uint32(n_samples))
    )
    return (
        build_mp4(build_track(_AAC, 0), more=trex)
        + pack_box(b"moof", pack_full_box(b"mfhd", pack_uint32(1)), traf) * n_fragments
    )


def build_edited_mp4(n_edits: int, n_samples: int) -> bytes:
    """A table of samples that is to be played again and again."""
    edits = pack_box(
        b"edts", pack_full_box(b"elst", pack_uint32(n_edits), pack_uint32(10_000_000, 0, 1 << 16) * n_edits)
    )
    return build_mp4(build_track(_AAC, n_samples, edits=edits))


def build_reference_mp4(path: str) -> bytes:
    """A file whose sound is in another one, which it names as QuickTime does."""
    name = path.encode()
    alias = bytes(4) + struct.pack(">HHH", 150, 2, 0) + b"\4disk" + bytes(31) + b"\4file" + bytes(75)
    alias = alias[:146] + bytes(8) + struct.pack(">HH", 2, len(name)) + name + b"\0" * (len(name) % 2)
    where = pack_box(b"alis", bytes(4), alias, struct.pack(">HH", 18, 5), b"/disk\0", b"\xff\xff\0\0")
    return build_mp4(build_track(_PCM, 1000, size=4, lasts=1, data=where))


# Matroska


def _size(n: int) -> bytes:
    n_bytes = next(n_bytes for n_bytes in range(1, 9) if n < (1 << 7 * n_bytes) - 1)
    return (1 << 7 * n_bytes | n).to_bytes(n_bytes, "big")


def pack_element(identity: str, *content: bytes | int) -> bytes:
    """Of a Matroska file."""
    body = b"".join(
        part.to_bytes(max(1, (part.bit_length() + 7) // 8), "big") if isinstance(part, int) else part
        for part in content
    )
    return bytes.fromhex(identity) + _size(len(body)) + body


_EBML = pack_element(
    "1a45dfa3", pack_element("4282", b"matroska"), pack_element("4287", 4), pack_element("4285", 2)
)
_DEFLATED = pack_element(
    "6d80", pack_element("6240", pack_element("5033", 0), pack_element("5034", pack_element("4254", 0)))
)


def pack_block(data: bytes, number: int = 1) -> bytes:
    """A packet of a track."""
    return pack_element("a3", _size(number), b"\0\0\x80", data)


def build_mkv(*content: bytes, n_channels: int = 1, encoding: bytes = b"", n_tracks: int = 1) -> bytes:
    """A file of plain samples at 16 kHz: packets, and what else is given."""
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
    return _EBML + pack_element("18538067", info, pack_element("1654ae6b", *tracks), cluster)


def build_zip_bomb_mkv(n_bytes: int, n_blocks: int) -> bytes:
    """Packets that are a thousand times as large when they are unpacked."""
    return build_mkv(pack_block(zlib.compress(b"\3\t" * (n_bytes // 2), 9)) * n_blocks, encoding=_DEFLATED)


# What asks for more than there is


def encode_constant(name: str, seconds: int, *, rate: int = 8000, n_channels: int = 1) -> bytes:
    """Hours in a few bytes: sound that never changes, as a codec stores it."""
    form, subtype = WITH_SOUNDFILE[name]
    file, piece = io.BytesIO(), np.full((rate, n_channels), 0.1, np.float32)
    with soundfile.SoundFile(file, "w", rate, n_channels, format=form, subtype=subtype) as sound:
        for _ in range(seconds):
            sound.write(piece)
    return file.getvalue()


def remove_flac_length(flac: bytes) -> bytes:
    """As a program writes it into a pipe."""
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
    "a table of 2^26 samples": lambda: build_mp4(build_track(_AAC, 3 << 24)),
    "a fragment of 2^26 samples": lambda: build_fragmented_mp4(1 << 26, 1),
    "fragments of 2^27 samples": lambda: build_fragmented_mp4(1 << 20, 128),
    "10,000 edits of 10,000 samples": lambda: build_edited_mp4(10_000, 10_000),
    "1,000 tracks": lambda: build_mp4(*[build_track(_AAC, 100)] * 1000),
    "boxes in boxes": lambda: (
        _FTYP + b"".join(struct.pack(">I", 8 * n) + b"moov" for n in range(50_000, 0, -1))
    ),
    "3,000,000 empty boxes": lambda: _FTYP + pack_box(b"free") * 3_000_000,
    "3,000,000 empty chunks": lambda: b"RIFF\xff\xff\xff\x7fWAVE" + b"junk\0\0\0\0" * 3_000_000,
    "1,000,000 empty pages": lambda: (b"OggS" + bytes(23)) * 1_000_000,
    "10,000,000 empty elements": lambda: (
        _EBML + b"\x18\x53\x80\x67\x01" + b"\xff" * 7 + b"\xec\x80" * 10_000_000
    ),
    "segments in segments": lambda: _EBML + (b"\x18\x53\x80\x67\x01" + b"\xff" * 7) * 500_000,
    "600,000 packets of a sample": lambda: build_mkv(pack_block(b"\1\2") * 600_000),
    "1,000,000 packets of no track": lambda: build_mkv(pack_block(b"\1\2", 9) * 1_000_000),
    "1,000,000 packets of another track": lambda: build_mkv(pack_block(b"\1\2", 2) * 1_000_000, n_tracks=2),
    "packets that unpack to 5 GB": lambda: build_zip_bomb_mkv(9_800_000, 500),
    "64 channels": lambda: build_mkv(pack_block(b"\3\t" * 64_000) * 10, n_channels=64),
    "1,024 channels": lambda: build_wav(bytes(range(256)) * 40_000, n_channels=1024, bits=8, rate=8000),
    "2^31 samples a second": lambda: build_wav(b"\3\t" * 1_000_000, rate=(1 << 31) - 1),
    "20 MB of frames of nothing": lambda: bytes.fromhex("fff1508000fffc") * 3_000_000,
    "48 MB of nothing": lambda: bytes(48_000_000),
    "a tag of 256 MB": lambda: b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + bytes(1000),
}
"""Files that ask for memory, time or more of anything than a question of speech has; none of them can be heard."""


def build_references(path: str, address: str) -> Sequence[bytes]:
    """Files whose sound lies in a file of this machine, or at an address."""
    places = (
        f"file://{path}",
        f"file:{path}",
        path,
        address,
        address.replace("http", "tcp"),
        f"concat:{path}",
    )
    made = []
    for place in places:
        made += [
            build_reference_mp4(place),
            f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{place}\n#EXT-X-ENDLIST\n".encode(),
            f"ffconcat version 1.0\nfile '{place}'\n".encode(),
            f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "{place}">]><MPD>&x;<BaseURL>{place}</BaseURL></MPD>'
            .encode(),
            f"[playlist]\nFile1={place}\nNumberOfEntries=1\n".encode(),
            f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\na=control:{place}\n".encode(),
            f'<ASX version="3"><Entry><Ref href="{place}"/></Entry></ASX>'.encode(),
        ]  # fmt: skip
    return made
