"""Speech in tar files of the webdataset layout: members of one name are one clip; nothing is ever extracted."""

import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from ossicle.data.columns import DURATION_NAMES, TEXT_NAMES
from ossicle.data.source import Files, Rows, Utterance, checked, estimated_lengths, is_unicode
from ossicle.data.source_spec import Spelling
from ossicle.data.transcript import normalised
from ossicle.errors import DataError

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
"""Endings of sound, and about how much of it makes a second of speech: enough to put like lengths together."""
_TEXTS = ("txt", "json")
_END = "its end"
"""Name of the row that stands for what is missing of a file that was cut short."""


@dataclass
class _Clip:
    """The members of one name; what is wrong with them, if anything is."""

    key: str
    sounds: dict[str, tuple[int, int]] = field(default_factory=dict)
    """First byte and number of bytes, by ending."""
    texts: dict[str, bytes] = field(default_factory=dict)
    trouble: str | None = None


@dataclass(frozen=True)
class _Member:
    """What is kept of a clip."""

    key: str
    offset: int
    n_bytes: int
    text: str | None
    seconds: float
    trouble: str | None


class TarRows(Rows):
    """The clips of tar files, in the order of their first members.

    Of a file that was cut short, whole clips are rows, and where the cut is stands a row that cannot be used.

    Raises:
        DataError: a file that is no tar, damaged in the middle, or without sound
    """

    def __init__(self, files: Sequence[Path], spelling: Spelling) -> None:
        self._paths, self._files = tuple(files), Files()
        self._troubles: dict[int, str] = {}
        keys, texts, spans, seconds, starts = [], [], [], [], [0]
        digest = blake2b(digest_size=8)
        for path in self._paths:
            members = [_read(clip, spelling) for clip in _clips(path)]
            if not members:
                raise DataError(f"{path} holds no sound; expected members such as 000.flac and 000.txt")
            for row, member in enumerate(members, starts[-1]):
                if member.trouble:
                    self._troubles[row] = member.trouble
                digest.update(f"{member.key}\n{member.offset} {member.n_bytes}\n".encode())
            keys.append(pa.array([member.key for member in members], pa.string()))
            texts.append(pa.array([member.text for member in members], pa.string()))
            spans.append(np.array([(member.offset, member.n_bytes) for member in members], np.int64))
            seconds.append(np.array([member.seconds for member in members], np.float32))
            starts.append(starts[-1] + len(members))
        self._keys, self._spans, self._starts = (
            pa.chunked_array(keys),
            np.concatenate(spans),
            np.array(starts),
        )
        self.texts = normalised(pa.chunked_array(texts))
        self.lengths = estimated_lengths(self.texts, np.concatenate(seconds))
        self.mark = f"tar {digest.hexdigest()}"

    def name(self, row: int) -> str:
        """File and the members' name."""
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return f"{self._paths[number]}, {self._keys[row].as_py()}"

    def __getitem__(self, row: int) -> Utterance:
        """One clip."""
        name = self.name(row)
        if row in self._troubles:
            raise DataError(f"{name}: {self._troubles[row]}")
        path = self._paths[int(np.searchsorted(self._starts, row, side="right")) - 1]
        offset, n_bytes = self._spans[row].tolist()
        try:
            audio = self._files.read(path, offset, n_bytes)
        except OSError as error:
            raise DataError(f"{name}: cannot be read: {error.strerror}") from error
        return checked(name, path.parent, audio, self.texts[row].as_py())


def _clips(path: Path) -> list[_Clip]:
    """The members of a tar that are clips, in one pass over its headers and texts."""
    clips: dict[str, _Clip] = {}
    try:
        with path.open("rb") as file:
            n_bytes = file.seek(0, 2)
            file.seek(0)
            for member in _members(path, file, n_bytes):
                key, ending = _key(member.name)
                is_sound = ending.rpartition(".")[2] in BYTES_PER_SECOND
                if not member.isreg() or not key or not (is_sound or ending in _TEXTS):
                    continue
                clip = clips.setdefault(key, _Clip(key))
                if ending in clip.sounds or ending in clip.texts:
                    clip.trouble = f"it has two members that end in .{ending}, expected one"
                if member.offset_data + member.size > n_bytes:
                    clip.trouble = f"its .{ending} is cut short, as the tar is; copy the tar again"
                elif is_sound:
                    clip.sounds[ending] = member.offset_data, member.size
                else:
                    file.seek(member.offset_data)
                    clip.texts[ending] = file.read(member.size)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; expected a tar file") from error
    if not any(clip.sounds or clip.trouble for clip in clips.values()):
        return []
    return list(clips.values())


def _members(path: Path, file: BinaryIO, n_bytes: int) -> Iterator[tarfile.TarInfo]:
    """Every member that has a header, and one more in the place of an end that is missing.

    Raises:
        DataError: no tar, or damaged in the middle
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
                vars(tar)["members"].clear()  # or it remembers all of them
                end = member.offset_data + member.size
                yield member
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise DataError(f"{path} is damaged or not a tar file: {error}; copy it again") from error
    file.seek(offset)
    header = file.read(tarfile.BLOCKSIZE)
    if len(header) == tarfile.BLOCKSIZE and any(header):
        raise DataError(f"{path} is damaged at byte {offset} of {n_bytes}; copy it again")
    if len(header) < tarfile.BLOCKSIZE:
        missing = tarfile.TarInfo(f"{_END}.wav")
        missing.offset_data, missing.size = n_bytes, 1
        yield missing


def _key(name: str) -> tuple[str, str]:
    """A member's name up to the first dot behind its folder, and the ending; hidden files are nobody's."""
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return (folder + slash + stem if stem else ""), ending.lower()


def _read(clip: _Clip, spelling: Spelling) -> _Member:
    (offset, n_bytes), ending = _sound(clip, spelling)
    text, duration = _text(clip, spelling)
    seconds = duration or n_bytes / BYTES_PER_SECOND.get(ending, 16_000.0)
    key = clip.key if is_unicode(clip.key) else ascii(clip.key)
    return _Member(key, offset, n_bytes, text, seconds, clip.trouble)


def _sound(clip: _Clip, spelling: Spelling) -> tuple[tuple[int, int], str]:
    """Place and ending of a clip's sound; notes what is wrong with it."""
    nothing = (0, 0), ""
    if clip.trouble:
        return nothing
    endings = [ending for ending in clip.sounds if spelling.audio in (None, ending)]
    if len(endings) != 1:
        there = ", ".join(f".{ending}" for ending in (*clip.sounds, *clip.texts))
        wanted = (
            f"one that ends in .{spelling.audio}" if spelling.audio else "one sound (or name it: ?audio=flac)"
        )
        clip.trouble = f"it has {there}; expected {wanted}"
        return nothing
    return clip.sounds[endings[0]], endings[0].rpartition(".")[2]


def _text(clip: _Clip, spelling: Spelling) -> tuple[str | None, float | None]:
    """Transcript and seconds of a clip; notes what is wrong with them."""
    try:
        about = json.loads(clip.texts["json"].decode()) if "json" in clip.texts else {}
        about = about if isinstance(about, dict) else {}
        duration = _first(about, (spelling.duration,) if spelling.duration else DURATION_NAMES, (int, float))
        if "txt" in clip.texts and spelling.text in (None, "txt"):
            text = clip.texts["txt"].decode()
        else:
            text = _first(about, (spelling.text,) if spelling.text else TEXT_NAMES, (str,))
    except (ValueError, RecursionError) as error:
        clip.trouble = clip.trouble or f"its text is not UTF-8, or its .json not JSON ({error})"
        return None, None
    if text is not None and not is_unicode(text):
        clip.trouble = clip.trouble or "its transcript holds half a character; write it as UTF-8"
        return None, None
    return text, float(min(duration, 1e9)) if duration is not None and duration > 0 else None


def _first(values: dict, names: Sequence[str], kinds: tuple[type, ...]):
    return next((values[name] for name in names if isinstance(values.get(name), kinds)), None)
