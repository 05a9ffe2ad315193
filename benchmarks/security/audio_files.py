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


def whole(name: str, samples: np.ndarray, rate: int) -> bytes:
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


def damaged(draw: random.Random, data: bytes) -> bytes:
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


def wav(
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


def lying_wav(draw: random.Random, samples: bytes) -> bytes:
    """A WAV file that announces what it does not hold, or what nobody records."""
    match draw.randrange(4):
        case 0:
            return wav(samples, size=len(samples) + draw.choice((1, 1000, 1 << 30)))
        case 1:
            return wav(samples, rate=draw.choice((0, 1, 7, 1 << 24, (1 << 31) - 1, (1 << 32) - 1)))
        case 2:
            return wav(samples, n_channels=draw.choice((0, 49, 255, 1024, 65535)))
        case _:
            return wav(samples, bits=draw.choice((0, 128, 65535)))


# MP4


def box(kind: bytes, *content: bytes) -> bytes:
    """Of an MP4 file."""
    body = b"".join(content)
    return struct.pack(">I", len(body) + 8) + kind + body


def table(kind: bytes, *content: bytes) -> bytes:
    """A box with a version and flags."""
    return box(kind, bytes(4), *content)


def words(*numbers: int) -> bytes:
    """Of 32 bits."""
    return struct.pack(f">{len(numbers)}I", *numbers)


_FTYP = box(b"ftyp", b"isom\0\0\0\0isommp42")
_AAC = box(
    b"mp4a",
    bytes(6) + b"\0\1" + bytes(8) + struct.pack(">HHHHI", 2, 16, 0, 0, 44_100 << 16),
    table(b"esds", bytes.fromhex("031900010004114015000000 0001f4000001f400 05021210 060102")),
)
_PCM = box(b"sowt", bytes(6) + b"\0\1" + bytes(8) + struct.pack(">HHHHI", 2, 16, 0, 0, 44_100 << 16))
_HERE = box(b"url ", b"\0\0\0\1")


def track(
    sample: bytes, n: int, *, size: int = 1, lasts: int = 1024, edits: bytes = b"", data: bytes = _HERE
) -> bytes:
    """A track of so many samples, in one chunk at the file's beginning.

    Args:
        lasts: ticks that each of them lasts
        data: where the sound is
    """
    stbl = box(
        b"stbl",
        table(b"stsd", words(1), sample),
        table(b"stts", words(1, n, lasts) if n else words(0)),
        table(b"stsc", words(1, 1, n, 1) if n else words(0)),
        table(b"stsz", words(size, n)),
        table(b"stco", words(1, len(_FTYP) + 8) if n else words(0)),
    )
    minf = box(b"minf", table(b"smhd", bytes(4)), box(b"dinf", table(b"dref", words(1), data)), stbl)
    mdhd = table(b"mdhd", words(0, 0, 44_100, n), bytes(4))
    mdia = box(b"mdia", mdhd, table(b"hdlr", bytes(4) + b"soun" + bytes(13)), minf)
    return box(b"trak", table(b"tkhd", words(0, 0, 1, 0, n), bytes(60)), edits, mdia)


def mp4(*tracks: bytes, content: bytes = bytes(4096), more: bytes = b"") -> bytes:
    """A file of tracks."""
    mvhd = table(b"mvhd", words(0, 0, 1000, 1000), bytes(80))
    return _FTYP + box(b"mdat", content) + box(b"moov", mvhd, *tracks, more)


def fragmented(n_samples: int, n_fragments: int) -> bytes:
    """Fragments that say how many samples they have, and have none."""
    trex = box(b"mvex", table(b"trex", words(1, 1, 1024, 1, 0)))
    traf = box(b"traf", table(b"tfhd", words(1)), table(b"trun", words(n_samples)))
    return mp4(track(_AAC, 0), more=trex) + box(b"moof", table(b"mfhd", words(1)), traf) * n_fragments


def edited(n_edits: int, n_samples: int) -> bytes:
    """A table of samples that is to be played again and again."""
    edits = box(b"edts", table(b"elst", words(n_edits), words(10_000_000, 0, 1 << 16) * n_edits))
    return mp4(track(_AAC, n_samples, edits=edits))


def elsewhere(path: str) -> bytes:
    """A file whose sound is in another one, which it names as QuickTime does."""
    name = path.encode()
    alias = bytes(4) + struct.pack(">HHH", 150, 2, 0) + b"\4disk" + bytes(31) + b"\4file" + bytes(75)
    alias = alias[:146] + bytes(8) + struct.pack(">HH", 2, len(name)) + name + b"\0" * (len(name) % 2)
    where = box(b"alis", bytes(4), alias, struct.pack(">HH", 18, 5), b"/disk\0", b"\xff\xff\0\0")
    return mp4(track(_PCM, 1000, size=4, lasts=1, data=where))


# Matroska


def _size(n: int) -> bytes:
    n_bytes = next(n_bytes for n_bytes in range(1, 9) if n < (1 << 7 * n_bytes) - 1)
    return (1 << 7 * n_bytes | n).to_bytes(n_bytes, "big")


def element(identity: str, *content: bytes | int) -> bytes:
    """Of a Matroska file."""
    body = b"".join(
        part.to_bytes(max(1, (part.bit_length() + 7) // 8), "big") if isinstance(part, int) else part
        for part in content
    )
    return bytes.fromhex(identity) + _size(len(body)) + body


_EBML = element("1a45dfa3", element("4282", b"matroska"), element("4287", 4), element("4285", 2))
_DEFLATED = element("6d80", element("6240", element("5033", 0), element("5034", element("4254", 0))))


def block(data: bytes, number: int = 1) -> bytes:
    """A packet of a track."""
    return element("a3", _size(number), b"\0\0\x80", data)


def mkv(*content: bytes, n_channels: int = 1, encoding: bytes = b"", n_tracks: int = 1) -> bytes:
    """A file of plain samples at 16 kHz: packets, and what else is given."""
    audio = element(
        "e1", element("b5", struct.pack(">d", 16_000.0)), element("9f", n_channels), element("6264", 16)
    )
    tracks = [
        element(
            "ae", element("d7", number), element("73c5", number), element("83", 2), element("86", b"A_PCM/INT/LIT"),
            encoding, audio,
        )
        for number in range(1, n_tracks + 1)
    ]  # fmt: skip
    info = element("1549a966", element("2ad7b1", 1_000_000))
    cluster = element("1f43b675", element("e7", 0), *content)
    return _EBML + element("18538067", info, element("1654ae6b", *tracks), cluster)


def unpacks_to(n_bytes: int, n_blocks: int) -> bytes:
    """Packets that are a thousand times as large when they are unpacked."""
    return mkv(block(zlib.compress(b"\3\t" * (n_bytes // 2), 9)) * n_blocks, encoding=_DEFLATED)


# What asks for more than there is


def constant(name: str, seconds: int, *, rate: int = 8000, n_channels: int = 1) -> bytes:
    """Hours in a few bytes: sound that never changes, as a codec stores it."""
    form, subtype = WITH_SOUNDFILE[name]
    file, piece = io.BytesIO(), np.full((rate, n_channels), 0.1, np.float32)
    with soundfile.SoundFile(file, "w", rate, n_channels, format=form, subtype=subtype) as sound:
        for _ in range(seconds):
            sound.write(piece)
    return file.getvalue()


def without_length(flac: bytes) -> bytes:
    """As a program writes it into a pipe."""
    return flac[:21] + bytes([flac[21] & 0xF0]) + bytes(4) + flac[26:]


BOMBS: dict[str, Callable[[], bytes]] = {
    "twenty minutes of flac": lambda: constant("flac", 1200),
    "twenty minutes of flac, no length": lambda: without_length(constant("flac", 1200)),
    "eight channels of flac, no length": lambda: without_length(constant("flac", 700, n_channels=8)),
    "twelve minutes of vorbis": lambda: constant("ogg", 720),
    "twelve minutes of mp3, no length": lambda: (
        constant("mp3", 720).replace(b"Xing", b"Ping").replace(b"Info", b"Ping")
    ),
    "a table of 2^26 samples": lambda: mp4(track(_AAC, 3 << 24)),
    "a fragment of 2^26 samples": lambda: fragmented(1 << 26, 1),
    "fragments of 2^27 samples": lambda: fragmented(1 << 20, 128),
    "10,000 edits of 10,000 samples": lambda: edited(10_000, 10_000),
    "1,000 tracks": lambda: mp4(*[track(_AAC, 100)] * 1000),
    "boxes in boxes": lambda: (
        _FTYP + b"".join(struct.pack(">I", 8 * n) + b"moov" for n in range(50_000, 0, -1))
    ),
    "3,000,000 empty boxes": lambda: _FTYP + box(b"free") * 3_000_000,
    "3,000,000 empty chunks": lambda: b"RIFF\xff\xff\xff\x7fWAVE" + b"junk\0\0\0\0" * 3_000_000,
    "1,000,000 empty pages": lambda: (b"OggS" + bytes(23)) * 1_000_000,
    "10,000,000 empty elements": lambda: (
        _EBML + b"\x18\x53\x80\x67\x01" + b"\xff" * 7 + b"\xec\x80" * 10_000_000
    ),
    "segments in segments": lambda: _EBML + (b"\x18\x53\x80\x67\x01" + b"\xff" * 7) * 500_000,
    "600,000 packets of a sample": lambda: mkv(block(b"\1\2") * 600_000),
    "1,000,000 packets of no track": lambda: mkv(block(b"\1\2", 9) * 1_000_000),
    "1,000,000 packets of another track": lambda: mkv(block(b"\1\2", 2) * 1_000_000, n_tracks=2),
    "packets that unpack to 5 GB": lambda: unpacks_to(9_800_000, 500),
    "64 channels": lambda: mkv(block(b"\3\t" * 64_000) * 10, n_channels=64),
    "1,024 channels": lambda: wav(bytes(range(256)) * 40_000, n_channels=1024, bits=8, rate=8000),
    "2^31 samples a second": lambda: wav(b"\3\t" * 1_000_000, rate=(1 << 31) - 1),
    "20 MB of frames of nothing": lambda: bytes.fromhex("fff1508000fffc") * 3_000_000,
    "48 MB of nothing": lambda: bytes(48_000_000),
    "a tag of 256 MB": lambda: b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + bytes(1000),
}
"""Files that ask for memory, time or more of anything than a question of speech has; none of them can be heard."""


def references(path: str, address: str) -> Sequence[bytes]:
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
            elsewhere(place),
            f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{place}\n#EXT-X-ENDLIST\n".encode(),
            f"ffconcat version 1.0\nfile '{place}'\n".encode(),
            f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "{place}">]><MPD>&x;<BaseURL>{place}</BaseURL></MPD>'
            .encode(),
            f"[playlist]\nFile1={place}\nNumberOfEntries=1\n".encode(),
            f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\na=control:{place}\n".encode(),
            f'<ASX version="3"><Entry><Ref href="{place}"/></Entry></ASX>'.encode(),
        ]  # fmt: skip
    return made
