"""Rows of public benchmarks as their authors publish them; it knows tables, not what is asked of an ear.

Read through `datasets`, from the hub or from a folder in the hub's layout: parquet files, the configurations named in
the folder's README.md or being folders themselves. Nothing is decoded and nothing but the row in hand is kept.
"""

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ossicle.data.formats.huggingface import explain_errors, import_datasets
from ossicle.errors import DataError

_MAX_SHOWN = 80
"""Characters of a value that a message shows."""


def read_published_rows(
    place: str, *, config: str | None, split: str, columns: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Each row of a split as a dict of the columns asked for, in the published order; read as it is asked for.

    Args:
        place: hub id, with @REVISION if another branch is meant; or a local folder in the hub's layout
        config: the data set's configuration, None where it has only one
        columns: what is wanted of a row; a column of sound comes as {"bytes", "path"}, undecoded, and one of
            numbered classes as their names

    Raises:
        DataError: no such data set, configuration, split or column; rows that cannot be read; no row at all; or
            `datasets` is not installed. When the first row is asked for, as for every generator.
    """
    where = format_table_name(place, config, split)
    n_rows = 0
    missing = f"{where} is read with the datasets library, which is not installed: pip install 'ossicle[benchmarks]'"
    hints = {
        "local_hint": "; give the folder as it is on the hub",
        "hub_hint": "; name the folder that holds its data",
    }
    with import_datasets(missing) as datasets, explain_errors(where, place, **hints):
        stream = _stream(datasets, place, config, split)
        known = list(stream.features)
        if missing := [column for column in columns if column not in known]:
            raise DataError(
                f"{where} has no column {missing[0]!r}, only {', '.join(known)}; give it as it is published"
            )
        stream = stream.select_columns(list(columns))
        names: dict[str, Sequence[str]] = {}
        for column in columns:
            if isinstance(stream.features[column], datasets.Audio):
                stream = stream.cast_column(column, datasets.Audio(decode=False))
            elif isinstance(stream.features[column], datasets.ClassLabel):
                names[column] = stream.features[column].names
        rows = iter(stream)
        try:
            for row in rows:
                n_rows += 1
                yield {column: _named(row[column], names.get(column)) for column in columns}
        finally:
            if isinstance(rows, Generator):  # a stream's files are closed now, not when Python ends
                rows.close()
    if not n_rows:
        raise DataError(f"{where} has no rows; download it again")


def _named(value: Any, names: Sequence[str] | None) -> Any:
    return names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value


def format_table_name(place: str, config: str | None, split: str) -> str:
    """What messages call a table: "WillHeld/SD-QA (dev)", "a/folder (en_de, test)"."""
    return f"{place} ({', '.join(part for part in (config, split) if part)})"


def read_text(row: dict[str, Any], column: str, where: str) -> str:
    """A text of a row, without white space around it.

    Args:
        where: names the row in the message, such as "WillHeld/SD-QA (dev), row 3"

    Raises:
        DataError: no text, or an empty one
    """
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {column} is {_shown(value)}, expected a text; download the data again")
    return value.strip()


def read_audio(row: dict[str, Any], column: str, where: str, place: str) -> bytes | Path:
    """The encoded sound of a row: its bytes, or the file that its path names, also relative to the data's folder.

    Raises:
        DataError: neither bytes nor a file that is there
    """
    value = row[column]
    content, name = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if isinstance(content, bytes) and content:
        return content
    if isinstance(name, str) and name:
        file = Path(place) / name  # an absolute path stays what it is
        if file.is_file():
            return file
        raise DataError(f"{where}: {column} has no bytes, and there is no file {str(file)[:_MAX_SHOWN]}")
    raise DataError(f"{where}: {column} is {_shown(value)}, expected a sound; download the data again")


def _stream(datasets: ModuleType, place: str, config: str | None, split: str) -> Any:
    """A split as a stream with known features.

    Raises:
        DataError: no such configuration or split
    """
    options: dict[str, Any] = {}
    if "@" in place and not Path(place).exists():
        place, _, options["revision"] = place.partition("@")
    configs = datasets.get_dataset_config_names(place, **options)
    if config is not None and config not in configs and (Path(place) / config).is_dir():
        config, options["data_dir"] = None, config  # a folder that no README.md describes
    if config is not None and config not in configs:
        raise DataError(f"{place} has no configuration {config!r}, only {', '.join(map(str, configs))}")
    splits = datasets.get_dataset_split_names(place, config, **options)
    if split not in splits:
        raise DataError(f"{place} has no split {split!r}, only {', '.join(map(str, splits))}")
    stream = datasets.load_dataset(place, config, split=split, streaming=True, **options)
    return stream._resolve_features() if stream.features is None else stream


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _MAX_SHOWN else shown[:_MAX_SHOWN] + "..."
