"""Parses the string that names a source, NAME or NAME?key=value&key=value, and expands file patterns; opens nothing."""

import glob
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import unquote

from ossicle.errors import ConfigError, DataError

POCKET_SPEECH = "pocket/speech"
"""The name of the embedded speech."""
SOURCE_KINDS = (
    "a .parquet, .jsonl, .json, .tar, .tsv or .csv file (or a pattern for several), a folder of a known layout, a packed"
    f" folder, a Hugging Face dataset by hub id or local folder, or {POCKET_SPEECH}"
)
"""The kinds of sources, for messages."""

_NAME_AND_OPTIONS = re.compile(r"(?P<name>.+?)\?(?P<options>\w+=.*)", re.DOTALL)
"""A file pattern may contain a ? of its own; options have a = after their first word."""
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MAX_FILES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """One source as the user named it."""

    name: str
    config: str | None = None
    """Configuration of a Hugging Face dataset."""
    split: str | None = None
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    streaming: bool = False
    """Whether a Hugging Face dataset is streamed instead of downloaded."""
    audio: str | None = None
    """Column of the audio, where its name is not a known one; `text` and `duration` likewise."""
    text: str | None = None
    duration: str | None = None
    start: str | None = None
    """Column of the second at which a row's stretch of a longer recording begins, or "none"; `end` likewise."""
    end: str | None = None
    weight: float | None = None
    """How often the source is drawn from, relative to the weights of the others."""

    def reject_options(self, *keys: str) -> None:
        """Raises ConfigError if one of these options is set, because this kind of source does not take it."""
        for key in keys:
            if getattr(self, key):
                raise ConfigError(
                    f"source {self.name!r}: {key} is not for this kind of source; leave {key}={getattr(self, key)} out"
                )


_KEYS = tuple(field.name for field in fields(SourceSpec) if field.name != "name")


def parse_source_spec(source: str) -> SourceSpec:
    """Parses the string of one source.

    Raises:
        ConfigError: no name, an unknown or repeated key, or an invalid value
    """
    match = _NAME_AND_OPTIONS.fullmatch(source)
    name, options = (match["name"], match["options"].split("&")) if match else (source, [])
    if not name.strip() or "\0" in name:
        raise ConfigError(f"source {source!r} has no name; expected {SOURCE_KINDS}")
    values: dict[str, str] = {}
    for option in options:
        key, _, value = option.partition("=")
        if key not in _KEYS:
            raise ConfigError(f"source {name!r}: unknown key {key!r}; expected one of {', '.join(_KEYS)}")
        if key in values or not value:
            problem = "is given twice" if key in values else "has no value"
            raise ConfigError(f"source {name!r}: {key} {problem}; expected {key}=VALUE once")
        values[key] = unquote(value)
    weight, streaming = values.pop("weight", None), values.pop("streaming", "false")
    if streaming not in ("true", "false"):
        raise ConfigError(f"source {name!r}: streaming is {streaming!r}, expected true or false")
    return SourceSpec(
        name=name,
        streaming=streaming == "true",
        weight=None if weight is None else _parse_weight(name, weight),
        **values,
    )


def parse_source_specs(sources: Sequence[str]) -> list[SourceSpec]:
    """Parses the strings of sources that are mixed; either all of them have a weight, or none has.

    Raises:
        ConfigError: no source, one that cannot be parsed, or weights for some sources only
    """
    if not sources:
        raise ConfigError(f"no source of speech is given; expected {SOURCE_KINDS}")
    specs = [parse_source_spec(source) for source in sources]
    if len({spec.weight is None for spec in specs}) > 1:
        unweighted = next(spec.name for spec in specs if spec.weight is None)
        raise ConfigError(
            f"source {unweighted!r} has no weight and others have one; give all sources a weight, or none"
        )
    return specs


def _parse_weight(name: str, value: str) -> float:
    try:
        weight = float(value)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ConfigError(f"source {name!r}: weight is {value!r}, expected a positive number")
    return weight


def expand_files(pattern: str) -> list[Path]:
    """Returns the files that a pattern matches; {a,b} and {000..127} are expanded in order, matches of * are sorted.

    Raises:
        DataError: a name matches no file, or the pattern matches too many
    """
    if Path(pattern).is_file():
        return [Path(pattern)]
    files: list[Path] = []
    for name in _expand_braces(pattern):
        matches = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name]  # noqa: PTH207
        matches = [match for match in matches if Path(match).is_file()]
        if not matches:
            problem = "this is a folder, not a file" if Path(name).exists() else "no such file"
            which = "" if name == pattern else f" ({name})"
            raise DataError(f"source {pattern!r}: {problem}{which}; expected {SOURCE_KINDS}")
        files += map(Path, matches)
        if len(files) > _MAX_FILES:
            raise DataError(f"source {pattern!r} matches more than {_MAX_FILES} files; expected fewer")
    if not files:
        raise DataError(
            f"source {pattern!r} names no file: a range in braces counts upwards, such as {{000..127}}"
        )
    return files


def _expand_braces(pattern: str) -> Iterator[str]:
    """Yields every name that a pattern with braces stands for."""
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    number_range = _RANGE.fullmatch(match[1])
    if number_range is None:
        choices = iter(match[1].split(","))
    else:
        first, last = int(number_range[1]), int(number_range[2])
        choices = (f"{number:0{len(number_range[1])}}" for number in range(first, last + 1))
    for choice in choices:
        yield from _expand_braces(pattern[: match.start()] + choice + pattern[match.end() :])
