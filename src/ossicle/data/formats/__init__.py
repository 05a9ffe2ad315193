"""One module per format of speech data, and the function that picks the format by a source's name."""

import re
from collections.abc import Sequence
from pathlib import Path

from ossicle.data.formats.delimited import DelimitedSource
from ossicle.data.formats.folders import Tables, open_folder, open_lhotse, open_nemo_tarred
from ossicle.data.formats.huggingface import open_huggingface
from ossicle.data.formats.json_values import needs_values, read_objects
from ossicle.data.formats.jsonl import JsonlSource
from ossicle.data.formats.lhotse import detect_manifest
from ossicle.data.formats.listed import ListedSource
from ossicle.data.formats.packed import PackedSource, is_packed
from ossicle.data.formats.parquet import ParquetSource, RowGroupCache
from ossicle.data.formats.webdataset import WebDatasetSource
from ossicle.data.source import Source
from ossicle.data.source_spec import POCKET_SPEECH, SOURCE_KINDS, SourceSpec, expand_files
from ossicle.errors import DataError

_HUB_ID = re.compile(r"[\w-]+(\.[\w-]+)*/[\w-]+(\.[\w-]+)*")
_HUB_OPTIONS = ("config", "split", "revision", "streaming")
_JSON_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
_FILE_SUFFIXES = (".parquet", ".tar", ".tsv", ".csv", *_JSON_SUFFIXES)
_LISTED_OPTIONS = ("config", "revision", "streaming", "audio", "text", "duration", "start", "end")
"""Options of tables and hub ids, which layouts without columns do not take."""
_COMPRESSED_SUFFIXES = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


def open_source(spec: SourceSpec, row_groups: RowGroupCache, n_clips: int | None) -> Source:
    """Opens one source in the format that its name stands for; no audio is read yet.

    Args:
        row_groups: cache that all parquet sources of a dataset share
        n_clips: length of a stream that does not know its own

    Raises:
        ConfigError: an option that this format does not take
        DataError: there is no such source, or it cannot be read at all
    """
    name = spec.name
    if name == POCKET_SPEECH:
        from ossicle.backbones.model_files import (
            resolve_model_path,
        )  # imports transformers, which takes seconds

        spec.reject_options(*_HUB_OPTIONS)
        return ParquetSource([Path(resolve_model_path(name) + ".parquet")], spec, row_groups)
    path = Path(name).expanduser()
    if is_packed(path):
        spec.reject_options(*_HUB_OPTIONS, "audio", "text", "duration")
        return PackedSource(path)
    if name.endswith(_COMPRESSED_SUFFIXES):
        raise DataError(
            f"source {name!r} is a compressed tar, in which no clip can be found without reading everything before"
            " it; expected a .tar file: decompress it (compression hardly makes audio smaller); unpack that of Common"
            " Voice, and give the folder of the language"
        )
    if name.endswith(_FILE_SUFFIXES):
        spec.reject_options(*_HUB_OPTIONS)
        return _open_files(expand_files(str(path)), spec, row_groups)
    if path.is_dir() and (found := open_folder(path, spec)) is not None:
        return _open_found(found, spec, row_groups)
    if path.is_dir() or (_HUB_ID.fullmatch(name) and not path.exists()):
        return open_huggingface(spec, n_clips)
    problem = "this file is not a dataset" if path.exists() else "there is no such file"
    raise DataError(f"source {name!r}: {problem}; expected {SOURCE_KINDS}")


def _open_found(found: Source | Tables, spec: SourceSpec, row_groups: RowGroupCache) -> Source:
    """Opens what a folder holds."""
    if isinstance(found, Source):
        spec.reject_options(*_LISTED_OPTIONS)
        return found
    spec.reject_options("revision", "streaming")
    source = _open_files(found.files, spec, row_groups)
    source.label = f"{found.label}: {source.label}" if found.label else source.label
    return source


def _open_files(files: Sequence[Path], spec: SourceSpec, row_groups: RowGroupCache) -> Source:
    """Opens files of one form."""
    suffix = files[0].suffix
    if suffix == ".parquet":
        return ParquetSource(files, spec, row_groups)
    if files[0].name.endswith(_JSON_SUFFIXES):
        return _open_json(files, spec)
    return WebDatasetSource(files, spec) if suffix == ".tar" else DelimitedSource(files, spec)


def _open_json(files: Sequence[Path], spec: SourceSpec) -> Source:
    """Opens files of JSON: lines, compressed lines, an array, or a manifest of Lhotse's."""
    if (tarred := open_nemo_tarred(files, spec)) is not None:
        return tarred
    is_lhotse = all(map(detect_manifest, files))
    if not is_lhotse and not any(map(needs_values, files)):
        return JsonlSource(files, spec)
    if len({path.parent for path in files}) > 1:
        raise DataError(f"source {spec.name!r} has files in several folders; expected those of one folder")
    if is_lhotse:
        spec.reject_options(*_LISTED_OPTIONS)
        return open_lhotse(files)
    rows = (row for path in files for row in read_objects(path, spec))
    return ListedSource(files[0].parent, rows, label="JSON, one object a row")


def is_local_source(source: str) -> bool:
    """Whether a source lies on this computer, judged by its name alone."""
    name = source.partition("?")[0]
    return name == POCKET_SPEECH or name.endswith(_FILE_SUFFIXES) or Path(name).expanduser().is_dir()
