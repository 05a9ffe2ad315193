"""Speech in tar files of the webdataset layout: members of the same name are one clip; nothing is extracted to disk."""

import json
import math
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from ossicle.data.columns import TEXT_NAMES, find_duration_name
from ossicle.data.formats.file_reader import FileReader
from ossicle.data.source import (
    Source,
    Utterance,
    build_utterance,
    estimate_durations,
    find_part,
    is_valid_unicode,
)
from ossicle.data.source_spec import SourceSpec
from ossicle.data.stretches import MAX_SECONDS, Stretch, find_time_columns, read_stretch, to_seconds
from ossicle.data.transcript import normalize_transcripts
from ossicle.errors import DataError
from ossicle.text_encoding import decode_text

BYTES_PER_SECOND = {
    "wav": 32_000.0,
    "flac": 16_000.0,
    "mp3": 8_000.0,
    "ogg": 6_000.0,
    "oga": 6_000.0,
    "opus": 4_000.0,
    "m4a": 8_000.0,
    "mp4": 8_000.0,
    "aac": 8_000.0,
    "webm": 4_000.0,
    "aiff": 32_000.0,
    "au": 32_000.0,
}
"""Extensions of audio files, and roughly their bytes per second of speech: enough to batch similar lengths."""
_TEXT_EXTENSIONS = ("txt", "json")
_END_MARKER = "its end"
"""Name of the row that stands for the missing end of a truncated file."""


@dataclass
class _Clip:
    """The members of one name, and the first problem found with them."""

    key: str
    audio_spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    """First byte and number of bytes, by extension."""
    texts: dict[str, bytes] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    """Extensions of members that are neither, for messages."""
    problem: str | None = None


@dataclass(frozen=True)
class _Row:
    """The part of a clip that stays in memory."""

    key: str
    offset: int
    n_bytes: int
    text: str | None
    duration_s: float
    stretch: Stretch | None
    problem: str | None


class WebDatasetSource(Source):
    """The clips of tar files, in the order of their first members.

    The whole clips of a truncated file are rows, and one invalid row stands for its missing end.

    Raises:
        DataError: a file that is not a tar, is damaged in the middle, or has no audio
    """

    label = "webdataset, members of the same name are a clip"

    def __init__(self, paths: Sequence[Path], spec: SourceSpec) -> None:
        self._paths, self._reader = tuple(paths), FileReader()
        self._problems: dict[int, str] = {}
        self._stretches: dict[int, Stretch] = {}
        keys, texts, spans, durations, starts = [], [], [], [], [0]
        digest = blake2b(digest_size=8)
        for path in self._paths:
            rows = [_build_row(clip, spec) for clip in _read_clips(path)]
            if not rows:
                raise DataError(f"{path} holds no audio; expected members such as 000.flac and 000.txt")
            for number, row in enumerate(rows, starts[-1]):
                if row.problem:
                    self._problems[number] = row.problem
                digest.update(f"{row.key}\n{row.offset} {row.n_bytes}\n".encode())
                if row.stretch:
                    self._stretches[number] = row.stretch
                    digest.update(repr(row.stretch).encode())
            keys.append(pa.array([row.key for row in rows], pa.string()))
            texts.append(pa.array([row.text for row in rows], pa.string()))
            spans.append(np.array([(row.offset, row.n_bytes) for row in rows], np.int64))
            durations.append(np.array([row.duration_s for row in rows], np.float32))
            starts.append(starts[-1] + len(rows))
        self._keys = pa.chunked_array(keys)
        self._spans, self._starts = np.concatenate(spans), np.array(starts)
        self.texts = normalize_transcripts(pa.chunked_array(texts))
        self.durations_s = estimate_durations(self.texts, np.concatenate(durations))
        self.content_id = f"tar {digest.hexdigest()}"

    def row_name(self, row: int) -> str:
        """Returns the file and the name of the clip's members."""
        return f"{self._paths[find_part(self._starts, row)]}, {self._keys[row].as_py()}"

    def __getitem__(self, row: int) -> Utterance:
        """Reads one clip."""
        name = self.row_name(row)
        if row in self._problems:
            raise DataError(f"{name}: {self._problems[row]}")
        path = self._paths[find_part(self._starts, row)]
        offset, n_bytes = self._spans[row].tolist()
        try:
            audio = self._reader.read(path, offset, n_bytes)
        except OSError as error:
            raise DataError(f"{name}: the tar cannot be read: {error.strerror}") from error
        return build_utterance(name, path.parent, audio, self.texts[row].as_py(), self._stretches.get(row))


def _read_clips(path: Path) -> list[_Clip]:
    """Returns the clips of a tar, in one pass over its headers and texts; none if it has no audio at all."""
    clips: dict[str, _Clip] = {}
    try:
        with path.open("rb") as file:
            n_bytes = file.seek(0, 2)
            file.seek(0)
            for member in read_members(path, file, n_bytes):
                key, extension = _split_name(member.name)
                is_audio = extension.rpartition(".")[2] in BYTES_PER_SECOND
                is_known = is_audio or extension in _TEXT_EXTENSIONS
                if not member.isreg() or not key or not (is_known or key in clips):
                    continue
                clip = clips.setdefault(key, _Clip(key))
                if not is_known:
                    clip.others.append(extension)
                    continue
                if extension in clip.audio_spans or extension in clip.texts:
                    clip.problem = f"the clip has two members that end in .{extension}, expected one"
                if member.offset_data + member.size > n_bytes:
                    clip.problem = f"its .{extension} is truncated, as the tar is; copy the tar again"
                elif is_audio:
                    clip.audio_spans[extension] = member.offset_data, member.size
                else:
                    file.seek(member.offset_data)
                    clip.texts[extension] = file.read(member.size)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; expected a tar file") from error
    if not any(clip.audio_spans or clip.problem for clip in clips.values()):
        return []
    return list(clips.values())


def read_members(path: Path, file: BinaryIO, n_bytes: int) -> Iterator[tarfile.TarInfo]:
    """Yields every member that has a header, and a last one that stands for the end if that is missing.

    Raises:
        DataError: the file is not a tar, or is damaged in the middle
    """
    offset, end = 0, 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while True:
                try:
                    member = tar.next()
                except tarfile.ReadError:  # the file ends within the last member
                    if end > n_bytes:
                        return
                    offset = n_bytes
                    break
                if member is None:
                    offset = tar.offset
                    break
                vars(tar)["members"].clear()  # tarfile would keep all of them in memory
                end = member.offset_data + member.size
                yield member
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise DataError(f"{path} is damaged or not a tar file: {error}; copy it again") from error
    file.seek(offset)
    header = file.read(tarfile.BLOCKSIZE)
    if len(header) == tarfile.BLOCKSIZE and any(header):
        raise DataError(f"{path} is damaged at byte {offset} of {n_bytes}; copy it again")
    if len(header) < tarfile.BLOCKSIZE:
        missing_end = tarfile.TarInfo(f"{_END_MARKER}.wav")
        missing_end.offset_data, missing_end.size = n_bytes, 1
        yield missing_end


def _split_name(name: str) -> tuple[str, str]:
    """Splits a member's name at the first dot after its folder; the key of a hidden file is empty."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (folder + slash + stem if stem else ""), extension.lower()


def _build_row(clip: _Clip, spec: SourceSpec) -> _Row:
    (offset, n_bytes), extension = _select_audio(clip, spec)
    values = _parse_json(clip)
    text = _find_text(clip, values, spec)
    duration_name = spec.duration or find_duration_name(values)
    duration_s = to_seconds(values.get(duration_name), duration_name) if duration_name else math.nan
    stretch = None
    try:
        names = [name for name in values if name != duration_name]
        stretch = read_stretch("", values, find_time_columns(names, spec.start, spec.end), duration_name)
    except DataError as error:
        clip.problem = clip.problem or str(error).removeprefix(": ")
    if stretch and stretch.end_s:
        duration_s = stretch.end_s - stretch.start_s
    if not 0 < duration_s < MAX_SECONDS:
        duration_s = n_bytes / BYTES_PER_SECOND.get(extension, 16_000.0)
    if text is None and clip.problem is None:
        clip.problem = _describe_missing_text(clip, values, spec)
    key = clip.key if is_valid_unicode(clip.key) else ascii(clip.key)
    return _Row(key, offset, n_bytes, text, duration_s, stretch, clip.problem)


def _describe_missing_text(clip: _Clip, values: dict[str, Any], spec: SourceSpec) -> str:
    members = ", ".join(f".{extension}" for extension in (*clip.audio_spans, *clip.texts, *clip.others))
    has_values = f" with the fields {', '.join(map(repr, values)):.200}" if values else ""
    expected = f"the field {spec.text}" if spec.text else f"a .txt, or a .json with {TEXT_NAMES[0]}"
    return f"the clip has {members}{has_values}, and no transcript; expected {expected}, or ?text=FIELD to name it"


def _select_audio(clip: _Clip, spec: SourceSpec) -> tuple[tuple[int, int], str]:
    """Returns span and extension of a clip's audio; records a problem if there is not exactly one."""
    no_audio = (0, 0), ""
    if clip.problem:
        return no_audio
    extensions = [extension for extension in clip.audio_spans if spec.audio in (None, extension)]
    if len(extensions) != 1:
        present = ", ".join(f".{extension}" for extension in (*clip.audio_spans, *clip.texts))
        expected = (
            f"one member that ends in .{spec.audio}"
            if spec.audio
            else "one audio file (or name its extension: ?audio=flac)"
        )
        clip.problem = f"the clip has {present}; expected {expected}"
        return no_audio
    return clip.audio_spans[extensions[0]], extensions[0].rpartition(".")[2]


def _parse_json(clip: _Clip) -> dict[str, Any]:
    """Returns the values of a clip's .json; records a problem if it cannot be parsed."""
    try:
        values = json.loads(decode_text(clip.texts["json"])) if "json" in clip.texts else {}
    except (ValueError, RecursionError) as error:
        clip.problem = clip.problem or f"its .json is not JSON in UTF-8 ({error})"
        return {}
    return values if isinstance(values, dict) else {}


def _find_text(clip: _Clip, values: dict[str, Any], spec: SourceSpec) -> str | None:
    """Returns the transcript of a clip; records a problem if it is not Unicode."""
    names = (spec.text,) if spec.text else TEXT_NAMES
    text = next((values[name] for name in names if isinstance(values.get(name), str)), None)
    if "txt" in clip.texts and spec.text in (None, "txt"):
        try:
            text = decode_text(clip.texts["txt"])
        except ValueError as error:
            clip.problem = clip.problem or f"its text is not UTF-8 ({error})"
            return None
    if text is not None and not is_valid_unicode(text):
        clip.problem = clip.problem or "its transcript has half of a surrogate pair; write the text as UTF-8"
        return None
    return text
