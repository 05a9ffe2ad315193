"""Speech whose rows are listed by other files than a table: each row names an audio file, a stretch of it and its words.

What lists them (folders of Kaldi, LibriSpeech, VCTK, pairs of files, Lhotse) is not known here.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa

from ossicle.data.source import (
    Source,
    Utterance,
    build_utterance,
    estimate_durations,
    find_audio_version,
    is_valid_unicode,
)
from ossicle.data.stretches import MAX_SECONDS, Stretch
from ossicle.data.transcript import normalize_transcripts
from ossicle.errors import DataError

_MAX_PARENTS = 4
"""Folders above that paths may be relative to: recipes write them as seen from where they are run."""


@dataclass(frozen=True, kw_only=True)
class ListedRow:
    """One row as its layout lists it."""

    name: str
    """What the layout calls it, for messages."""
    audio: str | None = None
    """Path of the audio file, relative to the listing folder or to one above."""
    text: str | None = None
    start_s: float = math.nan
    """Where its stretch of the recording begins; NaN where the row is the whole."""
    end_s: float = math.nan
    """NaN: the end of the recording."""
    duration_s: float = math.nan
    """Seconds of the row, if it is known."""
    problem: str | None = None
    """Why the row cannot be used."""


class ListedSource(Source):
    """Rows in the order in which they are listed; audio files are looked for when a row is read.

    Args:
        folder: where relative paths begin
        label: layout, for the summary of a source
        content: name of the layout, for the fingerprint

    Raises:
        DataError: no row can be used, for one and the same reason
    """

    def __init__(self, folder: Path, rows: Iterable[ListedRow], *, label: str) -> None:
        listed = [_check_unicode(row) for row in rows]
        self._folder, self.label = folder, label
        self._problems = {number: row.problem for number, row in enumerate(listed) if row.problem}
        if listed and len(self._problems) == len(listed):
            raise DataError(
                f"{folder}: no row of this {label} can be used; {listed[0].name}: {listed[0].problem}"
            )
        self._names = pa.chunked_array([pa.array([row.name for row in listed], pa.string())])
        self._audio = pa.chunked_array([pa.array([row.audio for row in listed], pa.string())])
        self._times = np.array([(row.start_s, row.end_s) for row in listed], np.float64).reshape(-1, 2)
        self.texts = normalize_transcripts(
            pa.chunked_array([pa.array([row.text for row in listed], pa.string())])
        )
        durations = np.array([_measure(row) for row in listed], np.float32)
        self.durations_s = estimate_durations(self.texts, durations)
        digest = blake2b(digest_size=8)
        for row in listed:
            audio = None if row.audio is None else Path(row.audio).name
            digest.update(repr((audio, row.start_s, row.end_s)).encode(errors="surrogatepass"))
        self.content_id = f"listed {digest.hexdigest()}"

    def row_name(self, row: int) -> str:
        """Returns the folder, and the row's name in its layout."""
        return f"{self._folder}, {self._names[row].as_py()}"

    def audio_version(self, row: int) -> str:
        """Returns size and modification time of the row's audio file."""
        return find_audio_version(self, row)

    def __getitem__(self, row: int) -> Utterance:
        """Reads one row."""
        name = self.row_name(row)
        if (problem := self._problems.get(row)) is not None:
            raise DataError(f"{name}: {problem}")
        start_s, end_s = self._times[row].tolist()
        stretch = None
        if not math.isnan(start_s):
            stretch = Stretch(start_s, None if math.isnan(end_s) else end_s)
        folder, audio = self._read_audio(row)
        return build_utterance(name, folder, audio, self.texts[row].as_py(), stretch)

    def _read_audio(self, row: int) -> tuple[Path, str | bytes | None]:
        """Returns the path of a row's audio file with the folder that it is relative to, or its bytes."""
        audio = self._audio[row].as_py()
        return find_base(self._folder, audio), audio


def find_base(folder: Path, audio: str | None) -> Path:
    """Returns the folder that a path is relative to: the listing's own, or the nearest above that has the file."""
    try:
        if audio and not Path(audio).is_absolute():
            for base in (folder, *folder.absolute().parents[:_MAX_PARENTS]):
                if (base / audio).is_file():
                    return base
    except (OSError, ValueError):  # a string that cannot be a path
        pass
    return folder


def _check_unicode(row: ListedRow) -> ListedRow:
    """Returns a row, one that cannot be used in place of one with a name or a text that is not UTF-8."""
    problems = [
        what
        for what, value in (("name", row.name), ("audio file's name", row.audio), ("text", row.text))
        if value is not None and not is_valid_unicode(value)
    ]
    if not problems:
        return row
    name = row.name if is_valid_unicode(row.name) else ascii(row.name)
    return ListedRow(name=name, problem=row.problem or f"its {problems[0]} is not UTF-8")


def _measure(row: ListedRow) -> float:
    duration_s = row.duration_s
    if not math.isnan(row.end_s):
        duration_s = row.end_s - (0.0 if math.isnan(row.start_s) else row.start_s)
    return duration_s if 0 < duration_s < MAX_SECONDS else math.nan
