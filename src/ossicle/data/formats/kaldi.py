"""Kaldi's data folders: wav.scp, text, and segments where utterances are stretches of recordings.

A line of wav.scp may be a command whose output is the sound. No command is ever run.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from ossicle.data.formats.listed import ListedRow
from ossicle.data.stretches import to_seconds
from ossicle.errors import DataError
from ossicle.text_encoding import read_text_file

LABEL = "Kaldi data folder"
_RECORDINGS, _TEXT, _SEGMENTS, _DURATIONS = "wav.scp", "text", "segments", "utt2dur"
_SPEAKERS = ("utt2spk", "spk2utt")
_ARCHIVE_OFFSET = re.compile(r".+:\d+")


def is_kaldi(folder: Path) -> bool:
    """Whether a folder has the two files that every data folder with words has."""
    return (folder / _RECORDINGS).is_file() and (folder / _TEXT).is_file()


def find_kaldi_difference(folder: Path) -> str | None:
    """Returns what a folder lacks to be a Kaldi data folder; None for other folders."""
    has_recordings = (folder / _RECORDINGS).is_file()
    if has_recordings and not (folder / _TEXT).is_file():
        return f"it has Kaldi's {_RECORDINGS}, and no file {_TEXT} with the words of each utterance"
    if not has_recordings and (folder / _TEXT).is_file():
        others = [name for name in (_SEGMENTS, *_SPEAKERS) if (folder / name).is_file()]
        found = " and ".join([_TEXT, *others[:1]])
        return f"it has Kaldi's {found}, and no {_RECORDINGS} with the audio files"
    return None


def read_kaldi(folder: Path) -> Iterator[ListedRow]:
    """Yields the utterances of `text`, and those of the other files that have no words."""
    recordings, texts = _read_pairs(folder / _RECORDINGS), _read_pairs(folder / _TEXT)
    segments = _read_pairs(folder / _SEGMENTS) if (folder / _SEGMENTS).is_file() else None
    durations = _read_pairs(folder / _DURATIONS) if (folder / _DURATIONS).is_file() else {}
    for utterance in dict.fromkeys((*texts, *(recordings if segments is None else segments))):
        fields = [utterance] if segments is None else segments.get(utterance, "").split()
        yield _build_row(
            utterance, texts.get(utterance), fields, recordings, to_seconds(durations.get(utterance, ""), "")
        )


def _build_row(
    utterance: str, text: str | None, fields: list[str], recordings: dict[str, str], duration_s: float
) -> ListedRow:
    """Returns one utterance.

    Args:
        fields: its recording, start and end; without times, all of the recording
    """
    if not fields:
        return ListedRow(name=utterance, problem=f"{_SEGMENTS} has no line for this utterance of {_TEXT}")
    times = [to_seconds(field, "") for field in fields[1:3]]
    is_whole = len(fields) == 1
    start_s, end_s = times if len(times) == 2 else (float("nan"), float("nan"))
    if end_s == -1:  # Kaldi's sign for the end of the recording
        end_s = float("nan")
    elif not is_whole and not 0 <= start_s < end_s:
        return ListedRow(
            name=utterance,
            problem=f"its line of {_SEGMENTS} is {' '.join(fields)!r:.80}, expected RECORDING START END in seconds",
        )
    audio = recordings.get(fields[0])
    return ListedRow(
        name=utterance,
        audio=audio,
        text=text,
        start_s=start_s,
        end_s=end_s,
        duration_s=duration_s,
        problem=_find_problem(fields[0], audio) or (f"{_TEXT} has no words for it" if text is None else None),
    )


def _find_problem(recording: str, audio: str | None) -> str | None:
    """Returns why an entry of wav.scp cannot be read as a file."""
    if audio is None:
        return f"{_RECORDINGS} has no recording {recording}"
    if audio.endswith("|") or audio.startswith("|"):
        return (
            f"{_RECORDINGS} has a command in place of a file ({audio!r:.80}), and commands are never run: run them"
            " yourself, and give the path of each audio file"
        )
    if _ARCHIVE_OFFSET.fullmatch(audio):
        return (
            f"{_RECORDINGS} names a place in an archive ({audio!r:.80}), expected the path of an audio file"
        )
    return None


def _read_pairs(path: Path) -> dict[str, str]:
    """Returns the rest of each line by its first word, empty where there is no rest.

    Raises:
        DataError: the file cannot be read, or has a key twice
    """
    try:
        lines = read_text_file(path).split("\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    pairs: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        key, *rest = line.split(maxsplit=1)[:2] or [""]
        if not key:
            continue
        if key in pairs:
            raise DataError(f"{path}, line {number}: {key} has a line already; expected one line for each")
        pairs[key] = rest[0].strip() if rest else ""
    return pairs
