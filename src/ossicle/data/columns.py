"""Which columns of a source hold the sound, the transcript and the seconds: named, or found by the names people use."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ossicle.data.source_spec import Spelling
from ossicle.errors import DataError

AUDIO_NAMES = (
    "audio",
    "sound",
    "wav",
    "flac",
    "mp3",
    "speech",
    "audio_filepath",
    "audio_path",
    "file_name",
    "file",
    "path",
)
TEXT_NAMES = (
    "text",
    "sentence",
    "transcript",
    "transcription",
    "normalized_text",
    "raw_text",
    "raw_transcription",
)
DURATION_NAMES = (
    "duration",
    "duration_s",
    "seconds",
    "duration_seconds",
    "audio_duration",
    "length_s",
)
"""In this order; capitals do not matter."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns of one source."""

    audio: str
    text: str
    duration: str | None


def find_columns(where: str, kinds: Mapping[str, str], spelling: Spelling) -> Columns:
    """The columns that are named in the source's spelling, or else those with the first known name.

    Args:
        where: file or data set, for messages
        kinds: of each column what it can be: some of the letters a (sound), t (text) and d (a number); S marks
            what can be nothing but sound, whatever its name

    Raises:
        DataError: no column to take, or more than one that could be meant
    """
    is_sound = [name for name, kind in kinds.items() if "S" in kind]
    audio = _named(where, kinds, "audio", spelling.audio, "a") or _found(where, kinds, AUDIO_NAMES, "a")
    if audio is None and is_sound:
        audio = _only(where, kinds, "audio", is_sound)
    text = _named(where, kinds, "text", spelling.text, "t") or _found(where, kinds, TEXT_NAMES, "t")
    duration = _named(where, kinds, "duration", spelling.duration, "d")
    for role, column, known in (("audio", audio, AUDIO_NAMES), ("text", text, TEXT_NAMES)):
        if column is None:
            raise DataError(
                f"{where} has the columns {_listed(kinds)}, none of them a known one of {role}"
                f" ({', '.join(known)}); name it: ?{role}=COLUMN"
            )
    assert audio is not None
    assert text is not None
    return Columns(
        audio=audio, text=text, duration=duration or _found(where, kinds, DURATION_NAMES, "d", must=False)
    )


def _named(where: str, kinds: Mapping[str, str], role: str, name: str | None, letter: str) -> str | None:
    if name is not None and letter not in kinds.get(name, ""):
        trouble = "of another kind" if name in kinds else "not there"
        raise DataError(f"{where}: {role}={name} is {trouble}; its columns are {_listed(kinds)}")
    return name


def _found(
    where: str, kinds: Mapping[str, str], known: Collection[str], letter: str, *, must: bool = True
) -> str | None:
    for wanted in known:
        found = [name for name, kind in kinds.items() if name.lower() == wanted and letter in kind]
        if wanted in found:  # as it is written here, before all others
            return wanted
        if found:
            role = {"a": "audio", "t": "text", "d": "duration"}[letter]
            return _only(where, kinds, role, found) if must or len(found) == 1 else None
    return None


def _only(where: str, kinds: Mapping[str, str], role: str, found: list[str]) -> str:
    if len(found) > 1:
        raise DataError(
            f"{where}: {' and '.join(found)} could both be its {role}, of the columns {_listed(kinds)}; name"
            f" one: ?{role}=COLUMN"
        )
    return found[0]


def _listed(kinds: Mapping[str, str]) -> str:
    return ", ".join(kinds) or "(none)"
