"""Speech in parquet files: texts are read when a source is opened, audio row group by row group as it is needed."""

from collections import OrderedDict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float32

from ossicle.data.columns import ColumnRole, Columns, find_columns
from ossicle.data.source import Source, Utterance, build_utterance, estimate_durations, find_part
from ossicle.data.source_spec import SourceSpec
from ossicle.data.stretches import find_time_columns, read_stretch, seconds_per_unit
from ossicle.data.transcript import normalize_transcripts
from ossicle.errors import DataError

CACHE_BYTES = 256 * 2**20
"""Row groups that each process keeps in memory: the next row to be read is likely in one of them."""
_MAX_FOOTERS = 16
"""Files whose metadata stays in memory."""
_READ_ERRORS = (OSError, ValueError, pa.ArrowException)


class RowGroupCache:
    """The most recently read row groups, up to a number of bytes (at least one, however large)."""

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self.max_bytes = max_bytes
        self._tables: OrderedDict[tuple[Path, int, tuple[str, ...]], pa.Table] = OrderedDict()
        self._footers: OrderedDict[Path, pq.FileMetaData] = OrderedDict()

    def get(self, path: Path, group: int, columns: Sequence[str]) -> pa.Table:
        """Returns columns of a row group, from memory or from the file."""
        key = (path, group, tuple(columns))
        table = self._tables.pop(key, None)
        if table is None:
            table = self._read(path, group, list(columns))
            n_bytes = sum(other.nbytes for other in self._tables.values()) + table.nbytes
            while self._tables and n_bytes > self.max_bytes:
                n_bytes -= self._tables.popitem(last=False)[1].nbytes
        self._tables[key] = table
        return table

    def _read(self, path: Path, group: int, columns: list[str]) -> pa.Table:
        footer = self._footers.pop(path, None)
        with pq.ParquetFile(path, metadata=footer, pre_buffer=False) as file:
            self._footers[path] = file.metadata
            if len(self._footers) > _MAX_FOOTERS:
                self._footers.popitem(last=False)
            return file.read_row_group(group, columns=columns, use_threads=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"max_bytes": self.max_bytes, "_tables": OrderedDict(), "_footers": OrderedDict()}


class ParquetSource(Source):
    """The rows of parquet files.

    Raises:
        DataError: a file that is damaged or lacks a column
    """

    def __init__(
        self, paths: Sequence[Path], spec: SourceSpec, row_groups: RowGroupCache | None = None
    ) -> None:
        self._paths, self._row_groups = tuple(paths), row_groups or RowGroupCache()
        self._columns: list[Columns] = []
        texts, durations, audio_sizes, group_ids, starts, groups = [], [], [], [], [0], []
        is_small = sum(path.stat().st_size for path in self._paths if path.is_file()) <= CACHE_BYTES
        for file_index, path in enumerate(self._paths):
            with _explain_damage(path), pq.ParquetFile(path) as file:
                columns = find_columns(str(path), _column_roles(file.schema_arrow), spec)
                self._columns.append(columns)
                table = file.read([columns.text, *columns.numbers])
                texts += normalize_transcripts(table[columns.text]).chunks
                durations.append(read_durations(table, columns))
                reads_sizes = is_small and not columns.numbers
                audio_sizes.append(
                    _read_audio_sizes(file, columns.audio)
                    if reads_sizes
                    else np.full(len(table), np.nan, np.float32)
                )
                for group in range(file.metadata.num_row_groups):
                    metadata = file.metadata.row_group(group)
                    starts.append(starts[-1] + metadata.num_rows)
                    groups.append((file_index, group))
                    group_ids.append(f"{metadata.num_rows}:{metadata.total_byte_size}")
        self.texts = pa.chunked_array(texts, type=pa.string())
        self.durations_s = _scale_audio_sizes(
            estimate_durations(self.texts, np.concatenate(durations)), np.concatenate(audio_sizes)
        )
        self.label = f"parquet, {self._columns[0]}"
        self.content_id = "parquet " + " ".join(group_ids)
        self._starts = np.array(starts)
        self._groups = np.array(groups, np.int64).reshape(-1, 2)
        """File index and number within the file of each row group."""
        self._file_starts = {
            file_index: int(self._starts[index])
            for index, (file_index, group) in enumerate(groups)
            if group == 0
        }

    def row_name(self, row: int) -> str:
        """Returns file and row number, counted from 1."""
        file_index = int(self._groups[find_part(self._starts, row), 0])
        return f"{self._paths[file_index]}, row {row - self._file_starts[file_index] + 1}"

    def __getitem__(self, row: int) -> Utterance:
        """Reads one row, together with its row group."""
        name, index = self.row_name(row), find_part(self._starts, row)
        file_index, group = self._groups[index].tolist()
        columns, path = self._columns[file_index], self._paths[file_index]
        try:
            table = self._row_groups.get(path, group, columns.of_row)
            group_row = row - int(self._starts[index])
            values = {column: table[column][group_row].as_py() for column in columns.of_row}
        except _READ_ERRORS as error:
            raise DataError(
                f"{name}: its row group cannot be read: {_first_line(error)}; copy the file again"
            ) from error
        stretch = read_stretch(name, values, columns.times, columns.duration)
        return build_utterance(name, path.parent, values[columns.audio], values[columns.text], stretch)


@contextmanager
def _explain_damage(path: Path) -> Generator[None]:
    try:
        yield
    except _READ_ERRORS as error:
        raise DataError(
            f"{path} is damaged or not a parquet file: {_first_line(error)}; copy it again"
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).split("\n", 1)[0]


def _column_roles(schema: pa.Schema) -> dict[str, ColumnRole]:
    """Raises ValueError for two columns of a name."""
    if len(set(schema.names)) < len(schema.names):
        name = next(name for name in schema.names if schema.names.count(name) > 1)
        raise ValueError(f"it has two columns {name!r}")
    return {field.name: arrow_type_roles(field.type) for field in schema}


def arrow_type_roles(kind: pa.DataType) -> ColumnRole:
    """Returns the roles that a column of an arrow type can have."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        names = {field.name for field in kind.fields}
        if "bytes" in names:
            return ColumnRole.ONLY_AUDIO
        has_path, has_times = "path" in names, bool(find_time_columns(names).names)
        return (ColumnRole.AUDIO if has_path else ColumnRole(0)) | (
            ColumnRole.TIME if has_times else ColumnRole(0)
        )
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return ColumnRole.AUDIO | ColumnRole.TEXT | ColumnRole.TIME
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return ColumnRole.AUDIO
    return ColumnRole.DURATION | ColumnRole.TIME if _is_number(kind) else ColumnRole.TIME


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind)


def _read_audio_sizes(file: pq.ParquetFile, column: str) -> Float32[np.ndarray, " n"]:
    """Returns the bytes of each row's audio; NaN for separate files, and for all rows of a damaged column."""
    try:
        audio = file.read([column])[column]
    except _READ_ERRORS:  # reading the rows reports the damage
        return np.full(file.metadata.num_rows, np.nan, np.float32)
    if pa.types.is_struct(audio.type) and audio.type.get_field_index("bytes") >= 0:
        audio = pc.call_function("struct_field", [audio], pc.StructFieldOptions("bytes"))
    if not (pa.types.is_binary(audio.type) or pa.types.is_large_binary(audio.type)):
        return np.full(len(audio), np.nan, np.float32)
    n_bytes: Any = pc.cast(pc.call_function("binary_length", [audio]), pa.float32(), safe=False)
    return pc.fill_null(n_bytes, float("nan")).to_numpy().astype(np.float32)


def _scale_audio_sizes(
    durations_s: Float32[np.ndarray, " n"], audio_sizes: Float32[np.ndarray, " n"]
) -> Float32[np.ndarray, " n"]:
    """Estimates durations by the size of the audio where it is known: more reliable than by transcript length.

    The total duration of those rows stays the one estimated by their transcripts.
    """
    is_known = np.isfinite(audio_sizes) & (audio_sizes > 0)
    if not is_known.any():
        return durations_s
    seconds_per_byte = durations_s[is_known].sum() / audio_sizes[is_known].sum()
    return np.where(is_known, audio_sizes * seconds_per_byte, durations_s).astype(np.float32)


def read_durations(table: pa.Table, columns: Columns) -> Float32[np.ndarray, " n"]:
    """Returns the seconds of each row or of its stretch; NaN where they are not known."""
    durations_s = _read_seconds(table, columns.duration or columns.times.length)
    lengths_s = _read_seconds(table, columns.times.end)
    if columns.times.start is not None:
        lengths_s = lengths_s - np.nan_to_num(_read_seconds(table, columns.times.start))
    return np.where(np.isnan(lengths_s), durations_s, lengths_s)


def _read_seconds(table: pa.Table, column: str | None) -> Float32[np.ndarray, " n"]:
    """Returns a column of seconds; NaN where a value is missing, and everywhere if it is no column of numbers."""
    if column is None:
        return np.full(len(table), np.nan, np.float32)
    try:
        numbers: Any = pc.cast(table[column], pa.float32(), safe=False)
    except pa.ArrowException:  # of texts some of which are no numbers
        return np.full(len(table), np.nan, np.float32)
    seconds = pc.fill_null(numbers, float("nan")).to_numpy().astype(np.float32)
    return seconds * np.float32(seconds_per_unit(column))
