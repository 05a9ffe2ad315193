"""Speech in tables of text: TSV as Common Voice has it, CSV as Hugging Face and LJSpeech have it; one row a clip."""

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ossicle.data.columns import AUDIO_NAMES, ColumnRole, Columns, find_columns
from ossicle.data.formats.webdataset import BYTES_PER_SECOND
from ossicle.data.source import (
    Source,
    Utterance,
    build_utterance,
    estimate_durations,
    find_audio_version,
    find_part,
    is_valid_unicode,
)
from ossicle.data.source_spec import SourceSpec
from ossicle.data.stretches import measure_row, read_stretch
from ossicle.data.transcript import normalize_transcripts
from ossicle.errors import DataError
from ossicle.text_encoding import check_encoding

SUFFIXES = (".tsv", ".csv")
_START_BYTES = 200
_ALL_ROLES = ColumnRole.AUDIO | ColumnRole.TEXT | ColumnRole.DURATION | ColumnRole.TIME
_LJSPEECH_COLUMNS = ["file", "text"]
"""LJSpeech's table has no header, names its files without folder and extension, and has two transcripts of each."""
LJSPEECH = "table without a header, as LJSpeech has it"
_AUDIO_FOLDERS = (".", "clips", "wavs", "wav", "audio")
_AUDIO_SUFFIXES = ("", ".wav", ".mp3", ".flac")
_SOUNDS = tuple(f".{extension}" for extension in BYTES_PER_SECOND)


@dataclass(frozen=True)
class _Table:
    """A file's columns and the values of its rows, in the order of `Columns.of_row` and then the duration."""

    names: tuple[str, ...]
    columns: Columns
    lines: list[int]
    values: list[list[str] | None]
    """None for a row that is not UTF-8, or has another number of fields than the header."""
    problems: list[str | None]
    """Why a row has no values."""
    is_ljspeech: bool


class DelimitedSource(Source):
    """The rows of TSV and CSV files; paths are relative to the file, or to the folder `clips` or `wavs` beside it.

    Raises:
        DataError: a file that cannot be read, or lacks a column of audio or text
    """

    def __init__(self, paths: Sequence[Path], spec: SourceSpec) -> None:
        self._paths = tuple(paths)
        tables = [_read_table(path, spec) for path in self._paths]
        self._columns = [table.columns for table in tables]
        self._names = [table.names for table in tables]
        self.label = LJSPEECH if tables[0].is_ljspeech else f"table, {tables[0].columns}"
        self._starts = np.cumsum([0, *(len(table.lines) for table in tables)])
        self._lines = np.array([line for table in tables for line in table.lines], np.int64)
        rows = [values for table in tables for values in table.values]
        problems = [problem for table in tables for problem in table.problems]
        self._problems = {row: problem for row, problem in enumerate(problems) if problem}
        self._rows = pa.array(rows, pa.list_(pa.string()))
        texts = [
            values[table.names.index(table.columns.text)] if values else None
            for table in tables
            for values in table.values
        ]
        self.texts = normalize_transcripts(pa.chunked_array([pa.array(texts, pa.string())]))
        durations = [
            math.nan
            if values is None
            else measure_row(
                dict(zip(table.names, values, strict=True)), table.columns.times, table.columns.duration
            )
            for table in tables
            for values in table.values
        ]
        self.durations_s = estimate_durations(self.texts, np.array(durations, np.float32))
        digest = blake2b(digest_size=8)
        for values in rows:
            digest.update(repr(values).encode())
        self.content_id = f"table {digest.hexdigest()}"

    def row_name(self, row: int) -> str:
        """Returns file and line number, counted from 1."""
        return f"{self._paths[find_part(self._starts, row)]}, line {self._lines[row]}"

    def audio_version(self, row: int) -> str:
        """Returns size and modification time of the row's audio file."""
        return find_audio_version(self, row)

    def __getitem__(self, row: int) -> Utterance:
        """Reads one row."""
        name, file_index = self.row_name(row), find_part(self._starts, row)
        columns, names, folder = (
            self._columns[file_index],
            self._names[file_index],
            self._paths[file_index].parent,
        )
        fields = self._rows[row].as_py()
        if fields is None:
            raise DataError(f"{name}: {self._problems[row]}")
        values = dict(zip(names, fields, strict=True))
        stretch = read_stretch(name, values, columns.times, columns.duration)
        audio = _find_audio(folder, values[columns.audio])
        return build_utterance(name, folder, audio, values[columns.text], stretch)


def _find_audio(folder: Path, name: str) -> str:
    """Returns the path of an audio file that a table names without its folder or extension."""
    for suffix in _AUDIO_SUFFIXES:
        for subfolder in _AUDIO_FOLDERS:
            path = Path(subfolder) / f"{name}{suffix}"
            try:
                if name and (folder / path).is_file():
                    return str(path)
            except (OSError, ValueError):  # a string that cannot be a path
                return name
    return name


def _read_table(path: Path, spec: SourceSpec) -> _Table:
    """Reads the columns of a file that rows are made of."""
    line = 0
    try:
        with path.open("rb") as file:
            check_encoding(file.read(_START_BYTES))
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            first = file.readline()
            delimiter = next((character for character in "\t|;," if character in first), ",")
            header = next(csv.reader([first], delimiter=delimiter, skipinitialspace=True), [])
            header = [name.strip() for name in header]
            is_ljspeech = delimiter == "|" and not {name.lower() for name in header} & set(AUDIO_NAMES)
            if is_ljspeech:
                header = _LJSPEECH_COLUMNS
                file.seek(0)
            elif (sound := _find_sound(path.parent, header)) is not None:
                raise DataError(
                    f"{path} has no header: its first line names the audio file {sound}; put a line such as"
                    f" audio{delimiter}text with the names of its {len(header)} columns in front"
                )
            columns = find_columns(str(path), dict.fromkeys(header, _ALL_ROLES), spec)
            is_quoted = path.suffix == ".csv" and not is_ljspeech
            quoting = csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE
            dialect: dict[str, Any] = {
                "delimiter": delimiter,
                "quoting": quoting,
                "skipinitialspace": is_quoted,
            }
            n_before = 0 if is_ljspeech else 1
            lines, rows = [], []
            for line, fields in _read_records(file, dialect, n_before):
                if any(fields):
                    lines.append(line)
                    rows.append(_read_ljspeech(fields) if is_ljspeech else fields)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; expected a table in UTF-8") from error
    except (ValueError, csv.Error) as error:
        where = f" behind line {line}" if line else ""
        raise DataError(f"{path} cannot be read{where}: {error}") from error
    names = tuple(dict.fromkeys([*columns.of_row, *columns.numbers]))
    if repeated := next((name for name in names if header.count(name) > 1), None):
        raise DataError(f"{path} has several columns {repeated!r}: give each a name of its own")
    positions = [header.index(name) for name in names]
    advice = f": put quotes around a text with {delimiter!r} in it" if is_quoted else ""
    selected = [_select(fields, positions, header, advice) for fields in rows]
    return _Table(
        names=names,
        columns=columns,
        lines=lines,
        values=[values if isinstance(values, list) else None for values in selected],
        problems=[None if isinstance(values, list) else values for values in selected],
        is_ljspeech=is_ljspeech,
    )


def _read_records(
    file: Iterable[str], dialect: dict[str, Any], n_before: int
) -> Iterator[tuple[int, list[str]]]:
    """Yields the number of each record's last line, and its fields.

    A quote that is opened and never closed, as around speech that goes on in the next clip, would make one record of all
    lines up to another quote: such lines are read one by one, with their quotes as text.

    Args:
        n_before: lines before the first one
    """
    record: list[str] = []

    def collect() -> Iterator[str]:
        for text in file:
            record.append(text)
            yield text

    reader = csv.reader(collect(), **dialect)
    for fields in reader:
        line, parts = reader.line_num + n_before, list(record)
        record.clear()
        if len(parts) == 1 or _is_strict(parts, dialect):
            yield line, fields
            continue
        for number, part in enumerate(parts, line - len(parts) + 1):
            for fields in csv.reader([part], delimiter=dialect["delimiter"], quoting=csv.QUOTE_NONE):
                yield number, fields


def _is_strict(lines: Sequence[str], dialect: dict[str, Any]) -> bool:
    """Whether lines are one record whose quotes are all closed where a field ends."""
    try:
        return len(list(csv.reader(lines, **dialect, strict=True))) == 1
    except csv.Error:
        return False


def _read_ljspeech(fields: list[str]) -> list[str]:
    """Returns a clip's name and the normalized transcript, or the raw one where that is missing."""
    return [fields[0], next(filter(str.strip, reversed(fields[1:])), "")]


def _select(
    fields: list[str], positions: Sequence[int], header: Sequence[str], advice: str
) -> list[str] | str:
    """Returns the values of a row's columns, or why it has none.

    Args:
        advice: for a row of too many fields
    """
    if len(fields) != len(header):
        end = advice if len(fields) > len(header) else ""
        return f"the row has {len(fields)} fields, but the header {len(header)} ({', '.join(header)}){end}"
    values = [fields[position] for position in positions]
    return values if all(map(is_valid_unicode, values)) else "the row is not UTF-8: save the table as UTF-8"


def _find_sound(folder: Path, fields: Sequence[str]) -> str | None:
    """Returns the field of a table's first line that names an audio file, if the line is no header."""
    return next((name for name in fields if Path(_find_audio(folder, name)).suffix.lower() in _SOUNDS), None)
