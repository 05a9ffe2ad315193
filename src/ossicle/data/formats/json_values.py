"""Speech in JSON files that cannot be read line by line: an array of objects, or lines that are compressed."""

import math
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ossicle.data.columns import ColumnRole, Columns, find_columns
from ossicle.data.formats.jsonl import N_SAMPLED_LINES, value_roles
from ossicle.data.formats.lhotse import read_values
from ossicle.data.formats.listed import ListedRow
from ossicle.data.source_spec import SourceSpec
from ossicle.data.stretches import measure_row, read_stretch
from ossicle.errors import DataError

_START_BYTES = 10_000


def needs_values(path: Path) -> bool:
    """Whether a file of JSON is compressed or begins as an array, and hence cannot be read line by line.

    Raises:
        DataError: a .json file that is neither an array nor lines of objects
    """
    if path.suffix == ".gz":
        return True
    try:
        with path.open("rb") as file:
            start = file.read(_START_BYTES).lstrip(b"\xef\xbb\xbf \t\r\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if start.startswith(b"["):
        return True
    if path.suffix == ".json" and not _is_line_of_object(start):
        raise DataError(f"{path} is no list of rows; expected one JSON object a line, or an array of objects")
    return False


def _is_line_of_object(start: bytes) -> bool:
    line, newline, _ = start.partition(b"\n")
    return line.startswith(b"{") and (not newline or line.rstrip().endswith(b"}"))


def read_objects(path: Path, spec: SourceSpec) -> Iterator[ListedRow]:
    """Yields a row for each object of a file, by the same columns as lines of JSON have.

    Raises:
        DataError: the file cannot be read, or lacks a column of audio or text
    """
    roles: dict[str, ColumnRole] = {}
    for _, value in islice(read_values(path), N_SAMPLED_LINES):
        for key, item in value.items() if isinstance(value, dict) else ():
            roles[key] = roles.get(key, ColumnRole(0)) | value_roles(item)
    columns = find_columns(str(path), roles, spec)
    for number, value in read_values(path):
        yield _build_row(f"{path.name}, line {number}", value, columns)


def _build_row(name: str, value: Any, columns: Columns) -> ListedRow:
    if not isinstance(value, Mapping):
        return ListedRow(name=name, problem=f"it is {type(value).__name__}, expected a JSON object")
    audio, text = value.get(columns.audio), value.get(columns.text)
    try:
        stretch = read_stretch(name, value, columns.times, columns.duration)
    except DataError as error:
        return ListedRow(name=name, problem=str(error).removeprefix(f"{name}: "))
    end_s = None if stretch is None else stretch.end_s
    return ListedRow(
        name=name,
        audio=audio if isinstance(audio, str) else None,
        text=text if isinstance(text, str) else None,
        start_s=math.nan if stretch is None else stretch.start_s,
        end_s=math.nan if end_s is None else end_s,
        duration_s=measure_row(value, columns.times, columns.duration),
    )
