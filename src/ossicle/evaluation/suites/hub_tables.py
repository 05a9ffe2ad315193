"""Reads rows of public benchmarks as their authors publish them.

They are read through `datasets`, from the hub or from a folder in the hub's layout: parquet files, with configurations
named in the folder's README.md or by its subfolders. No sound is decoded, and one row is in memory at a time.
"""

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ossicle.audio.excerpt import AudioExcerpt
from ossicle.data.columns import find_duration_name
from ossicle.data.formats.huggingface import explain_errors, import_datasets
from ossicle.data.source import cut_stretch
from ossicle.data.stretches import find_time_columns, read_stretch
from ossicle.errors import DataError

_MAX_SHOWN_CHARS = 80
"""Longest part of a value that an error message quotes, in characters."""


def read_published_rows(
    source: str, *, config: str | None, split: str, columns: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yields each row of a split, in the published order, as a dict of the requested columns. Rows are read lazily.

    Args:
        source: hub id, with @REVISION for another branch; or a local folder in the hub's layout
        config: the dataset's configuration, None if it has only one
        columns: the requested columns; sound comes as {"bytes", "path"}, undecoded, and class numbers as their names.
            The times of stretches of longer recordings come too, where the table has any

    Raises:
        DataError: no such dataset, configuration, split or column; rows that cannot be read; no row at all; or
            `datasets` is not installed. It is raised when the first row is requested, as by every generator.
    """
    table = format_table_name(source, config, split)
    n_rows = 0
    not_installed = (
        f"{table} is read with the datasets library, which is not installed:"
        " pip install 'ossicle[benchmarks]'"
    )
    hints = {
        "local_hint": "; give the folder as it is on the hub",
        "hub_hint": "; name the folder that holds its data",
    }
    with import_datasets(not_installed) as datasets, explain_errors(table, source, **hints):
        stream = _open_stream(datasets, source, config, split)
        known = list(stream.features)
        if missing := [column for column in columns if column not in known]:
            raise DataError(
                f"{table} has no column {missing[0]!r}, only {', '.join(known)}; give the published data unchanged"
            )
        others = [name for name in known if name not in columns]
        times = find_time_columns(others).names
        columns = [*columns, *times, *filter(None, [find_duration_name(others) if times else None])]
        stream = stream.select_columns(columns)
        class_names: dict[str, Sequence[str]] = {}
        for column in columns:
            if isinstance(stream.features[column], datasets.Audio):
                stream = stream.cast_column(column, datasets.Audio(decode=False))
            elif isinstance(stream.features[column], datasets.ClassLabel):
                class_names[column] = stream.features[column].names
        rows = iter(stream)
        try:
            for row in rows:
                n_rows += 1
                yield {column: _to_class_name(row[column], class_names.get(column)) for column in columns}
        finally:
            if isinstance(rows, Generator):  # closes the stream's files now, not when Python ends
                rows.close()
    if not n_rows:
        raise DataError(f"{table} has no rows; download it again")


def _to_class_name(value: Any, names: Sequence[str] | None) -> Any:
    return names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value


def format_table_name(source: str, config: str | None, split: str) -> str:
    """Returns a table's name in error messages: "WillHeld/SD-QA (dev)", "a/folder (en_de, test)"."""
    return f"{source} ({', '.join(part for part in (config, split) if part)})"


def read_text(row: dict[str, Any], column: str, row_name: str) -> str:
    """Returns a text of a row, without white space around it.

    Args:
        row_name: names the row in the error message, such as "WillHeld/SD-QA (dev), row 3"

    Raises:
        DataError: no text, or an empty one
    """
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"{row_name}: {column} is {_shorten(value)}, expected a text; download the data again"
        )
    return value.strip()


def read_audio(row: dict[str, Any], column: str, row_name: str, source: str) -> bytes | Path | AudioExcerpt:
    """Returns the encoded sound of a row, or the stretch of it that the row's times name.

    Raises:
        DataError: neither bytes nor an existing file, or times that are none
    """
    times = find_time_columns(name for name in row if name != column)
    return cut_stretch(
        _read_recording(row, column, row_name, source),
        read_stretch(row_name, row, times, find_duration_name(row)),
    )


def _read_recording(row: dict[str, Any], column: str, row_name: str, source: str) -> bytes | Path:
    """Returns the bytes of a row's sound, or the file of its path, which may be relative to `source`."""
    value = row[column]
    content, name = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if isinstance(content, bytes) and content:
        return content
    if isinstance(name, str) and name:
        file = Path(source) / name  # an absolute path replaces the folder
        if file.is_file():
            return file
        raise DataError(
            f"{row_name}: {column} has no bytes, and there is no file {str(file)[:_MAX_SHOWN_CHARS]};"
            " download the data again"
        )
    raise DataError(f"{row_name}: {column} is {_shorten(value)}, expected a sound; download the data again")


def _open_stream(datasets: ModuleType, source: str, config: str | None, split: str) -> Any:
    """Returns a split as a stream with known features.

    Raises:
        DataError: no such configuration or split
    """
    options: dict[str, Any] = {}
    if "@" in source and not Path(source).exists():
        source, _, options["revision"] = source.partition("@")
    configs = datasets.get_dataset_config_names(source, **options)
    if config is not None and config not in configs and (Path(source) / config).is_dir():
        config, options["data_dir"] = None, config  # a folder that no README.md describes
    if config is not None and config not in configs:
        raise DataError(f"{source} has no configuration {config!r}, only {', '.join(map(str, configs))}")
    splits = datasets.get_dataset_split_names(source, config, **options)
    if split not in splits:
        raise DataError(f"{source} has no split {split!r}, only {', '.join(map(str, splits))}")
    stream = datasets.load_dataset(source, config, split=split, streaming=True, **options)
    return stream._resolve_features() if stream.features is None else stream


def _shorten(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _MAX_SHOWN_CHARS else shown[:_MAX_SHOWN_CHARS] + "..."
