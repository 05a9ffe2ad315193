"""Speech in JSONL manifests: a line for each clip, with the name of its sound file; a bad line is a bad row."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json as pa_json
from jaxtyping import Float32, Int64

from ossicle.data.columns import Columns, find_columns
from ossicle.data.formats.parquet import seconds as column_seconds
from ossicle.data.source import Files, Rows, Utterance, checked, estimated_lengths, is_unicode
from ossicle.data.source_spec import Spelling
from ossicle.data.transcript import normalised
from ossicle.errors import DataError

_LINES_LOOKED_AT = 1_000
"""Well-formed lines at the beginning of a file whose keys are its columns."""
_BYTES_AT_ONCE = 16 * 2**20
_MAX_SECONDS = 1e9
_DEFAULT = Columns(audio="audio", text="text", duration=None)


@dataclass(frozen=True, kw_only=True)
class _Manifest:
    """One file as it was read."""

    columns: Columns
    spans: Int64[np.ndarray, "n 3"]
    """Number, first byte and number of bytes of each line that is not empty."""
    texts: list[pa.StringArray]
    seconds: Float32[np.ndarray, " n"]
    digest: str


class ManifestRows(Rows):
    """The rows of JSONL files; empty lines are none.

    Raises:
        DataError: a file that cannot be read, or without a column of sound or text
    """

    def __init__(self, files: Sequence[Path], spelling: Spelling) -> None:
        self._paths, self._files = tuple(files), Files()
        manifests = [_read(path, spelling) for path in self._paths]
        self._columns = [manifest.columns for manifest in manifests]
        self._spans = np.concatenate([manifest.spans for manifest in manifests])
        self._starts = np.cumsum([0, *(len(manifest.spans) for manifest in manifests)])
        texts = pa.chunked_array([chunk for manifest in manifests for chunk in manifest.texts], pa.string())
        self.texts = normalised(texts)
        self.lengths = estimated_lengths(
            self.texts, np.concatenate([manifest.seconds for manifest in manifests])
        )
        self.mark = "jsonl " + " ".join(manifest.digest for manifest in manifests)

    def name(self, row: int) -> str:
        """File and line, the first being line 1."""
        return f"{self._paths[self._file(row)]}, line {self._spans[row, 0]}"

    def stamp(self, row: int) -> str:
        """Size and time of the sound's file."""
        try:
            audio = self[row].audio
            assert isinstance(audio, Path)
            state = audio.stat()
        except (DataError, OSError):
            return ""
        return f"{state.st_size} {state.st_mtime_ns}"

    def __getitem__(self, row: int) -> Utterance:
        """One line."""
        name, number = self.name(row), self._file(row)
        path, columns = self._paths[number], self._columns[number]
        _, offset, n_bytes = self._spans[row].tolist()
        try:
            values = _values(self._files.read(path, offset, n_bytes))
        except (OSError, ValueError) as error:
            raise DataError(f"{name}: not JSON in UTF-8 ({error})") from error
        expected = f'{{"{columns.audio}": path, "{columns.text}": transcript}}'
        if not isinstance(values, dict):
            raise DataError(f"{name}: it holds {type(values).__name__}, expected {expected}")
        for column in (columns.audio, columns.text):
            if column not in values:
                raise DataError(f"{name}: it has no {column}, expected {expected}")
        return checked(name, path.parent, values[columns.audio], values[columns.text])

    def _file(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, side="right")) - 1


def _read(path: Path, spelling: Spelling) -> _Manifest:
    """All lines of a file, its texts with them."""
    digest = blake2b(digest_size=8)
    spans, texts, seconds = [np.zeros((0, 3), np.int64)], [], [np.zeros(0, np.float32)]
    try:
        columns = _columns(path, spelling)
        with path.open("rb") as file:
            offset, n_before = 0, 0
            while some := file.read(_BYTES_AT_ONCE):
                some += file.readline()  # to the end of the line
                found, n_lines = _spans(some)
                values = _read_fast(some, found, columns) or _read_one_by_one(some, found, columns)
                texts.append(values[0])
                seconds.append(values[1])
                spans.append(found + np.array([n_before, offset, 0]))
                digest.update(some)
                offset, n_before = offset + len(some), n_before + n_lines
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; expected JSON lines in UTF-8") from error
    return _Manifest(
        columns=columns,
        spans=np.concatenate(spans),
        texts=texts,
        seconds=np.concatenate(seconds),
        digest=digest.hexdigest(),
    )


def _lines(file: Any) -> Iterator[tuple[int, int, bytes]]:
    """Number, place and bytes of each line that is not empty."""
    offset = 0
    for number, line in enumerate(file, 1):
        if not line.isspace():
            yield number, offset, line
        offset += len(line)


def _spans(some: bytes) -> tuple[Int64[np.ndarray, "n 3"], int]:
    """Number, first byte and number of bytes of each line that is not empty; and how many lines there are."""
    letters = np.frombuffer(some, np.uint8)
    ends = np.flatnonzero(letters == ord("\n")) + 1
    if not some.endswith(b"\n"):
        ends = np.append(ends, len(some))
    starts = np.concatenate([[0], ends[:-1]])
    spans = np.stack([np.arange(1, len(ends) + 1), starts, ends - starts], axis=1)
    may_be_empty = np.flatnonzero(letters[starts] <= ord(" ")).tolist()
    empty = [line for line in may_be_empty if some[starts[line] : ends[line]].isspace()]
    return np.delete(spans, empty, axis=0), len(ends)


def _read_one_by_one(
    some: bytes, spans: Int64[np.ndarray, "n 3"], columns: Columns
) -> tuple[pa.Array, Float32[np.ndarray, " n"]]:
    """Texts and seconds of lines any of which may be bad."""
    rows = [_text_and_seconds(some[at : at + n], columns) for at, n in spans[:, 1:].tolist()]
    texts = pa.array([text for text, _ in rows], pa.string())
    return texts, np.array([duration for _, duration in rows], np.float32)


def _read_fast(
    some: bytes, spans: Int64[np.ndarray, "n 3"], columns: Columns
) -> tuple[pa.Array, Float32[np.ndarray, " n"]] | None:
    """Texts and seconds of lines that are all as they should be, ten times sooner; None where one is not."""
    letters = np.frombuffer(some, np.uint8)
    ends = spans[:, 1] + spans[:, 2] - 1
    ends -= letters[ends] == ord("\n")
    # Between a line that ends with a brace and one that begins with one, nothing can go on; so as many values as
    # lines are a value on each.
    if (letters[spans[:, 1]] != ord("{")).any() or (letters[ends] != ord("}")).any():
        return None
    fields = [(columns.text, pa.string()), *([(columns.duration, pa.float64())] if columns.duration else [])]
    wanted = pa_json.ParseOptions(explicit_schema=pa.schema(fields), unexpected_field_behavior="ignore")
    try:
        whole = pa_json.ReadOptions(use_threads=False, block_size=len(some) + 1)
        table = pa_json.read_json(pa.BufferReader(some), whole, wanted)
    except (pa.ArrowException, ValueError, OverflowError):
        return None
    if len(table) != len(spans):
        return None
    texts = table[columns.text].combine_chunks()
    durations = column_seconds(table, columns.duration)
    return texts, np.where(np.abs(durations) < _MAX_SECONDS, durations, np.float32("nan"))


def _columns(path: Path, spelling: Spelling) -> Columns:
    """The columns of a file by its first lines; where no line can be read, those that messages speak of."""
    kinds: dict[str, str] = {}
    with path.open("rb") as file:
        for *_, line in islice(_lines(file), _LINES_LOOKED_AT):
            try:
                values = _values(line)
            except ValueError:
                continue
            for key, value in values.items() if isinstance(values, dict) else ():
                kinds[key] = "".join(sorted({*kinds.get(key, ""), *_kind(value)}))
    if not kinds:
        return _DEFAULT
    return find_columns(str(path), kinds, spelling)


def _kind(value: object) -> str:
    if isinstance(value, str):
        return "at"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return "d" if is_number else "atd" if value is None else ""


def _values(line: bytes) -> Any:
    """What a line holds.

    Raises:
        ValueError: not JSON, or not UTF-8
    """
    try:
        return json.loads(line.decode())
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _text_and_seconds(line: bytes, columns: Columns) -> tuple[str | None, float]:
    try:
        values = _values(line)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        return None, np.nan
    text, duration = values.get(columns.text), values.get(columns.duration) if columns.duration else None
    is_number = isinstance(duration, int | float) and abs(duration) < _MAX_SECONDS
    return text if isinstance(text, str) and is_unicode(text) else None, float(
        duration
    ) if is_number else np.nan
