"""Rows that are stretches of a longer recording: the columns of their times, by known names, and what these mean.

A stretch whose times are ignored is the worst of rows: the whole recording goes with the words of a part of it.
"""

import datetime
import decimal
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from ossicle.errors import DataError

NO_COLUMN = "none"
"""The value of an option that says that no column holds a time."""
_STARTS = ("start", "starts", "begin", "begins", "beginning", "beg", "onset", "tmin", "from", "t0", "offset")
_ENDS = ("end", "ends", "stop", "stops", "finish", "tmax", "until", "till", "to", "t1", "offset")
"""In order of precedence; an offset is the start of a stretch, except beside an onset."""
_HALVES = {"tmin", "from", "t0", "tmax", "until", "till", "to", "t1"}
"""These mean other things too, and are a start or end only beside an end or start."""
_LENGTHS = ("duration", "dur", "length", "len")
_CONTEXT = {
    *(
        "audio",
        "caption",
        "chunk",
        "clip",
        "cut",
        "event",
        "file",
        "interval",
        "phrase",
        "recording",
        "region",
    ),
    *(
        "seg",
        "segment",
        "sentence",
        "source",
        "speech",
        "subtitle",
        "turn",
        "utt",
        "utterance",
        "vad",
        "video",
        "wav",
    ),
    *(
        "window",
        "word",
        "youtube",
        "t",
        "at",
        "in",
        "time",
        "timestamp",
        "timestamps",
        "ts",
        "hh",
        "mm",
        "hms",
    ),
}
_SECONDS = {"s", "sec", "secs", "second", "seconds", "ss"}
_MILLISECONDS = {"ms", "msec", "msecs", "millis", "millisecond", "milliseconds"}
_OTHER_UNITS = {
    *("frame", "frames", "sample", "samples", "tick", "ticks", "ns", "us", "nsec", "usec", "nanoseconds"),
    *("microseconds", "min", "mins", "minute", "minutes", "hour", "hours"),
}
_WORDS = sorted(
    {*_STARTS, *_ENDS, *_LENGTHS, *_CONTEXT, *_SECONDS, *_MILLISECONDS, *_OTHER_UNITS}, key=len, reverse=True
)
_SPELLINGS = (
    (re.compile(r"(?<=[a-z0-9])(?=[A-Z])"), "_"),
    (re.compile(r"[\W_]+"), "_"),
    (re.compile(r"^(?:x|t|time)_?(min|max)(?![a-z])", re.IGNORECASE), r"t\1"),
    (re.compile(r"^t(?=(?:start|begin|end|stop)$)", re.IGNORECASE), "t_"),
    (re.compile(r"^t_([01])(?=_|$)", re.IGNORECASE), r"t\1"),
    (re.compile(r"^(?:num|n|nb)_(?=frames|samples)", re.IGNORECASE), "length_"),
)
"""Patterns of spellings, and what they are replaced with."""
_PAIRS = (
    *("timestamp", "timestamps", "segment", "interval", "span", "time_range", "time_interval", "time_span"),
    *("start_end", "times", "time", "range", "window", "region", "bounds", "offsets"),
)
_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:[.,]\d+)?)")
_WITH_UNIT = re.compile(r"([-+]?[\d.]+(?:e[-+]?\d+)?) ?(s|ms)", re.IGNORECASE)
_PAIR_TEXT = re.compile(
    r"[\[(]([^,]+),([^,]+)[\])]|(.+?) *--> *(.+)|([\d:.,]*[:.][\d:.,]*) *[-–] *([\d:.,]*[:.][\d:.,]*)"
)
_MAX_CHARS = 60
"""No name of a time is as long."""
MAX_SECONDS = 1e9
"""No sound is as long."""
_ROUNDING_S = 0.1
"""A start may be this much below zero."""


@dataclass(frozen=True, kw_only=True)
class TimeColumns:
    """The columns that say which stretch of a recording a row is."""

    start: str | None = None
    end: str | None = None
    pair: str | None = None
    """A column of both, as a list or as {start, end}."""
    length: str | None = None
    """The column of its duration, where no column holds its end."""

    @property
    def names(self) -> list[str]:
        """All of them."""
        return [name for name in (self.start, self.end, self.pair, self.length) if name is not None]


@dataclass(frozen=True)
class Stretch:
    """Seconds of a recording, from a start to an end or to the recording's end."""

    start_s: float
    end_s: float | None


@dataclass(frozen=True)
class _Name:
    """A column's name as one word for what it bounds, and the words around it."""

    bound: str
    form: tuple[str, ...]

    @classmethod
    def find(cls, name: str, bounds: Iterable[str]) -> "_Name | None":
        """Returns the parts of a name that has one of these words, and but known words around it."""
        words = _split_name(name)
        found = next((bound for bound in bounds if bound in words), None)
        if found is None:
            return None
        form = tuple(word for word in words if word != found)
        others = {*_STARTS, *_ENDS, *_LENGTHS} - {"offset"}
        return None if others & set(form) or len(form) < len(words) - 1 else cls(found, form)


def find_time_columns(names: Iterable[str], start: str | None = None, end: str | None = None) -> TimeColumns:
    """Returns the columns with a known name for the start or end of a stretch.

    Args:
        start: the name of the column that an option gives; `NO_COLUMN` where there is none
        end: likewise
    """
    names = list(names)
    if any(_normalize(name) in ("ymin", "y_min") for name in names):  # of a box in a picture
        names = [name for name in names if not {"tmin", "tmax"} & {*_split_name(name)}]
    starts, ends = _match(_STARTS, names), _match(_ENDS, names)
    found_start = _get_first(_STARTS, starts)
    if found_start is not None and starts[found_start].bound == "onset":
        starts = {found_start: starts[found_start]}
    else:
        ends = {name: parts for name, parts in ends.items() if parts.bound != "offset"}
    partner = starts.get(found_start)
    same_form = [name for name, parts in ends.items() if partner and parts.form == partner.form]
    found_end = same_form[0] if same_form else _get_first(_ENDS, ends)
    if found_start is None and found_end is not None:  # such as ts beside end_ts
        found_start = next(
            (name for name in names if ends[found_end].form and _split_name(name) == ends[found_end].form),
            None,
        )
    if found_end is None and partner and partner.bound in _HALVES:
        found_start = None
    if found_start is None and found_end is not None and ends[found_end].bound in _HALVES:
        found_end = None
    columns = TimeColumns(start=_apply_option(start, found_start), end=_apply_option(end, found_end))
    if columns.start and not columns.end:
        return replace(columns, length=_get_first(_LENGTHS, _match(_LENGTHS, names)))
    if columns.names or start or end:
        return columns
    by_lowercase = {_normalize(name): name for name in names}
    return TimeColumns(pair=next((by_lowercase[name] for name in _PAIRS if name in by_lowercase), None))


def _normalize(name: str) -> str:
    """Returns a name in lower case and one spelling, with underscores between its words."""
    for pattern, replacement in _SPELLINGS:
        name = pattern.sub(replacement, name).strip("_")
    return name.lower()


@lru_cache(4_096)
def _split_name(name: str) -> tuple[str, ...]:
    """Splits a name into known words; empty where it has others."""
    words: list[str] = []
    for part in _normalize(name).split("_") if len(name) <= _MAX_CHARS else ():
        split = [part] if part in _WORDS else _split_word(part)
        if split is None:
            return ()
        words += split
    return tuple(words)


def _split_word(word: str) -> list[str] | None:
    """Splits a word such as starttime into known words; None where it has others."""
    for known in _WORDS if word else ():
        if (
            len(known) > 1
            and word.startswith(known)
            and (rest := _split_word(word[len(known) :])) is not None
        ):
            return [known, *rest]
    return None if word else []


def _match(bounds: tuple[str, ...], names: Iterable[str]) -> dict[str | None, _Name]:
    return {name: parts for name in names if (parts := _Name.find(name, bounds))}


def _get_first(bounds: tuple[str, ...], matches: Mapping[str | None, _Name]) -> str | None:
    def rank(name: str | None) -> tuple[bool, int]:
        return math.isnan(seconds_per_unit(str(name))), bounds.index(matches[name].bound)

    return min(matches, key=rank, default=None)


def _apply_option(option: str | None, found: str | None) -> str | None:
    return None if option == NO_COLUMN else option or found


def read_stretch(
    label: str, values: Mapping[str, Any], columns: TimeColumns, duration: str | None
) -> Stretch | None:
    """Returns the stretch that a row's values name; None for a whole recording.

    Args:
        label: the row's name, for messages
        duration: the column of its duration, which gives the end where no column does

    Raises:
        DataError: a time that is no number of seconds, or an end before its start
    """
    start, end = _read_times(label, values, columns)
    length_column = duration or columns.length
    if start is None and end is None:
        return None
    if end is None and length_column is not None:
        length = _read_seconds(label, values, length_column)
        end = None if length is None else (start or 0.0) + length
    start = 0.0 if start is None or -_ROUNDING_S <= start < 0 else start
    if start < 0 or (end is not None and end <= start):
        raise DataError(
            f"{label}: its stretch of the recording is from {start:g} s to {'the end' if end is None else f'{end:g} s'};"
            " expected a start of zero or more, and a later end"
        )
    return None if start == 0 and end is None else Stretch(start, end)


def read_audio_stretch(label: str, audio: object) -> Stretch | None:
    """Returns the stretch that stands beside the path or bytes of a recording, as {path, offset, duration} does."""
    if not isinstance(audio, Mapping):
        return None
    return read_stretch(label, audio, find_time_columns(audio), None)


def measure_row(values: Mapping[str, Any], columns: TimeColumns, duration: str | None) -> float:
    """Returns the seconds of a row or of its stretch; NaN where they are not known, or are more than any sound has.

    Args:
        duration: the column of its duration
    """
    try:
        stretch = read_stretch("", values, columns, duration)
    except DataError:  # reading the row reports it
        return math.nan
    if stretch is not None and stretch.end_s is not None:
        duration_s = stretch.end_s - stretch.start_s
    else:
        duration_s = to_seconds(values.get(duration), duration) if duration else math.nan
    return duration_s if abs(duration_s) < MAX_SECONDS else math.nan


def _read_times(
    label: str, values: Mapping[str, Any], columns: TimeColumns
) -> tuple[float | None, float | None]:
    if columns.pair is not None:
        return _read_pair(label, values.get(columns.pair), columns.pair)
    start, end = (values.get(name) if name else None for name in (columns.start, columns.end))
    halves = [name for name in (columns.start, columns.end) if name and _HALVES & {*_split_name(name)}]
    if halves and all(isinstance(value, str) and not value[:1].isdigit() for value in (start, end)):
        return None, None  # such as languages that a text was translated from and to
    return _read_seconds(label, values, columns.start), _read_seconds(label, values, columns.end)


def _read_pair(label: str, pair: object, column: str) -> tuple[float | None, float | None]:
    if isinstance(pair, Mapping):
        columns = find_time_columns(pair)
        if columns.names and math.isnan(seconds_per_unit(column)):
            raise _build_error(label, column, pair)
        stretch = read_stretch(label, pair, columns, None)
        return (None, None) if stretch is None else (stretch.start_s, stretch.end_s)
    if isinstance(pair, str):
        match = _PAIR_TEXT.fullmatch(pair.strip())
        pair = [time for time in match.groups() if time] if match else ()
    if not isinstance(pair, list | tuple) or len(pair) != 2 or math.isnan(seconds_per_unit(column)):
        return None, None
    start, end = (to_seconds(time, column) for time in pair)
    if math.isnan(start) or (math.isnan(end) and pair[1] is not None):
        return None, None
    return start, None if pair[1] is None else end


def _read_seconds(label: str, values: Mapping[str, Any], column: str | None) -> float | None:
    value = values.get(column) if column else None
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    seconds = to_seconds(value, str(column))
    if math.isnan(seconds):
        raise _build_error(label, str(column), value)
    return seconds


def _build_error(label: str, column: str, value: object) -> DataError:
    return DataError(
        f"{label}: {column} is {value!r:.60}, expected seconds of the recording; where it means something else,"
        f" rename it, or add ?start={NO_COLUMN}&end={NO_COLUMN} to the source"
    )


def to_seconds(value: object, column: str) -> float:
    """Returns a time or duration in seconds, by its own unit or that of its column's name; NaN for what is none.

    Args:
        value: a number, a number as text, "1.5s", "0:01:02.500", or a time that a table of data holds
    """
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, datetime.time):
        value = value.isoformat()
    if isinstance(value, str) and (match := _CLOCK.fullmatch(value.strip())):
        hours, minutes, seconds = match.groups()
        return int(hours or 0) * 3_600 + int(minutes) * 60 + float(seconds.replace(",", "."))
    unit_s = seconds_per_unit(column)
    if isinstance(value, str) and (match := _WITH_UNIT.fullmatch(value.strip())):
        value, unit_s = match[1], 0.001 if match[2].lower() == "ms" else 1.0
    if isinstance(value, bool) or not isinstance(value, int | float | decimal.Decimal | str):
        return math.nan
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return math.nan
    if not math.isfinite(number):
        return math.nan
    return number * unit_s if number else 0.0  # zero in any unit


def seconds_per_unit(column: str) -> float:
    """Returns the seconds of one unit of a column of times or durations, by its name; NaN for an unknown unit.

    An offset of a start or end, t0, t1 and a length are seconds to some, and milliseconds, frames or characters to
    others.
    """
    words = {*_split_name(column)} or {*_normalize(column).split("_")}
    if words & _OTHER_UNITS:
        return math.nan
    if words & _SECONDS:
        return 1.0
    if words & _MILLISECONDS:
        return 0.001
    is_ambiguous = words & {"t0", "t1", "length", "len", "offsets"} or (
        "offset" in words and words & {*_STARTS, *_ENDS} - {"offset"}
    )
    return math.nan if is_ambiguous else 1.0
