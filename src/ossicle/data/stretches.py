"""Rows that are stretches of a longer recording: the columns of their times, by known names, and what these mean.

A stretch whose times are ignored is the worst of rows: the whole recording goes with the words of a part of it.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ossicle.errors import DataError

NO_COLUMN = "none"
"""The value of an option that says that no column holds a time."""
_PREFIX = r"(?P<prefix>(?:audio|clip|chunk|frame|sample|seg|segment|speech|utt|utterance|t)_?)?"
_SUFFIX = (
    r"(?P<suffix>_?(?:time|timestamp|ts|at)?"
    r"(?:_s|_?(?:in_)?(?:secs?|seconds?|ms|msecs?|millis|milliseconds?|frames?|samples?))?)"
)
_START = re.compile(rf"{_PREFIX}(?P<stem>start|begin|onset|offset){_SUFFIX}", re.IGNORECASE)
_END = re.compile(rf"{_PREFIX}(?P<stem>end|stop|offset){_SUFFIX}", re.IGNORECASE)
_IN_MS = re.compile(r".*(?:ms|msecs?|millis|milliseconds?)", re.IGNORECASE)
_IN_SAMPLES = re.compile(r"(?:frame|sample)_?.+|.+(?:frames?|samples?)", re.IGNORECASE)
_STEMS = ("start", "begin", "onset", "end", "stop", "offset")
"""In order of precedence; an offset is the start of a stretch, except beside an onset."""
_PAIRS = ("timestamp", "timestamps", "segment", "interval", "span", "time_range")
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

    @property
    def names(self) -> list[str]:
        """All of them."""
        return [name for name in (self.start, self.end, self.pair) if name is not None]


@dataclass(frozen=True)
class Stretch:
    """Seconds of a recording, from a start to an end or to the recording's end."""

    start_s: float
    end_s: float | None


def find_time_columns(names: Iterable[str], start: str | None = None, end: str | None = None) -> TimeColumns:
    """Returns the columns with a known name for the start or end of a stretch.

    Args:
        start: the name of the column that an option gives; `NO_COLUMN` where there is none
        end: likewise
    """
    names = list(names)
    starts, ends = _match(_START, names), _match(_END, names)
    found_start = _get_first(starts)
    if found_start is not None and starts[found_start]["stem"].lower() == "onset":
        starts = {found_start: starts[found_start]}
    else:
        ends = {name: match for name, match in ends.items() if match["stem"].lower() != "offset"}
    partner = starts.get(found_start)
    same_form = [
        name
        for name, match in ends.items()
        if partner and (match["prefix"], match["suffix"]) == (partner["prefix"], partner["suffix"])
    ]
    found_end = same_form[0] if same_form else _get_first(ends)
    columns = TimeColumns(start=_apply_option(start, found_start), end=_apply_option(end, found_end))
    if columns.names or start or end:
        return columns
    return TimeColumns(pair=next((name for name in names if name.lower() in _PAIRS), None))


def _match(pattern: re.Pattern[str], names: Iterable[str]) -> dict[str | None, re.Match[str]]:
    return {name: match for name in names if (match := pattern.fullmatch(name))}


def _get_first(matches: Mapping[str | None, re.Match[str]]) -> str | None:
    def rank(name: str | None) -> tuple[bool, int]:
        return bool(_IN_SAMPLES.fullmatch(str(name))), _STEMS.index(matches[name]["stem"].lower())

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
    if start is None and end is None:
        return None
    if (
        end is None
        and duration is not None
        and (length := _read_seconds(label, values, duration)) is not None
    ):
        end = (start or 0.0) + length
    start = 0.0 if start is None or -_ROUNDING_S <= start < 0 else start
    if start < 0 or (end is not None and end <= start):
        raise DataError(
            f"{label}: its stretch of the recording is from {start:g} s to {'the end' if end is None else f'{end:g} s'};"
            " expected a start of zero or more, and a later end"
        )
    return None if start == 0 and end is None else Stretch(start, end)


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
    pair = values.get(columns.pair) if columns.pair else None
    if isinstance(pair, Mapping):
        return _read_times(label, pair, find_time_columns(pair))
    if isinstance(pair, list | tuple) and len(pair) == 2:
        start, end = (to_seconds(time, str(columns.pair)) for time in pair)
        return (None, None) if math.isnan(start + end) or isinstance(pair[0], str) else (start, end)
    return _read_seconds(label, values, columns.start), _read_seconds(label, values, columns.end)


def _read_seconds(label: str, values: Mapping[str, Any], column: str | None) -> float | None:
    value = values.get(column) if column else None
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    seconds = to_seconds(value, str(column))
    if math.isnan(seconds) or (seconds and _IN_SAMPLES.fullmatch(str(column))):
        raise DataError(
            f"{label}: {column} is {value!r:.60}, expected seconds of the recording; where it means something else,"
            f" rename it, or add ?start={NO_COLUMN}&end={NO_COLUMN} to the source"
        )
    return seconds


def to_seconds(value: object, column: str) -> float:
    """Returns a time or duration in seconds, by the unit in its column's name; NaN for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return math.nan
    return number * seconds_per_unit(column) if math.isfinite(number) else math.nan


def seconds_per_unit(column: str) -> float:
    """Returns the seconds of one unit of a column of times or durations: 0.001 for names such as duration_ms."""
    return 0.001 if _IN_MS.fullmatch(column) else 1.0
