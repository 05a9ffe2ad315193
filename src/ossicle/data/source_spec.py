"""How a source is spelled: NAME, or NAME?key=value&key=value; it opens nothing."""

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
KINDS = (
    f"a .parquet, .jsonl or .tar file (or a pattern of such), a packed folder, a Hugging Face data set by hub id"
    f" or local folder, or {POCKET_SPEECH}"
)
"""What a source can be, for messages."""

_OPTIONS = re.compile(r"(?P<name>.+?)\?(?P<options>\w+=.*)", re.DOTALL)
"""A pattern may have a ? of its own; options have a = behind their first word."""
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_FILES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Spelling:
    """One source as it was asked for."""

    name: str
    config: str | None = None
    """Configuration of a Hugging Face data set."""
    split: str | None = None
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    streaming: bool = False
    """Whether a Hugging Face data set is read as it comes, not downloaded."""
    audio: str | None = None
    """Column of the sound, if not to be found by its name; text and duration alike."""
    text: str | None = None
    duration: str | None = None
    weight: float | None = None
    """How often the source is drawn from, beside the others' weights."""

    def refuse(self, *keys: str) -> None:
        """Raise ConfigError if one of the options is given, which this kind of source has no use for."""
        for key in keys:
            if getattr(self, key):
                raise ConfigError(
                    f"source {self.name!r}: {key} is for Hugging Face data sets; leave {key}={getattr(self, key)}"
                    " out"
                )


_KEYS = tuple(field.name for field in fields(Spelling) if field.name != "name")


def parse(source: str) -> Spelling:
    """A source from its one string.

    Raises:
        ConfigError: no name, an unknown key, one that comes twice, or a value that cannot be
    """
    match = _OPTIONS.fullmatch(source)
    name, options = (match["name"], match["options"].split("&")) if match else (source, [])
    if not name.strip() or "\0" in name:
        raise ConfigError(f"source {source!r} has no name; expected {KINDS}")
    values: dict[str, str] = {}
    for option in options:
        key, _, value = option.partition("=")
        if key not in _KEYS:
            raise ConfigError(f"source {name!r}: unknown key {key!r}; expected one of {', '.join(_KEYS)}")
        if key in values or not value:
            trouble = "comes twice" if key in values else "has no value"
            raise ConfigError(f"source {name!r}: {key} {trouble}; expected {key}=VALUE once")
        values[key] = unquote(value)
    weight, streaming = values.pop("weight", None), values.pop("streaming", "false")
    if streaming not in ("true", "false"):
        raise ConfigError(f"source {name!r}: streaming is {streaming!r}, expected true or false")
    return Spelling(
        name=name,
        streaming=streaming == "true",
        weight=None if weight is None else _weight(name, weight),
        **values,
    )


def parse_all(sources: Sequence[str]) -> list[Spelling]:
    """Sources that are mixed; all of them have a weight, or none has.

    Raises:
        ConfigError: no source, one that cannot be, or weights for some only
    """
    if not sources:
        raise ConfigError(f"no source of speech is given; expected {KINDS}")
    spellings = [parse(source) for source in sources]
    if len({spelling.weight is None for spelling in spellings}) > 1:
        bare = next(spelling.name for spelling in spellings if spelling.weight is None)
        raise ConfigError(f"source {bare!r} has no weight and others have; give all sources one, or none")
    return spellings


def _weight(name: str, value: str) -> float:
    try:
        weight = float(value)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ConfigError(f"source {name!r}: weight is {value!r}, expected a positive number")
    return weight


def files(pattern: str) -> list[Path]:
    """The files that a name stands for, in the order of their names: {000..127} and {a,b} are written out first.

    Raises:
        DataError: there is no such file, or too many
    """
    if Path(pattern).is_file():
        return [Path(pattern)]
    found: list[Path] = []
    for name in _without_braces(pattern):
        matches = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name]  # noqa: PTH207
        matches = [match for match in matches if Path(match).is_file()]
        if not matches:
            is_there = Path(name).exists()
            trouble = "a folder, not a data set" if is_there else "no such file"
            which = "" if name == pattern else f" ({name})"
            raise DataError(f"source {pattern!r}: {trouble}{which}; expected {KINDS}")
        found += map(Path, matches)
        if len(found) > _MOST_FILES:
            raise DataError(f"source {pattern!r} stands for more than {_MOST_FILES} files; expected fewer")
    return found


def _without_braces(pattern: str) -> Iterator[str]:
    """Every name that a pattern with braces stands for."""
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    span = _RANGE.fullmatch(match[1])
    if span is None:
        choices = iter(match[1].split(","))
    else:
        first, last = int(span[1]), int(span[2])
        choices = (f"{number:0{len(span[1])}}" for number in range(first, last + 1))
    for choice in choices:
        yield from _without_braces(pattern[: match.start()] + choice + pattern[match.end() :])
