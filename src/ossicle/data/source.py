"""What every source gives: rows with names, each an utterance or the reason why it is none."""

import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32

from ossicle.data.transcript import normalise
from ossicle.errors import DataError

CHARACTERS_PER_SECOND = 15.0
"""Of speech read at a usual pace: an estimate of its length where nothing better is known."""
_MAX_SHOWN = 200
"""Characters of a value that a message shows: what is no path may be as long as a sound."""

_MOST_OPEN = 64
"""Files that are kept open: few enough for any system's limit, in any number of workers."""


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One spoken sentence and its transcript."""

    name: str
    """File and row, for messages."""
    audio: bytes | Path | np.ndarray
    """The encoded sound, a file that holds it, or samples: mono float32 at 16 kHz."""
    text: str
    """The transcript, normalised."""


class Rows(ABC):
    """The rows of one source, in its own order; a row is read when it is asked for, in any process."""

    texts: pa.ChunkedArray
    """Normalised transcripts; null where there is none or it is not known ahead."""
    lengths: Float32[np.ndarray, " n"]
    """Seconds, measured or estimated."""
    mark: str
    """What tells this source from another with the same texts and lengths; no folder is part of it."""
    is_sequential = False
    """Whether rows are cheap in rising order only."""

    def __len__(self) -> int:
        return len(self.texts)

    @abstractmethod
    def name(self, row: int) -> str:
        """File and row, for messages."""

    def stamp(self, row: int) -> str:
        """What changes when the sound of a row that is a file of its own is replaced under the same name."""
        return ""

    @abstractmethod
    def __getitem__(self, row: int) -> Utterance:
        """One row.

        Raises:
            DataError: a row that cannot be used; the message begins with its name
        """


def checked(name: str, folder: Path, audio: Any, text: Any) -> Utterance:
    """An utterance of what a row holds: bytes or the name of a file below `folder`, or both as Hugging Face has them.

    Raises:
        DataError: no transcript, or no sound
    """
    audio = audio.get("bytes") or audio.get("path") if isinstance(audio, dict) else audio
    if not isinstance(text, str) or not (words := normalise(text)):
        raise DataError(f"{name}: the transcript is {_shown(text)}, expected a text that is not empty")
    if not is_unicode(words):
        raise DataError(f"{name}: the transcript {_shown(text)} holds half a character; write it as UTF-8")
    if not isinstance(audio, bytes | str) or not audio:
        raise DataError(
            f"{name}: the audio is {_shown(audio)}, expected the name or the bytes of a sound file"
        )
    if isinstance(audio, bytes):
        return Utterance(name=name, audio=audio, text=words)
    file = folder / audio
    try:
        is_there = file.is_file()
    except (OSError, ValueError):  # no name that a file could have
        is_there = False
    if not is_there:
        raise DataError(f"{name}: the audio file {_shown(str(file))} cannot be found")
    return Utterance(name=name, audio=file, text=words)


def is_unicode(text: str) -> bool:
    """Whether a text can be written: half of a surrogate pair, which JSON may bring, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def estimated_lengths(
    texts: pa.ChunkedArray, seconds: Float32[np.ndarray, " n"] | None = None
) -> Float32[np.ndarray, " n"]:
    """Seconds where they are given and can be true, else estimated by the transcript's characters."""
    characters = pc.fill_null(pc.call_function("utf8_length", [texts]), 0).to_numpy()
    estimate = (characters / CHARACTERS_PER_SECOND).astype(np.float32)
    if seconds is None:
        return estimate
    with np.errstate(invalid="ignore"):
        return np.where((seconds > 0) & np.isfinite(seconds), seconds, estimate)


class Files:
    """Reads anywhere in files and keeps the last ones open; processes may share one, or have copies."""

    def __init__(self) -> None:
        self._opened: OrderedDict[Path, _Descriptor] = OrderedDict()

    def read(self, path: Path, offset: int, n_bytes: int) -> bytes:
        """So many bytes, or as many as there are.

        Raises:
            OSError: the file cannot be read
        """
        file = self._opened.pop(path, None) or _Descriptor(path)
        self._opened[path] = file
        while len(self._opened) > _MOST_OPEN:
            self._opened.popitem(last=False)
        return os.pread(file.number, n_bytes, offset)  # leaves no position behind that a fork would share

    def __getstate__(self) -> dict[str, Any]:
        return {"_opened": OrderedDict()}


class _Descriptor:
    """An open file, closed when nobody reads it any more."""

    def __init__(self, path: Path) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _MAX_SHOWN else shown[:_MAX_SHOWN] + "..."
