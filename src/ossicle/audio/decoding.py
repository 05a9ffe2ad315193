"""Audio files -> blocks of samples as they are in the file; it knows no rate, channel or length to aim at.

Decoders play what is there and stay silent about the rest, so a file cut short by an upload or a full disk
would be heard as a shorter sentence. Hence every length that a file announces is compared with what it holds.

They also believe what they are told: a file of two kilobytes can ask for gigabytes, for a decoder of any picture, or
for another file. Hence what they may take, run and open is bounded.
"""

import ctypes
import io
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from types import FrameType

import av
import av.container
import numpy as np
import soundfile

from ossicle.errors import AudioError

FORMATS = "wav, flac, mp3, ogg, opus, webm or m4a"
BLOCK_SAMPLES = 1 << 17  # of all channels, decoded at a time: memory does not grow with their number
MIN_RATE_HZ = 1_000  # a telephone has 8,000
MAX_SAMPLES_PER_S = 768_000  # of all channels: four at 192 kHz, sixteen at 48 kHz
STREAMED_WAV_SIZE = 0x7FFF_0000  # bytes; programs that write WAV into a pipe announce at least this much
MP3_LENGTH_TAGS = (b"Xing", b"Info", b"VBRI")  # in the first frame of an mp3 that knows its length

# Containers that hold their sound themselves: playlists, which open other files and addresses, stay out.
_FFMPEG_CONTAINERS = "matroska,webm,mov,mp4,m4a,3gp,aac,mp3,ogg,flac,wav,aiff,au,caf,asf,amr"
# What speech comes in. Of the pictures beside it not even the size is looked at.
_FFMPEG_DECODERS = (
    "aac,alac,mp3,mp3float,mp2,mp2float,opus,vorbis,flac,speex,gsm,gsm_ms,amrnb,amrwb,wmav1,wmav2,wmapro,ac3,eac3,"
    "adpcm_ms,adpcm_ima_wav,adpcm_ima_qt,pcm_alaw,pcm_mulaw,pcm_u8,pcm_s8,pcm_s16le,pcm_s16be,pcm_s24le,pcm_s24be,"
    "pcm_s32le,pcm_s32be,pcm_f32le,pcm_f32be,pcm_f64le,pcm_f64be"
)
_FFMPEG_OPTIONS = {
    "format_whitelist": _FFMPEG_CONTAINERS,
    "codec_whitelist": _FFMPEG_DECODERS,
    "protocol_whitelist": "none",  # the file is read by Python, and nothing else is opened
    "max_streams": "16",  # each with a decoder of its own
    "probesize": "500000",  # bytes
}
_FFMPEG_BYTES = 32 << 20
"""Most that FFmpeg may take at once; an hour's table of packets is a tenth of it."""
_FFMPEG_FRAMES = 1 << 13
"""Samples of a channel that are handed on together, however small the packets are that they come in."""
_MAX_PIECES = 1 << 19
"""Chunks, pages, boxes or elements of a file: an hour in pieces of 10 ms has fewer."""
_LEAST_PACKET_S, _JUDGED_FROM = 0.002, 1000
"""Opus' shortest packets have 2.5 ms; judged by the mean, from so many on."""
_EBML_SEGMENT = b"\x18\x53\x80\x67"
_EBML_CLUSTER = b"\x1f\x43\xb6\x75"

BinaryFile = io.BufferedReader | io.BytesIO


@dataclass(frozen=True, kw_only=True)
class AudioStream:
    """Sound on its way in."""

    name: str
    """What a message calls it."""
    sample_rate: int
    """Samples per second."""
    blocks: Iterator[np.ndarray]
    """Float samples of shape (n, channels)."""
    declared_duration_s: float | None
    """Seconds that the header announces, if it does."""


@contextmanager
def open_audio(source: object, name: str) -> Generator[AudioStream, None, None]:
    """Gives the sound of a path, a file's bytes or a file open for binary reading, to be read inside `with`.

    libsndfile decodes what it knows, FFmpeg's libraries the rest (webm, m4a).

    Raises:
        AudioError: nothing there, empty, cut short or not audio; and, while blocks are read, damaged.
    """
    with ExitStack() as stack:
        stack.enter_context(_interrupts_wait())
        file = stack.enter_context(_open(source))
        if not file.read(1):
            raise AudioError(f"{name} is empty (0 bytes); expected {FORMATS}: record or export it again")
        if n_missing := count_missing_bytes(file, name):
            raise AudioError(
                f"{name} is cut short: at least {n_missing} bytes that it announces are missing; copy or"
                " export it again"
            )
        yield _decode(file, name, stack)


@contextmanager
def _interrupts_wait() -> Generator[None, None, None]:
    """Ctrl-C counts when the sound is read: raised where a decoder calls Python it is lost, and the sound seems cut."""
    held = signal.getsignal(signal.SIGINT)
    if not callable(held) or threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, held)
        if came:
            held(*came[0])


def count_missing_bytes(file: BinaryFile, name: str) -> int:
    """Gives how many bytes the file's own structure announces beyond its end: 0 for one that is whole.

    What cannot be told (another container, a length that was never written, a recording with no end mark) counts as
    whole: the decoder has the last word. The file is left at its start.

    Raises:
        AudioError: more pieces than anyone records, which would take minutes to look at
    """
    n_bytes = file.seek(0, os.SEEK_END)
    position, end_of_piece = _structure(_read_at(file, 0, 12))
    n_pieces = 0
    while position < n_bytes:
        position = end_of_piece(file, position, n_bytes)
        n_pieces += 1
        if n_pieces > _MAX_PIECES:
            raise AudioError(
                f"{name} is made of more than {_MAX_PIECES} pieces; expected a recording: convert it"
            )
    file.seek(0)
    return position - n_bytes


_EndOfPiece = Callable[[BinaryFile, int, int], int]
"""Where the piece of a file that starts at a position ends, by its own account; all it has left where that is open."""


def _structure(start: bytes) -> tuple[int, _EndOfPiece]:
    """Where the pieces of a file begin and how long they are, by its first bytes."""
    if start[:4] == b"RIFF" and start[8:] == b"WAVE":
        return 12, _riff_end
    if start[:4] == b"OggS":
        return 0, _ogg_end
    if start[:4] == b"\x1a\x45\xdf\xa3":
        return 0, _ebml_end
    if start[4:8] == b"ftyp":
        return 0, _iso_end
    return 0, lambda file, position, n_bytes: n_bytes


def _read_at(file: BinaryFile, position: int, n: int) -> bytes:
    file.seek(position)
    return file.read(n)


def _riff_end(file: BinaryFile, position: int, n_bytes: int) -> int:
    """Of a chunk of a WAV file; what follows the samples does not matter."""
    header = _read_at(file, position, 8)
    size = int.from_bytes(header[4:], "little")
    if header[:4] == b"data":
        return n_bytes if size >= STREAMED_WAV_SIZE else max(n_bytes, position + 8 + size)
    return position + 8 + size + size % 2


def _ogg_end(file: BinaryFile, position: int, n_bytes: int) -> int:
    """Of a page of an Ogg file (vorbis, opus)."""
    header = _read_at(file, position, 27)
    if not header.startswith(b"OggS"[: len(header)]):
        return n_bytes
    n_segments = header[26] if len(header) == 27 else 0
    return position + 27 + n_segments + sum(file.read(n_segments))


def _iso_end(file: BinaryFile, position: int, n_bytes: int) -> int:
    """Of a top-level box of an MP4 file (m4a)."""
    header = _read_at(file, position, 16)
    size = int.from_bytes(header[:4], "big")
    if size == 1:
        size = int.from_bytes(header[8:], "big")
    return position + max(size, 8) if size else n_bytes  # 0: to the end of the file


def _ebml_end(file: BinaryFile, position: int, n_bytes: int) -> int:
    """Of an element of a Matroska file (webm).

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


@contextmanager
def _open(source: object) -> Generator[BinaryFile, None, None]:
    if isinstance(source, (str, Path)):
        with _open_path(source) as file:
            yield file
        return
    content = source.read() if isinstance(source, io.IOBase) else source
    if not isinstance(content, (bytes, bytearray, memoryview)):
        raise AudioError(
            f"got a {type(source).__name__}; expected a path, the bytes of an audio file, a file open for"
            " binary reading, an array, or (array, sample rate)"
        )
    yield io.BytesIO(content)


def _open_path(path: str | Path) -> BinaryFile:
    if isinstance(path, str) and path.lower().startswith(("http://", "https://")):
        raise AudioError(f"'{path}' is an address; expected a local file: download it first")
    try:
        if Path(path).is_file():
            return Path(path).open("rb")
        if Path(path).is_dir():
            problem = "is a directory"
        else:
            problem = "is not a regular file" if Path(path).exists() else "does not exist"
    except (OSError, ValueError) as error:
        problem = f"cannot be opened ({error})"
    raise AudioError(f"'{path}' {problem}; expected an audio file that can be read: {FORMATS}")


def _decode(file: BinaryFile, name: str, stack: ExitStack) -> AudioStream:
    has_length = _announces_length(file)
    try:
        sound = stack.enter_context(soundfile.SoundFile(file))
    except (soundfile.SoundFileError, TypeError):  # TypeError: a headerless .raw
        return _decode_with_ffmpeg(file, name, stack, None)
    if sound.format not in ("FLAC", "MP3"):
        has_length = True
    announced_s = sound.frames / sound.samplerate if has_length else None
    if (
        sound.format == "MP3" or announced_s is None
    ):  # libsndfile's mp3 decoder complains on stderr, frame by frame
        sound.close()
        return _decode_with_ffmpeg(file, name, stack, announced_s)
    _check_pace(name, sound.samplerate, sound.channels)

    def blocks() -> Iterator[np.ndarray]:
        n = max(1, BLOCK_SAMPLES // sound.channels)
        while len(block := sound.read(n, dtype="float32", always_2d=True)):
            yield block

    return AudioStream(
        name=name,
        sample_rate=sound.samplerate,
        blocks=_guarded(blocks(), name),
        declared_duration_s=announced_s,
    )


def _announces_length(file: BinaryFile) -> bool:
    """Whether a flac or mp3 says how long it is: libsndfile fails or guesses (and cuts) where it does not."""
    start = file.read(10)
    sizes = start[6:] if start[:3] == b"ID3" else b""
    file.seek(10 + sum(byte << 7 * place for place, byte in enumerate(reversed(sizes))) if sizes else 0)
    head = file.read(4096)
    file.seek(0)
    if head[:4] == b"fLaC":
        return int.from_bytes(head[18:26], "big") % (1 << 36) > 0  # the number of samples has 36 bits
    return any(tag in head for tag in MP3_LENGTH_TAGS)


def _decode_with_ffmpeg(
    file: BinaryFile, name: str, stack: ExitStack, announced_s: float | None
) -> AudioStream:
    file.seek(0)
    _bound_ffmpeg()
    try:
        container = stack.enter_context(
            av.container.open(file, mode="r", options=_FFMPEG_OPTIONS, metadata_errors="ignore")
        )
    except (av.FFmpegError, ValueError) as error:
        file.seek(0)
        raise AudioError(
            f"{name} is not audio that can be read (it begins with {file.read(12)!r}); expected {FORMATS}:"
            " check the file or convert it"
        ) from error
    if not container.streams.audio:
        raise AudioError(f"{name} has no sound in it; expected an audio track: export it again with one")
    track = container.streams.audio[0]
    decoder = track.codec_context  # None where there is none
    is_known = decoder is not None and decoder.name in _FFMPEG_DECODERS.split(",")
    if not (is_known and track.rate and track.layout.nb_channels):
        raise AudioError(f"{name} has sound in no known encoding; expected {FORMATS}: convert it")
    n_channels = track.layout.nb_channels
    _check_pace(name, track.rate, n_channels)

    def blocks() -> Iterator[np.ndarray]:
        # Not planar: of eight channels and more PyAV (18.1) reads planes that are not there, and the process is gone.
        to_float = av.AudioResampler("flt", track.layout, track.rate, frame_size=_FFMPEG_FRAMES)
        for frame in chain(_no_crumbs(container.decode(track), name), (None,)):
            for piece in to_float.resample(frame):
                yield piece.to_ndarray().reshape(-1, n_channels)

    return AudioStream(
        name=name, sample_rate=track.rate, blocks=_guarded(blocks(), name), declared_duration_s=announced_s
    )


def _check_pace(name: str, rate: int, n_channels: int) -> None:
    """Refuses sound that nobody records: too slow to hold speech, or so much in a second that an hour takes hours."""
    if rate < MIN_RATE_HZ or rate * n_channels > MAX_SAMPLES_PER_S:
        raise AudioError(
            f"{name} has {n_channels} channel(s) at {rate} Hz; expected at least {MIN_RATE_HZ} Hz, and at most"
            f" {MAX_SAMPLES_PER_S} samples a second of all channels together: resample it or mix it down"
        )


def _no_crumbs(frames: Iterable[av.AudioFrame], name: str) -> Iterator[av.AudioFrame]:
    """Passes frames on as long as there is sound in them: each costs the same, be it a sample or a second."""
    n_samples = 0
    for number, frame in enumerate(frames):
        n_samples += frame.samples
        if number >= _JUDGED_FROM and n_samples < number * _LEAST_PACKET_S * frame.sample_rate:
            raise AudioError(
                f"{name} comes in packets of less than {1000 * _LEAST_PACKET_S:g} ms; expected some more sound in each:"
                " convert it"
            )
        yield frame


@cache
def _bound_ffmpeg() -> None:
    """Lets FFmpeg take no more than so much at once, whatever a file announces; PyAV has no name for it."""
    with suppress(
        AttributeError, OSError
    ):  # where FFmpeg's own functions are not to be had through PyAV's library
        ctypes.CDLL(av._core.__file__).av_max_alloc(ctypes.c_size_t(_FFMPEG_BYTES))


def _guarded(blocks: Iterable[np.ndarray], name: str) -> Iterator[np.ndarray]:
    """Passes blocks on; a decoder that gives up on the way becomes an AudioError."""
    try:
        yield from blocks
    except (soundfile.SoundFileError, av.FFmpegError, ValueError) as error:
        raise AudioError(
            f"{name} is damaged or cut short: its decoder stopped with '{error}'; copy or export it again"
        ) from error
