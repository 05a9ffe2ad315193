"""Finds the columns of a source that hold audio, transcript and duration: by the option given, else by known names."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Flag, auto

from ossicle.data.source_spec import SourceSpec
from ossicle.data.stretches import NO_COLUMN, TimeColumns, find_time_columns
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
    "duration_ms",
    "audio_duration_ms",
)
"""Known names, tried in this order without regard to case."""


_TYPES = {
    "audio": "the bytes or the path of an audio file, or {bytes, path} of one, and no decoded samples",
    "text": "a text",
}


class ColumnRole(Flag):
    """The roles that the type of a column allows."""

    AUDIO = auto()
    TEXT = auto()
    DURATION = auto()
    TIME = auto()
    """Set where the type can hold the start or end of a stretch, or both."""
    IS_AUDIO = auto()
    """Set where the type can hold nothing but audio, whatever the column's name."""
    ONLY_AUDIO = AUDIO | IS_AUDIO


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns of one source."""

    audio: str
    text: str
    duration: str | None
    times: TimeColumns = field(default_factory=TimeColumns)
    """The columns of the stretch of a recording that a row is."""

    def __str__(self) -> str:
        """Returns which column is read as what."""
        times = f", stretches from {' and '.join(self.times.names)}" if self.times.names else ""
        duration = f", durations from {self.duration}" if self.duration else ""
        return f"audio from {self.audio}, transcripts from {self.text}{duration}{times}"

    @property
    def numbers(self) -> list[str]:
        """The columns of duration and times."""
        names = (self.duration, *self.times.names)
        return list(dict.fromkeys(name for name in names if name is not None))

    @property
    def of_row(self) -> list[str]:
        """The columns that make a row: all, but the duration where rows are no stretches."""
        return list(dict.fromkeys([self.audio, self.text, *(self.numbers if self.times.names else ())]))


def find_columns(label: str, roles: Mapping[str, ColumnRole], spec: SourceSpec) -> Columns:
    """Returns the columns that the source's options name, or else those with the first known name.

    Args:
        label: file or dataset, for messages
        roles: for each column, the roles that its type allows

    Raises:
        DataError: no column fits, or several do
    """
    audio = _check_named(label, roles, "audio", spec.audio, ColumnRole.AUDIO)
    audio = audio or _find_by_name(label, roles, AUDIO_NAMES, "audio", ColumnRole.AUDIO)
    only_audio = [name for name, allowed in roles.items() if ColumnRole.IS_AUDIO in allowed]
    if audio is None and only_audio:
        audio = _check_unique(label, roles, "audio", only_audio)
    text = _check_named(label, roles, "text", spec.text, ColumnRole.TEXT)
    text = text or _find_by_name(label, roles, TEXT_NAMES, "text", ColumnRole.TEXT)
    duration = _check_named(label, roles, "duration", spec.duration, ColumnRole.DURATION)
    for option, column, known_names in (("audio", audio, AUDIO_NAMES), ("text", text, TEXT_NAMES)):
        if column is None:
            unfit = [name for name in roles if name.lower() in known_names]
            problem = (
                f"the type of {_list_names(unfit)} is none that can be {option}: expected {_TYPES[option]}"
                if unfit
                else f"none has a known name for {option} ({', '.join(known_names)}) and a fitting type"
            )
            raise DataError(
                f"{label} has the columns {_list_names(roles)}; {problem}; name the column: ?{option}=COLUMN"
            )
    assert audio is not None
    assert text is not None
    duration = duration or _find_by_name(
        label, roles, DURATION_NAMES, "duration", ColumnRole.DURATION, is_required=False
    )
    for option, name in (("start", spec.start), ("end", spec.end)):
        _check_named(label, roles, option, None if name == NO_COLUMN else name, ColumnRole.TIME)
    used = (audio, text, duration)
    time_names = [name for name, allowed in roles.items() if ColumnRole.TIME in allowed and name not in used]
    times = find_time_columns(time_names, spec.start, spec.end)
    if times.names and duration is None:  # as text, which is not good enough for durations alone
        duration = find_duration_name(time_names)
    return Columns(audio=audio, text=text, duration=duration, times=times)


def find_duration_name(names: Iterable[str]) -> str | None:
    """Returns the first known name of a duration among those of a row's values."""
    by_lowercase = {name.lower(): name for name in names}
    return next((by_lowercase[name] for name in DURATION_NAMES if name in by_lowercase), None)


def _check_named(
    label: str, roles: Mapping[str, ColumnRole], option: str, name: str | None, role: ColumnRole
) -> str | None:
    """Returns the column that an option names, or None where the option is not given."""
    if name is not None and role not in roles.get(name, ColumnRole(0)):
        problem = "that column has another type" if name in roles else "there is no such column"
        raise DataError(f"{label}: {option}={name}: {problem}; its columns are {_list_names(roles)}")
    return name


def _find_by_name(
    label: str,
    roles: Mapping[str, ColumnRole],
    known_names: Collection[str],
    option: str,
    role: ColumnRole,
    *,
    is_required: bool = True,
) -> str | None:
    for known_name in known_names:
        found = [name for name, allowed in roles.items() if name.lower() == known_name and role in allowed]
        if known_name in found:  # an exact match takes precedence over other cases
            return known_name
        if found:
            return _check_unique(label, roles, option, found) if is_required or len(found) == 1 else None
    return None


def _check_unique(label: str, roles: Mapping[str, ColumnRole], option: str, found: list[str]) -> str:
    if len(found) > 1:
        raise DataError(
            f"{label}: {' and '.join(found)} could both hold its {option}, of the columns {_list_names(roles)};"
            f" name one: ?{option}=COLUMN"
        )
    return found[0]


def _list_names(roles: Iterable[str]) -> str:
    """Returns the names as a message shows them: on one line, whatever the file has in its header."""
    return ", ".join(name if name.isprintable() else repr(name) for name in roles) or "(none)"
