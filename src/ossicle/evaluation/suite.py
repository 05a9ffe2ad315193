"""The items of an evaluation, and how they are read from a file. Sound is located here, not decoded."""

import difflib
import io
import json
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from ossicle.audio.waveform import AudioSource
from ossicle.backbones.model_files import resolve_model_path
from ossicle.data.columns import find_duration_name
from ossicle.data.source import cut_stretch, is_valid_unicode
from ossicle.data.stretches import TimeColumns, find_time_columns, read_audio_stretch, read_stretch
from ossicle.errors import DataError
from ossicle.evaluation.text_normalization import normalize_text
from ossicle.text_encoding import decode_text

ITEM_KEYS = ("audio", "text", "instruction", "answer", "id", "group")
"""The keys of an item in a file; the first two are required."""
_MAX_SHOWN_CHARS = 300
"""Longest path that an error message quotes, in characters: a wrong value may be as long as a sound."""
POCKET_SUITE = "pocket"
"""The embedded suite's name: spoken questions in voices that the embedded training speech does not have."""
EMBEDDED_SUITES = {POCKET_SUITE: "pocket/suite", "pocket-manner": "pocket/manner"}
"""The package's own tables by suite name. In the second one, the answer also depends on the manner of speaking."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One spoken turn, its transcript and its expected answer."""

    id: str
    """Identifies the item in reports and errors; unique in its suite."""
    audio: AudioSource = field(repr=False)
    """The sound of the turn."""
    text: str
    """The true transcript of the sound."""
    instruction: str | None = None
    """Text that accompanies the sound, such as "Answer in Spanish."."""
    answer: str | None = None
    """The expected answer; without one, the LLM's own answer to the text is expected."""
    group: str | None = None
    """The row of the report that the item counts in, such as "unseen voices"."""
    rule: str = "exact"
    """How its answers are scored: the name of one of `ossicle.evaluation.scoring.RULES`."""
    rubric: Mapping[str, Any] = field(default_factory=dict)
    """What the rule needs in addition to the expected answer, as JSON values; the report keeps it."""
    choices: tuple[str, ...] = ()
    """Words of which the most likely one is the LLM's answer; empty if the LLM answers freely."""

    def __post_init__(self) -> None:
        """Refuses an item that could not be scored.

        Raises:
            DataError: a text without words, another field that is given but empty, or an open file, which could be
                read only once
        """
        if isinstance(self.audio, io.IOBase):
            raise DataError(f"item {self.id!r}: audio is an open file; give its path or its bytes")
        if not normalize_text(self.text):
            raise DataError(f"item {self.id!r}: text is {self.text!r}; give the words that are spoken")
        for name in ("id", "instruction", "answer", "group"):
            value = getattr(self, name)
            if value is not None and not value.strip():
                raise DataError(f"item {self.id!r}: {name} is empty; give it a text or leave it out")


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Items that are evaluated together, and how their overall number is computed."""

    name: str
    """The suite's name in the report."""
    items: tuple[Item, ...]
    overall: Literal["items", "groups"] = "items"
    """Whether the suite's overall number is that of all items, or the mean of its groups' numbers."""
    description: str = ""
    """One sentence for the report: the suite's content and source."""
    max_new_tokens: int | None = None
    """Longest answer, in tokens, if the suite sets it."""


def load_suite(name: str | Path) -> tuple[Item, ...]:
    """Returns the items of an embedded suite, "pocket" or "pocket-manner", or of a file with one item per line or row.

    A JSONL file has {"audio", "text"} and optionally the other `ITEM_KEYS` on each line, with audio paths relative to
    the file; blank lines are skipped. A parquet file has columns of these names, with audio as a struct {bytes, path}
    or as bytes. Other keys are ignored, unless one looks like a misspelled key of `ITEM_KEYS`: ignoring an "anwser"
    would change what is measured.

    Raises:
        DataError: a file that cannot be read or has no items; a line or row that is not a valid item, names sound that
            does not exist, or repeats an id. The message says which.
    """
    path = Path(
        resolve_model_path(EMBEDDED_SUITES[name]) + ".parquet"
        if isinstance(name, str) and name in EMBEDDED_SUITES
        else name
    )
    if not _is_file(path):
        raise DataError(
            f"{path}: no such suite file; give the path of a JSONL or parquet file, or {' or '.join(EMBEDDED_SUITES)}"
        )
    items: dict[str, Item] = {}
    readers = _iterate_parquet(path) if path.suffix == ".parquet" else _iterate_jsonl(path)
    for position, read_item in readers:
        try:
            item = read_item()
            if item.id in items:
                raise DataError(f"item id {item.id!r} is already used; give every item its own id")
        except DataError as error:
            raise DataError(f"{position}: {error}") from None
        items[item.id] = item
    if not items:
        raise DataError(
            f'{path}: no items; write one JSON object per line, such as {{"audio": "a.wav", "text": "..."}}'
        )
    return tuple(items.values())


def _iterate_jsonl(path: Path) -> Iterator[tuple[str, Callable[[], Item]]]:
    """Yields the position of each line that is not blank, and a function that reads its item."""
    for number, line in enumerate(_read_file(path).split("\n"), start=1):
        line = line.removeprefix("\ufeff")  # of files that were joined
        if line.strip():
            yield (
                f"{path}:{number}",
                partial(_parse_line, line, default_id=f"{number:04d}", folder=path.parent),
            )


def _iterate_parquet(path: Path) -> Iterator[tuple[str, Callable[[], Item]]]:
    """Yields the position of each row, and a function that reads its item."""
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        _check_keys(names)
        if missing := [key for key in ("audio", "text") if key not in names]:
            raise DataError(f"no column {missing[0]!r}; every suite needs audio and text")
        numbers = [*_find_times(names).names, find_duration_name(names)]
        rows = file.read(columns=[name for name in names if name in (*ITEM_KEYS, *numbers)]).to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = str(error).split("\n", 1)[0]
        raise DataError(f"{path}: not a parquet file that can be read ({reason})") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", partial(_parse_row, row, default_id=f"{number:04d}")


def _parse_row(fields: dict[str, Any], *, default_id: str) -> Item:
    """Returns the item of a row.

    Raises:
        DataError: the row is not a valid item; the caller adds the position
    """
    audio = fields["audio"]
    encoded = audio.get("bytes") if isinstance(audio, dict) else audio
    if not isinstance(encoded, bytes):
        raise DataError("audio holds no bytes; store the sound itself in the table")
    values = _select_values(fields, default_id)
    _check_texts(values, required=("text",))
    return Item(**values, audio=_cut(encoded, fields))


def validate_items(items: tuple[Item, ...]) -> None:
    """Refuses items that cannot be reported on.

    Raises:
        DataError: no items, or two with the same id
    """
    if not items:
        raise DataError("no items to evaluate; give at least one")
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise DataError(f"item id {item.id!r} is used twice; give every item its own id")
        seen.add(item.id)


def _read_file(path: Path) -> str:
    try:
        return decode_text(path.read_bytes())
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text at byte {error.start}; a suite is a JSONL file") from None
    except ValueError as error:
        raise DataError(f"{path}: not UTF-8 text: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _parse_line(line: str, *, default_id: str, folder: Path) -> Item:
    """Returns the item of a line.

    Raises:
        DataError: the line is not a valid item; the caller adds the position
    """
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"not JSON at column {error.colno} ({error.msg}); write one JSON object per line"
        ) from None
    except (ValueError, RecursionError) as error:  # a number of too many digits, or nested too deeply
        raise DataError(f"not JSON ({error}); write one JSON object per line") from None
    if not isinstance(fields, dict):
        raise DataError(
            f'a JSON object with "audio" and "text" is expected, this is {_describe_type(fields)}'
        )
    _check_fields(fields)
    audio = folder / fields["audio"]
    if not _is_file(audio):
        raise DataError(
            f"no audio file {str(audio)[:_MAX_SHOWN_CHARS]}; paths are relative to the suite's own folder"
        )
    return Item(**_select_values(fields, default_id), audio=_cut(audio, fields))


def _find_times(names: Iterable[str]) -> TimeColumns:
    return find_time_columns(name for name in names if name not in ITEM_KEYS)


def _cut(audio: Path | bytes, fields: Mapping[str, Any]) -> AudioSource:
    """Returns the stretch of a recording that a line or row names; without times, the whole."""
    stretch = read_stretch("its times", fields, _find_times(fields), find_duration_name(fields))
    return cut_stretch(audio, stretch or read_audio_stretch("its times", fields["audio"]))


def _select_values(fields: Mapping[str, Any], default_id: str) -> dict[str, Any]:
    """Returns the values of a line or row, without its sound."""
    values = {key: fields[key] for key in ITEM_KEYS if key != "audio" and fields.get(key) is not None}
    return {"id": default_id} | values


def _is_file(path: Path) -> bool:
    """Whether a path is a file; false also for an invalid path, such as one that is too long or has a null byte."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _check_fields(fields: dict[str, object]) -> None:
    _check_keys(fields)
    _check_texts(fields, required=("audio", "text"))


def _check_keys(keys: Iterable[str]) -> None:
    for key in keys:
        matches = difflib.get_close_matches(key.lower(), ITEM_KEYS, n=1, cutoff=0.81)
        if key not in ITEM_KEYS and matches:
            raise DataError(f"unknown key {key!r}; did you mean {matches[0]!r}?")


def _check_texts(fields: dict[str, object], *, required: Sequence[str]) -> None:
    for key in required:
        if fields.get(key) is None:
            raise DataError(f'no {key!r}; every item needs "audio" and "text"')
    for key in ITEM_KEYS:
        value = fields.get(key)
        if value is not None and not isinstance(value, str):
            raise DataError(f"{key} is {reprlib.repr(value)}, {_describe_type(value)}; write it as a string")
        if value is not None and not is_valid_unicode(value):
            raise DataError(
                f"{key} has half of a surrogate pair (\\ud800 to \\udfff): write the whole character"
            )


def _describe_type(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    is_number = isinstance(value, int | float)
    return names.get(type(value), "a number" if is_number else f"a {type(value).__name__}")
