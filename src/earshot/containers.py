"""Audio files -> blocks of samples as they are in the file; it knows no rate, channel or length to aim at.

Decoders play what is there and stay silent about the rest, so a file cut short by an upload or a full disk
would be heard as a shorter sentence. Hence every length that a file announces is compared with what it holds.
"""

import io
import os
import signal
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import av
import av.container
import numpy as np
import soundfile

from earshot.errors import AudioError

FORMATS = "wav, flac, mp3, ogg, opus, webm or m4a"
BLOCK_SAMPLES = 1 << 17  # decoded at a time, so that memory does not grow with rate and channels
STREAMED_WAV_SIZE = 0x7FFF_0000  # bytes; programs that write WAV into a pipe announce at least this much
MP3_LENGTH_TAGS = (b"Xing", b"Info", b"VBRI")  # in the first frame of an mp3 that knows its length

# Containers that hold their sound themselves: playlists, which open other files and addresses, stay out.
_FFMPEG_CONTAINERS = "matroska,webm,mov,mp4,m4a,3gp,aac,mp3,ogg,flac,wav,aiff,au,caf,asf,amr"
_EBML_SEGMENT = b"\x18\x53\x80\x67"
_EBML_CLUSTER = b"\x1f\x43\xb6\x75"

BinaryFile = io.BufferedReader | io.BytesIO


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Sound on its way in."""

    name: str
    """What a message calls it."""
    rate: int
    """Samples per second."""
    blocks: Iterator[np.ndarray]
    """Float samples of shape (n, channels)."""
    announced_s: float | None
    """Seconds that the header announces, if it does."""


@contextmanager
def open_stream(source: object, name: str) -> Generator[Stream, None, None]:
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
        if n_missing := missing_bytes(file):
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


def missing_bytes(file: BinaryFile) -> int:
    """Gives how many bytes the file's own structure announces beyond its end: 0 for one that is whole.

    What cannot be told (another container, a length that was never written, a recording with no end mark)
    counts as whole: the decoder has the last word. The file is left at its start.
    """
    n_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(12)
    end = n_bytes
    if start[:4] == b"RIFF" and start[8:] == b"WAVE":
        end = _riff_end(file, n_bytes)
    elif start[:4] == b"OggS":
        end = _ogg_end(file, n_bytes)
    elif start[:4] == b"\x1a\x45\xdf\xa3":
        end = _ebml_end(file, n_bytes)
    elif start[4:8] == b"ftyp":
        end = _iso_end(file, n_bytes)
    file.seek(0)
    return max(0, end - n_bytes)


def _riff_end(file: BinaryFile, n_bytes: int) -> int:
    """Where the samples of a WAV file end; what follows them does not matter."""
    position = 12
    while position < n_bytes:
        file.seek(position)
        header = file.read(8)
        size = int.from_bytes(header[4:], "little")
        if header[:4] == b"data":
            return n_bytes if size >= STREAMED_WAV_SIZE else position + 8 + size
        position += 8 + size + size % 2
    return position


def _ogg_end(file: BinaryFile, n_bytes: int) -> int:
    """Where the last page of an Ogg file ends (vorbis, opus)."""
    position = 0
    while position < n_bytes:
        file.seek(position)
        header = file.read(27)
        if not header.startswith(b"OggS"[: len(header)]):
            return n_bytes
        n_segments = header[26] if len(header) == 27 else 0
        position += 27 + n_segments + sum(file.read(n_segments))
    return position


def _iso_end(file: BinaryFile, n_bytes: int) -> int:
    """Where the last top-level box of an MP4 file ends (m4a)."""
    position = 0
    while position < n_bytes:
        file.seek(position)
        header = file.read(16)
        size = int.from_bytes(header[:4], "big")
        if size == 1:
            size = int.from_bytes(header[8:], "big")
        if size == 0:  # to the end of the file
            return n_bytes
        position += max(size, 8)
    return position


def _ebml_end(file: BinaryFile, n_bytes: int) -> int:
    """Where the last element of a Matroska file ends (webm).

    Browsers record without knowing the length: a segment or cluster of unknown size is entered, not skipped.
    """
    position = 0
    while position < n_bytes:
        file.seek(position)
        head = file.read(12)
        n_id = 9 - head[0].bit_length()
        n_size = 9 - head[n_id].bit_length() if n_id < len(head) else 1
        if n_id > 4 or n_size > 8:
            return n_bytes
        position += n_id + n_size
        unknown = (1 << (7 * n_size)) - 1
        size = int.from_bytes(head[n_id : n_id + n_size], "big") & unknown
        if size != unknown:
            position += size
        elif head[:n_id] not in (_EBML_SEGMENT, _EBML_CLUSTER):
            return n_bytes
    return position


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


def _decode(file: BinaryFile, name: str, stack: ExitStack) -> Stream:
    has_length = _announces_length(file)
    try:
        sound = stack.enter_context(soundfile.SoundFile(file))
    except (soundfile.SoundFileError, TypeError):  # TypeError: a headerless .raw
        return _decode_with_ffmpeg(file, name, stack)
    if sound.format in ("FLAC", "MP3") and not has_length:
        sound.close()
        return _decode_with_ffmpeg(file, name, stack)

    def blocks() -> Iterator[np.ndarray]:
        while len(block := sound.read(BLOCK_SAMPLES, dtype="float32", always_2d=True)):
            yield block

    announced_s = sound.frames / sound.samplerate
    return Stream(name=name, rate=sound.samplerate, blocks=_guarded(blocks(), name), announced_s=announced_s)


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


def _decode_with_ffmpeg(file: BinaryFile, name: str, stack: ExitStack) -> Stream:
    file.seek(0)
    try:
        container = stack.enter_context(
            av.container.open(
                file, mode="r", options={"format_whitelist": _FFMPEG_CONTAINERS}, metadata_errors="ignore"
            )
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
    if track.codec_context is None or not track.rate or not track.layout.nb_channels:
        raise AudioError(f"{name} has sound in no known encoding; expected {FORMATS}: convert it")

    def blocks() -> Iterator[np.ndarray]:
        to_float = av.AudioResampler(format="fltp", layout=track.layout, rate=track.rate)
        for frame in container.decode(track):
            for piece in to_float.resample(frame):
                yield piece.to_ndarray().T

    return Stream(name=name, rate=track.rate, blocks=_guarded(blocks(), name), announced_s=None)


def _guarded(blocks: Iterable[np.ndarray], name: str) -> Iterator[np.ndarray]:
    """Passes blocks on; a decoder that gives up on the way becomes an AudioError."""
    try:
        yield from blocks
    except (soundfile.SoundFileError, av.FFmpegError, ValueError) as error:
        raise AudioError(
            f"{name} is damaged or cut short: its decoder stopped with '{error}'; copy or export it again"
        ) from error
