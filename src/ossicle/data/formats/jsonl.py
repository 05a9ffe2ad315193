"""Speech in JSONL files: each line has a transcript and the path of an audio file; an invalid line is an invalid row."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.json as pa_json
from jaxtyping import Float32, Int64

from ossicle.data.columns import ColumnRole, Columns, find_columns, find_duration_name
from ossicle.data.formats.file_reader import FileReader
from ossicle.data.formats.parquet import read_durations
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
from ossicle.data.stretches import (
    MAX_SECONDS,
    TimeColumns,
    find_time_columns,
    measure_row,
    read_stretch,
)
from ossicle.data.transcript import normalize_transcripts
from ossicle.errors import DataError
from ossicle.text_encoding import check_encoding, count_mark_bytes, decode_text

N_SAMPLED_LINES = 1_000
"""Lines at the beginning of a file whose keys count as its columns."""
_START_BYTES = 200
_NEMO_AUDIO = "audio_filepath"
_CHUNK_BYTES = 16 * 2**20
_DEFAULT_COLUMNS = Columns(audio="audio", text="text", duration=None)


@dataclass(frozen=True, kw_only=True)
class _JsonlFile:
    """Everything that opening a file reads from it."""

    columns: Columns
    spans: Int64[np.ndarray, "n 3"]
    """Line number, first byte and number of bytes of each line that is not empty."""
    texts: list[pa.StringArray]
    durations_s: Float32[np.ndarray, " n"]
    digest: str


class JsonlSource(Source):
    """The rows of JSONL files; empty lines are skipped.

    Raises:
        DataError: a file that cannot be read, or lacks a column of audio or text
    """

    def __init__(self, paths: Sequence[Path], spec: SourceSpec) -> None:
        self._paths, self._spec, self._reader = tuple(paths), spec, FileReader()
        files = [_read_file(path, spec) for path in self._paths]
        self.label = f"{'NeMo manifest' if files[0].columns.audio == _NEMO_AUDIO else 'JSON lines'}, {files[0].columns}"
        self._columns = [file.columns for file in files]
        self._spans = np.concatenate([file.spans for file in files])
        self._starts = np.cumsum([0, *(len(file.spans) for file in files)])
        texts = pa.chunked_array([chunk for file in files for chunk in file.texts], pa.string())
        self.texts = normalize_transcripts(texts)
        self.durations_s = estimate_durations(
            self.texts, np.concatenate([file.durations_s for file in files])
        )
        self.content_id = "jsonl " + " ".join(file.digest for file in files)

    def row_name(self, row: int) -> str:
        """Returns file and line number, counted from 1."""
        return f"{self._paths[find_part(self._starts, row)]}, line {self._spans[row, 0]}"

    def audio_version(self, row: int) -> str:
        """Returns size and modification time of the row's audio file."""
        return find_audio_version(self, row)

    def __getitem__(self, row: int) -> Utterance:
        """Reads one line."""
        name, file_index = self.row_name(row), find_part(self._starts, row)
        path, columns = self._paths[file_index], self._columns[file_index]
        _, offset, n_bytes = self._spans[row].tolist()
        try:
            values = _parse_line(self._reader.read(path, offset, n_bytes))
        except (OSError, ValueError) as error:
            raise DataError(f"{name}: the line is not JSON in UTF-8 ({error})") from error
        expected = f'{{"{columns.audio}": path, "{columns.text}": transcript}}'
        if not isinstance(values, dict):
            raise DataError(f"{name}: the line holds {type(values).__name__}, expected {expected}")
        for column in (columns.audio, columns.text):
            if column not in values:
                raise DataError(f"{name}: the line has no {column}, expected {expected}")
        duration = columns.duration or find_duration_name(values)
        stretch = read_stretch(name, values, self._find_times(values, columns), duration)
        return build_utterance(name, path.parent, values[columns.audio], values[columns.text], stretch)

    def _find_times(self, values: dict[str, Any], columns: Columns) -> TimeColumns:
        """Returns the columns of a line's stretch: not every line need have them."""
        names = [name for name in values if name not in (columns.audio, columns.text, columns.duration)]
        return find_time_columns(names, self._spec.start, self._spec.end)


def _read_file(path: Path, spec: SourceSpec) -> _JsonlFile:
    """Reads all lines of a file, chunk by chunk."""
    digest = blake2b(digest_size=8)
    spans, texts, durations = [np.zeros((0, 3), np.int64)], [], [np.zeros(0, np.float32)]
    try:
        columns = _find_file_columns(path, spec)
        with path.open("rb") as file:
            start = file.read(_START_BYTES)
            check_encoding(start)
            offset, n_lines_before = count_mark_bytes(start), 0
            file.seek(offset)
            while chunk := file.read(_CHUNK_BYTES):
                chunk += file.readline()  # to the end of the line
                chunk_spans, n_lines = _find_lines(chunk)
                values = _parse_with_arrow(chunk, chunk_spans, columns) or _parse_line_by_line(
                    chunk, chunk_spans, columns
                )
                texts.append(values[0])
                durations.append(values[1])
                spans.append(chunk_spans + np.array([n_lines_before, offset, 0]))
                digest.update(chunk)
                offset, n_lines_before = offset + len(chunk), n_lines_before + n_lines
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; expected JSON lines in UTF-8") from error
    except ValueError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return _JsonlFile(
        columns=columns,
        spans=np.concatenate(spans),
        texts=texts,
        durations_s=np.concatenate(durations),
        digest=digest.hexdigest(),
    )


def _find_lines(chunk: bytes) -> tuple[Int64[np.ndarray, "n 3"], int]:
    """Finds the lines of a chunk.

    Returns:
        line number, first byte and number of bytes of each line that is not empty; and the number of all lines
    """
    characters = np.frombuffer(chunk, np.uint8)
    ends = np.flatnonzero(characters == ord("\n")) + 1
    if not chunk.endswith(b"\n"):
        ends = np.append(ends, len(chunk))
    starts = np.concatenate([[0], ends[:-1]])
    spans = np.stack([np.arange(1, len(ends) + 1), starts, ends - starts], axis=1)
    candidates = np.flatnonzero(characters[starts] <= ord(" ")).tolist()
    empty = [line for line in candidates if chunk[starts[line] : ends[line]].isspace()]
    return np.delete(spans, empty, axis=0), len(ends)


def _parse_line_by_line(
    chunk: bytes, spans: Int64[np.ndarray, "n 3"], columns: Columns
) -> tuple[pa.Array, Float32[np.ndarray, " n"]]:
    """Returns texts and seconds of lines any of which may be invalid."""
    rows = [
        _parse_text_and_duration(chunk[start : start + n_bytes], columns)
        for start, n_bytes in spans[:, 1:].tolist()
    ]
    texts = pa.array([text for text, _ in rows], pa.string())
    return texts, np.array([duration for _, duration in rows], np.float32)


def _parse_with_arrow(
    chunk: bytes, spans: Int64[np.ndarray, "n 3"], columns: Columns
) -> tuple[pa.Array, Float32[np.ndarray, " n"]] | None:
    """Returns texts and seconds of lines that are all valid, ten times as fast; None where a line is invalid."""
    characters = np.frombuffer(chunk, np.uint8)
    ends = spans[:, 1] + spans[:, 2] - 1
    ends -= characters[ends] == ord("\n")
    # No JSON value can continue from a line that ends with a brace to one that begins with a brace; so if there are
    # as many values as lines, each line is one value.
    if (characters[spans[:, 1]] != ord("{")).any() or (characters[ends] != ord("}")).any():
        return None
    if columns.times.pair:
        return None
    fields = [(columns.text, pa.string()), *((name, pa.float64()) for name in columns.numbers)]
    parse_options = pa_json.ParseOptions(
        explicit_schema=pa.schema(fields), unexpected_field_behavior="ignore"
    )
    try:
        read_options = pa_json.ReadOptions(use_threads=False, block_size=len(chunk) + 1)
        table = pa_json.read_json(pa.BufferReader(chunk), read_options, parse_options)
    except (pa.ArrowException, ValueError, OverflowError):
        return None
    if len(table) != len(spans):
        return None
    texts = table[columns.text].combine_chunks()
    durations = read_durations(table, columns)
    return texts, np.where(np.abs(durations) < MAX_SECONDS, durations, np.float32("nan"))


def _find_file_columns(path: Path, spec: SourceSpec) -> Columns:
    """Finds the columns of a file by its first lines; returns default names, for messages, where no line is valid."""
    roles: dict[str, ColumnRole] = {}
    with path.open("rb") as file:
        for line in islice(_iterate_lines(file), N_SAMPLED_LINES):
            try:
                values = _parse_line(line)
            except ValueError:
                continue
            for key, value in values.items() if isinstance(values, dict) else ():
                roles[key] = roles.get(key, ColumnRole(0)) | value_roles(value)
    if not roles:
        return _DEFAULT_COLUMNS
    return find_columns(str(path), roles, spec)


def _iterate_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yields the lines that are not empty."""
    return (line for line in file if not line.isspace())


def value_roles(value: object) -> ColumnRole:
    """Returns the roles that a column with this value can have; null allows all."""
    if value is None:
        return ColumnRole.AUDIO | ColumnRole.TEXT | ColumnRole.DURATION | ColumnRole.TIME
    if isinstance(value, str):
        return ColumnRole.AUDIO | ColumnRole.TEXT | ColumnRole.TIME
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return ColumnRole.DURATION | ColumnRole.TIME if is_number else ColumnRole.TIME


def _parse_line(line: bytes) -> Any:
    """Returns the JSON value of a line.

    Raises:
        ValueError: the line is not JSON, or not UTF-8
    """
    try:
        return json.loads(decode_text(line))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _parse_text_and_duration(line: bytes, columns: Columns) -> tuple[str | None, float]:
    """Returns text and seconds of a line; None and NaN where they are missing or invalid."""
    try:
        values = _parse_line(line)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        return None, np.nan
    text = values.get(columns.text)
    is_valid_text = isinstance(text, str) and is_valid_unicode(text)
    return text if is_valid_text else None, measure_row(values, columns.times, columns.duration)
