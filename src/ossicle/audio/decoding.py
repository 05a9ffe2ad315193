"""Audio files -> blocks of samples as stored; sample rate, channels and length are those of the file.

Every length that a file declares is compared with its content, so that a file cut short is not heard as a shorter
sentence, and files that were joined are all heard (see `containers`).

Decoders trust the file: two kilobytes can ask for gigabytes of memory, for a decoder of any image format, or for
another file. Hence the memory, decoders and files that they may use are limited.
"""

import ctypes
import io
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import BinaryIO, cast

import av
import av.container
import numpy as np
import soundfile
import soxr

from ossicle.audio.containers import find_parts
from ossicle.audio.mpeg_frames import LENGTH_TAGS, skip_tags
from ossicle.audio.parts import AudioPart, BinaryFile, PartFile
from ossicle.errors import AudioError

FORMATS = "wav, flac, mp3, ogg, opus, webm or m4a"
_MAX_SHOWN = 300
"""Characters of a path in a message: what was given as one may be a whole sound."""
BLOCK_SAMPLES = 1 << 17  # of all channels, decoded at a time: memory does not grow with their number
MIN_RATE_HZ = 1_000  # a telephone has 8,000
MAX_SAMPLES_PER_S = 768_000  # of all channels: four at 192 kHz, sixteen at 48 kHz
CODEC_PADDING_S = 0.1  # a complete mp3 or ogg may be this much shorter than its header declares

# Containers whose lengths `containers` knows, or libsndfile itself checks.
_SOUNDFILE_FORMATS = (
    "WAV",
    "WAVEX",
    "RF64",
    "W64",
    "AIFF",
    "AU",
    "CAF",
    "FLAC",
    "OGG",
    "MP3",
    "NIST",
    "SVX",
    "VOC",
    "HTK",
)
# Containers that hold their audio themselves: playlists, which open other files and addresses, are excluded.
_FFMPEG_CONTAINERS = "matroska,webm,mov,mp4,m4a,3gp,aac,mp3,ogg,flac,wav,aiff,au,caf,asf,amr"
# Codecs of speech. Images in the same file are not decoded, not even their size.
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
"""The largest single allocation of FFmpeg; an hour's packet table is a tenth of it."""
_FFMPEG_FRAMES = 1 << 13
"""Samples of a channel in a block, however small the packets are."""
_HEAD_BYTES = 4096
_MATROSKA_DURATIONS = (b"\x44\x89\x84", b"\x44\x89\x88")
"""Id and size of the element, a float of four or eight bytes."""
_MIN_PACKET_S, _N_UNCHECKED_PACKETS = 0.002, 1000
"""The shortest mean duration of packets, checked after the first thousand; the shortest of Opus have 2.5 ms."""


@dataclass(frozen=True, kw_only=True)
class AudioStream:
    """Audio that is being decoded."""

    name: str
    """Its name in error messages."""
    sample_rate: int
    """Samples per second."""
    blocks: Iterator[np.ndarray]
    """Float samples of shape (n, channels)."""
    declared_duration_s: float | None
    """The duration in the header, if there is one."""
    skip: Callable[[int], int] = lambda n: 0
    """Skips up to so many samples of each channel without decoding them, and returns how many it has skipped."""


@contextmanager
def open_audio(source: object, name: str) -> Generator[AudioStream, None, None]:
    """Opens a path, a file's bytes or a file open for binary reading as a stream, to be read inside `with`.

    libsndfile decodes the formats that it knows, FFmpeg's libraries the others (webm, m4a).

    Raises:
        AudioError: no such file, empty, cut short or not audio; while blocks are read, also damaged
    """
    with ExitStack() as stack:
        stack.enter_context(_delay_interrupt())
        file = stack.enter_context(_open(source))
        if not file.read(1):
            raise AudioError(f"{name} is empty (0 bytes); expected {FORMATS}: record or export it again")
        parts = find_parts(file, name)
        first = _decode(PartFile(file, parts[0]), name, stack)
        if len(parts) == 1:
            yield first
        else:
            blocks = chain(first.blocks, _decode_others(file, parts[1:], first))
            yield AudioStream(
                name=name, sample_rate=first.sample_rate, blocks=blocks, declared_duration_s=None
            )


@contextmanager
def _delay_interrupt() -> Generator[None, None, None]:
    """Delays Ctrl-C to the end of the block: raised where a decoder calls Python, it is lost and audio seems cut."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: received.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if received:
            handler(*received[0])


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
    raise AudioError(
        f"'{str(path)[:_MAX_SHOWN]}' {problem[:_MAX_SHOWN]}; expected a readable audio file: {FORMATS}"
    )


def _decode_others(file: BinaryFile, parts: Sequence[AudioPart], first: AudioStream) -> Iterator[np.ndarray]:
    """Yields the mono samples of the parts after the first one, at its sample rate."""
    for part in parts:
        with ExitStack() as stack:
            stream = _decode(PartFile(file, part), first.name, stack)
            resampler = soxr.ResampleStream(stream.sample_rate, first.sample_rate, 1, dtype="float32")
            is_resampled = stream.sample_rate != first.sample_rate
            for block in stream.blocks:
                mono = block.mean(axis=1, dtype=np.float32)
                yield (resampler.resample_chunk(mono) if is_resampled else mono)[:, None]
            if is_resampled:
                yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)[:, None]


def _decode(file: PartFile, name: str, stack: ExitStack) -> AudioStream:
    """Opens the decoder of one part."""
    has_length = _declares_length(file)
    try:
        sound = stack.enter_context(soundfile.SoundFile(cast(BinaryIO, file)))
        if sound.format not in _SOUNDFILE_FORMATS:
            raise TypeError
    except (soundfile.SoundFileError, TypeError):  # TypeError: a headerless .raw
        return _decode_with_ffmpeg(file, name, stack, None)
    if sound.format not in ("FLAC", "MP3"):
        has_length = True
    declared_s = sound.frames / sound.samplerate if has_length else None
    # libsndfile's mp3 decoder writes to stderr for each frame.
    if sound.format == "MP3" or declared_s is None:
        sound.close()
        return _decode_with_ffmpeg(file, name, stack, declared_s)
    check_sample_rate(name, sound.samplerate, sound.channels)

    def blocks() -> Iterator[np.ndarray]:
        n = max(1, BLOCK_SAMPLES // sound.channels)
        while len(block := sound.read(n, dtype="float32", always_2d=True)):
            yield block

    padding_s = CODEC_PADDING_S if sound.format == "OGG" else 0.0
    seek = sound.seek if sound.format != "OGG" and sound.seekable() else None  # in Ogg it is not exact
    return _build_stream(name, sound.samplerate, blocks(), declared_s, padding_s, seek)


def _declares_length(file: PartFile) -> bool:
    """Whether a flac or mp3 declares its length: without it libsndfile fails or guesses (and cuts)."""
    head = file.read(_HEAD_BYTES)
    if head.startswith((b"ID3", b"\0")) and head[4:8] != b"ftyp":  # an MP4 begins with zeros, too
        file.seek(0)
        content = file.read()
        start = skip_tags(content, 0)
        head = content[start : start + _HEAD_BYTES]
    file.seek(0)
    if head[:4] == b"fLaC":
        return int.from_bytes(head[18:26], "big") % (1 << 36) > 0  # the number of samples has 36 bits
    return any(tag in head for tag in LENGTH_TAGS)


def _decode_with_ffmpeg(file: PartFile, name: str, stack: ExitStack, declared_s: float | None) -> AudioStream:
    file.seek(0)
    _limit_ffmpeg_memory()
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
        raise AudioError(f"{name} has no audio track; expected one: export it again with sound")
    track = container.streams.audio[0]
    decoder = track.codec_context  # None where there is none
    is_known = decoder is not None and decoder.name in _FFMPEG_DECODERS.split(",")
    if not (is_known and track.rate and track.layout.nb_channels):
        raise AudioError(f"{name} has an audio track in an unknown encoding; expected {FORMATS}: convert it")
    n_channels = track.layout.nb_channels
    check_sample_rate(name, track.rate, n_channels)
    if len(container.streams) == 1 and container.duration and _declares_matroska_duration(file):
        declared_s = container.duration / av.time_base

    def blocks() -> Iterator[np.ndarray]:
        # Not planar: with eight channels or more PyAV (18.1) reads planes that do not exist and crashes the process.
        to_float = av.AudioResampler("flt", track.layout, track.rate, frame_size=_FFMPEG_FRAMES)
        for frame in chain(_check_packets(container.decode(track), name), (None,)):
            for piece in to_float.resample(frame):
                yield piece.to_ndarray().reshape(-1, n_channels)

    return _build_stream(name, track.rate, blocks(), declared_s, CODEC_PADDING_S)


def _declares_matroska_duration(file: PartFile) -> bool:
    """Whether a Matroska file (webm) has the element of its duration: FFmpeg guesses one where it does not."""
    position = file.tell()
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    file.seek(position)
    return head.startswith(b"\x1a\x45\xdf\xa3") and any(mark in head for mark in _MATROSKA_DURATIONS)


def _build_stream(
    name: str,
    rate: int,
    blocks: Iterator[np.ndarray],
    declared_s: float | None,
    padding_s: float,
    seek: Callable[[int], int] | None = None,
) -> AudioStream:
    """Returns a stream whose blocks raise AudioError where the decoder stops or the end comes too early.

    Args:
        padding_s: a complete file may be this much shorter than it declares
    """
    n_read = 0

    def skip(n: int) -> int:
        nonlocal n_read
        with _explain_errors(name):
            n_read = seek(n) if seek else 0
        return n_read

    def checked_blocks() -> Iterator[np.ndarray]:
        nonlocal n_read
        for block in _convert_errors(blocks, name):
            n_read += len(block)
            yield block
        if declared_s is not None and 0 < n_read / rate < declared_s - padding_s:
            raise AudioError(
                f"{name} is cut short: its header declares {declared_s:.2f} s of audio and it has"
                f" {n_read / rate:.2f} s; copy or export it again"
            )

    return AudioStream(
        name=name, sample_rate=rate, blocks=checked_blocks(), declared_duration_s=declared_s, skip=skip
    )


def check_sample_rate(name: str, rate: int, n_channels: int) -> None:
    """Refuses sample rates that no recording has: too low for speech, or so high that an hour takes hours to decode."""
    if rate < MIN_RATE_HZ or rate * n_channels > MAX_SAMPLES_PER_S:
        raise AudioError(
            f"{name} has {n_channels} channel(s) at {rate} Hz; expected at least {MIN_RATE_HZ} Hz, and at most"
            f" {MAX_SAMPLES_PER_S} samples a second of all channels together: resample it or mix it down"
        )


def _check_packets(frames: Iterable[av.AudioFrame], name: str) -> Iterator[av.AudioFrame]:
    """Yields frames as long as they are not tiny: each costs the same, be it a sample or a second."""
    n_samples = 0
    for number, frame in enumerate(frames):
        n_samples += frame.samples
        if number >= _N_UNCHECKED_PACKETS and n_samples < number * _MIN_PACKET_S * frame.sample_rate:
            raise AudioError(
                f"{name} comes in packets of less than {1000 * _MIN_PACKET_S:g} ms; expected longer ones:"
                " convert it"
            )
        yield frame


@cache
def _limit_ffmpeg_memory() -> None:
    """Limits each allocation of FFmpeg, whatever a file declares; PyAV itself has no function for it."""
    # Not every build of PyAV exposes FFmpeg's own functions.
    with suppress(AttributeError, OSError):
        ctypes.CDLL(av._core.__file__).av_max_alloc(ctypes.c_size_t(_FFMPEG_BYTES))


def _convert_errors(blocks: Iterable[np.ndarray], name: str) -> Iterator[np.ndarray]:
    """Yields blocks, and turns the errors of a decoder into an `AudioError`."""
    with _explain_errors(name):
        yield from blocks


@contextmanager
def _explain_errors(name: str) -> Generator[None, None, None]:
    try:
        yield
    except (soundfile.SoundFileError, av.FFmpegError, ValueError) as error:
        raise AudioError(
            f"{name} is damaged or cut short: its decoder stopped with '{error}'; copy or export it again"
        ) from error
