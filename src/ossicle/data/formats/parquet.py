"""Speech in parquet files: texts at once, sound row group by row group when it is asked for."""

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

from ossicle.data.columns import Columns, find_columns
from ossicle.data.source import Rows, Utterance, checked, estimated_lengths
from ossicle.data.source_spec import Spelling
from ossicle.data.transcript import normalised
from ossicle.errors import DataError

CACHED_BYTES = 256 * 2**20
"""Row groups that each process keeps: neighbours of a row are likely asked for next."""
_MOST_FOOTERS = 16
"""Files whose row groups need not be looked up again."""
_DAMAGE = (OSError, ValueError, pa.ArrowException)


class RowGroups:
    """Row groups that were read last, up to a number of bytes (one is kept however large)."""

    def __init__(self, max_bytes: int = CACHED_BYTES) -> None:
        self.max_bytes = max_bytes
        self._kept: OrderedDict[tuple[Path, int], pa.Table] = OrderedDict()
        self._footers: OrderedDict[Path, pq.FileMetaData] = OrderedDict()

    def get(self, path: Path, group: int, columns: Sequence[str]) -> pa.Table:
        """A row group's columns."""
        table = self._kept.pop((path, group), None)
        if table is None:
            table = self._read(path, group, list(columns))
            n_bytes = sum(other.nbytes for other in self._kept.values()) + table.nbytes
            while self._kept and n_bytes > self.max_bytes:
                n_bytes -= self._kept.popitem(last=False)[1].nbytes
        self._kept[path, group] = table
        return table

    def _read(self, path: Path, group: int, columns: list[str]) -> pa.Table:
        footer = self._footers.pop(path, None)
        with pq.ParquetFile(path, metadata=footer, pre_buffer=False) as file:
            self._footers[path] = file.metadata
            if len(self._footers) > _MOST_FOOTERS:
                self._footers.popitem(last=False)
            return file.read_row_group(group, columns=columns, use_threads=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"max_bytes": self.max_bytes, "_kept": OrderedDict(), "_footers": OrderedDict()}


class ParquetRows(Rows):
    """The rows of parquet files with the same columns.

    Raises:
        DataError: a file that is damaged, or has other columns
    """

    def __init__(self, files: Sequence[Path], spelling: Spelling, groups: RowGroups | None = None) -> None:
        self._files, self._groups = tuple(files), groups or RowGroups()
        self._columns: list[Columns] = []
        texts, durations, sizes, marks, ends, owners = [], [], [], [], [0], []
        is_small = sum(path.stat().st_size for path in self._files if path.is_file()) <= CACHED_BYTES
        for number, path in enumerate(self._files):
            with _read(path), pq.ParquetFile(path) as file:
                columns = find_columns(str(path), _kinds(file.schema_arrow), spelling)
                self._columns.append(columns)
                table = file.read([columns.text, *filter(None, [columns.duration])])
                texts += normalised(table[columns.text]).chunks
                durations.append(seconds(table, columns.duration))
                is_read = is_small and columns.duration is None
                sizes.append(
                    _sizes(file, columns.audio) if is_read else np.full(len(table), np.nan, np.float32)
                )
                for group in range(file.metadata.num_row_groups):
                    about = file.metadata.row_group(group)
                    ends.append(ends[-1] + about.num_rows)
                    owners.append((number, group))
                    marks.append(f"{about.num_rows}:{about.total_byte_size}")
        self.texts = pa.chunked_array(texts, type=pa.string())
        self.lengths = _by_size(
            estimated_lengths(self.texts, np.concatenate(durations)), np.concatenate(sizes)
        )
        self.mark = "parquet " + " ".join(marks)
        self._ends = np.array(ends)
        self._owners = np.array(owners, np.int64).reshape(-1, 2)
        self._file_starts = {
            number: int(self._ends[place]) for place, (number, group) in enumerate(owners) if group == 0
        }

    def name(self, row: int) -> str:
        """File and row, the first being row 1."""
        number = int(self._owners[self._group(row), 0])
        return f"{self._files[number]}, row {row - self._file_starts[number] + 1}"

    def __getitem__(self, row: int) -> Utterance:
        """One row, read with its row group."""
        name, place = self.name(row), self._group(row)
        number, group = self._owners[place].tolist()
        columns, path = self._columns[number], self._files[number]
        try:
            table = self._groups.get(path, group, [columns.audio, columns.text])
            within = row - int(self._ends[place])
            audio, text = table[columns.audio][within].as_py(), table[columns.text][within].as_py()
        except _DAMAGE as error:
            reason = str(error).split("\n", 1)[0]
            raise DataError(f"{name}: its row group cannot be read: {reason}; copy the file again") from error
        return checked(name, path.parent, audio, text)

    def _group(self, row: int) -> int:
        return int(np.searchsorted(self._ends, row, side="right")) - 1


@contextmanager
def _read(path: Path) -> Generator[None]:
    try:
        yield
    except _DAMAGE as error:
        reason = str(error).split("\n", 1)[0]
        raise DataError(f"{path} is damaged or not a parquet file: {reason}; copy it again") from error


def _kinds(schema: pa.Schema) -> dict[str, str]:
    return {name: arrow_kind(schema.field(name).type) for name in schema.names}


def arrow_kind(kind: pa.DataType) -> str:
    """What a column of a type can be, in the letters of `find_columns`."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        names = {field.name for field in kind.fields}
        return "aS" if "bytes" in names else "a" if "path" in names else ""
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "at"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return "a"
    return "d" if pa.types.is_floating(kind) or pa.types.is_integer(kind) else ""


def _sizes(file: pq.ParquetFile, column: str) -> Float32[np.ndarray, " n"]:
    """Bytes of each row's sound, NaN where it is a file of its own, and for all of a damaged one."""
    try:
        sounds = file.read([column])[column]
    except _DAMAGE:  # its rows will be met, and named
        return np.full(file.metadata.num_rows, np.nan, np.float32)
    if pa.types.is_struct(sounds.type):
        has_bytes = sounds.type.get_field_index("bytes") >= 0
        sounds = (
            pc.call_function("struct_field", [sounds], pc.StructFieldOptions("bytes"))
            if has_bytes
            else sounds
        )
    if not (pa.types.is_binary(sounds.type) or pa.types.is_large_binary(sounds.type)):
        return np.full(len(sounds), np.nan, np.float32)
    n_bytes: Any = pc.cast(pc.call_function("binary_length", [sounds]), pa.float32(), safe=False)
    return pc.fill_null(n_bytes, float("nan")).to_numpy().astype(np.float32)


def _by_size(
    estimated: Float32[np.ndarray, " n"], sizes: Float32[np.ndarray, " n"]
) -> Float32[np.ndarray, " n"]:
    """Lengths by the sound's bytes where they are known: these tell better than a transcript what is long."""
    known = np.isfinite(sizes) & (sizes > 0)
    if not known.any():
        return estimated
    per_byte = estimated[known].sum() / sizes[known].sum()
    return np.where(known, sizes * per_byte, estimated).astype(np.float32)


def seconds(table: pa.Table, column: str | None) -> Float32[np.ndarray, " n"]:
    """A column of seconds; NaN where there is none."""
    if column is None:
        return np.full(len(table), np.nan, np.float32)
    numbers: Any = pc.cast(table[column], pa.float32(), safe=False)
    return pc.fill_null(numbers, float("nan")).to_numpy().astype(np.float32)
