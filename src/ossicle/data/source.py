"""The interface of every source: numbered rows, each either an utterance or a DataError that says what is wrong."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32, Int

from ossicle.audio.excerpt import AudioExcerpt
from ossicle.data.stretches import Stretch, read_audio_stretch
from ossicle.data.transcript import normalize_transcript
from ossicle.errors import DataError

CHARACTERS_PER_SECOND = 15.0
"""Pace of speech that is read aloud: estimates the duration where nothing better is known."""
_MAX_SHOWN = 200
"""Characters of a value in a message: what was meant as a path may be as long as an audio file."""


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One spoken sentence and its transcript."""

    name: str
    """File and row, for messages."""
    audio: bytes | Path | np.ndarray | AudioExcerpt
    """An encoded audio file, the path of one, a stretch of one, or samples: mono float32 at 16 kHz."""
    text: str
    """The normalized transcript."""


class Source(ABC):
    """The rows of one source, in its own order; any process may read any row at any time."""

    texts: pa.ChunkedArray
    """Normalized transcripts; null where a row has none or where it is not known before the row is read."""
    durations_s: Float32[np.ndarray, " n"]
    """Seconds, measured or estimated."""
    content_id: str
    """Distinguishes this source from another with the same texts and durations; does not depend on its folder."""
    is_sequential = False
    """Whether rows are cheap to read in ascending order only."""
    label = ""
    """The layout that was recognized, for the summary of a source."""

    def __len__(self) -> int:
        return len(self.texts)

    @abstractmethod
    def row_name(self, row: int) -> str:
        """Returns file and row number, for messages."""

    def audio_version(self, row: int) -> str:
        """Returns a string that changes when the audio file of a row is replaced under the same name."""
        return ""

    @abstractmethod
    def __getitem__(self, row: int) -> Utterance:
        """Reads one row.

        Raises:
            DataError: the row is invalid; the message begins with the row's name
        """


def find_audio_version(source: Source, row: int) -> str:
    """Returns size and modification time of a row's audio file, and its stretch; nothing where there is no file."""
    try:
        audio, stretch = source[row].audio, ""
        if isinstance(audio, AudioExcerpt):
            audio, stretch = audio.source, f" {audio.start_s} {audio.end_s}"
        if not isinstance(audio, Path):
            return ""
        status = audio.stat()
    except (DataError, OSError):
        return ""
    return f"{status.st_size} {status.st_mtime_ns}{stretch}"


def build_utterance(
    name: str, folder: Path, audio: Any, text: Any, stretch: Stretch | None = None
) -> Utterance:
    """Validates the values of a row and returns them as an utterance.

    Args:
        folder: where relative paths of audio files begin
        audio: encoded bytes, the path of a file, or a dict of both as Hugging Face has them
        stretch: the part of the audio that the transcript belongs to; None for all of it

    Raises:
        DataError: the transcript or the audio is missing or of another type
    """
    stretch = stretch or read_audio_stretch(name, audio)
    audio = audio.get("bytes") or audio.get("path") if isinstance(audio, dict) else audio
    if not isinstance(text, str) or not (transcript := normalize_transcript(text)):
        raise DataError(f"{name}: the transcript is {_format_value(text)}, expected a text that is not empty")
    if not is_valid_unicode(transcript):
        raise DataError(
            f"{name}: the transcript {_format_value(text)} has half of a surrogate pair; write the text as UTF-8"
        )
    if not isinstance(audio, bytes | str) or not audio:
        raise DataError(
            f"{name}: the audio is {_format_value(audio)}, expected the path or the bytes of an audio file"
        )
    if isinstance(audio, bytes):
        return Utterance(name=name, audio=cut_stretch(audio, stretch), text=transcript)
    path = folder / audio
    try:
        if "\\" in audio and not path.is_file():  # as Windows writes paths
            path = folder / audio.replace("\\", "/")
        is_file = path.is_file()
    except (OSError, ValueError):  # a string that cannot be a path
        is_file = False
    if not is_file:
        raise DataError(f"{name}: the audio file {_format_value(str(path))} does not exist")
    return Utterance(name=name, audio=cut_stretch(path, stretch), text=transcript)


def cut_stretch(audio: bytes | Path, stretch: Stretch | None) -> bytes | Path | AudioExcerpt:
    """Returns the stretch of a recording; without one, the whole."""
    if stretch is None:
        return audio
    return AudioExcerpt(source=audio, start_s=stretch.start_s, end_s=stretch.end_s)


def is_valid_unicode(text: str) -> bool:
    """Whether a text can be encoded as UTF-8: half of a surrogate pair, which JSON may contain, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def estimate_durations(
    texts: pa.ChunkedArray, durations_s: Float32[np.ndarray, " n"] | None = None
) -> Float32[np.ndarray, " n"]:
    """Returns the given seconds where they are positive and finite, else an estimate by transcript length."""
    n_characters = pc.fill_null(pc.call_function("utf8_length", [texts]), 0).to_numpy()
    estimate = (n_characters / CHARACTERS_PER_SECOND).astype(np.float32)
    if durations_s is None:
        return estimate
    with np.errstate(invalid="ignore"):
        return np.where((durations_s > 0) & np.isfinite(durations_s), durations_s, estimate)


def find_part(starts: Int[np.ndarray, " parts"], row: int) -> int:
    """Returns the index of the file, shard or row group that holds a row.

    Args:
        starts: number of the first row of each part, in ascending order
    """
    return int(np.searchsorted(starts, row, side="right")) - 1


def _format_value(value: object) -> str:
    formatted = repr(value)
    return formatted if len(formatted) <= _MAX_SHOWN else formatted[:_MAX_SHOWN] + "..."
