"""Transcribed speech by name: which kind of source a spelling means, and its rows."""

import re
from collections.abc import Sequence
from pathlib import Path

from ossicle.data.dataset import Speech
from ossicle.data.formats.huggingface import open_data_set
from ossicle.data.formats.jsonl import ManifestRows
from ossicle.data.formats.packed import PackedRows, is_packed
from ossicle.data.formats.parquet import ParquetRows, RowGroups
from ossicle.data.formats.webdataset import TarRows
from ossicle.data.source import Rows
from ossicle.data.source_spec import KINDS, POCKET_SPEECH, Spelling, files, parse_all
from ossicle.errors import ConfigError, DataError

_HUB_ID = re.compile(r"[\w-]+(\.[\w-]+)*/[\w-]+(\.[\w-]+)*")
_ONLY_HUB = ("config", "split", "revision", "streaming")
_FILES = (".parquet", ".jsonl", ".tar")
_COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


def open_speech(spellings: Sequence[str], n_clips: int | None = None) -> Speech:
    """The rows of all sources, one source after the other; no sound is read yet.

    Args:
        spellings: of each source, as docs/data.md tells
        n_clips: only the first so many of all rows

    Raises:
        ConfigError: a spelling that cannot be, or a number of clips that is none
        DataError: no such source, one that cannot be read at all, or one without rows
    """
    if n_clips is not None and n_clips < 1:
        raise ConfigError(f"the number of clips is {n_clips}, expected at least 1, or none for all")
    groups = RowGroups()
    sources = []
    for spelling in parse_all(spellings):
        rows = _open(spelling, groups, n_clips)
        if not len(rows):
            raise DataError(f"source {spelling.name!r} holds no utterances; expected at least one")
        sources.append((rows, spelling.weight))
    return Speech(sources, n_clips)


def is_here(source: str) -> bool:
    """Whether a source lies on this computer, as far as its name tells."""
    name = source.partition("?")[0]
    return name == POCKET_SPEECH or Path(name).suffix in _FILES or Path(name).expanduser().is_dir()


def _open(spelling: Spelling, groups: RowGroups, n_clips: int | None) -> Rows:
    name = spelling.name
    if name == POCKET_SPEECH:
        from ossicle.backbones.model_files import resolve_model_path

        spelling.refuse(*_ONLY_HUB)
        return ParquetRows([Path(resolve_model_path(name) + ".parquet")], spelling, groups)
    path = Path(name).expanduser()
    if is_packed(path):
        spelling.refuse(*_ONLY_HUB, "audio", "text", "duration")
        return PackedRows(path)
    if name.endswith(_COMPRESSED):
        raise DataError(
            f"source {name!r} is a compressed tar, in which no clip can be found without reading all before it;"
            " expected a .tar: decompress it (sound is hardly smaller compressed)"
        )
    suffix = path.suffix
    if suffix in _FILES:
        spelling.refuse(*_ONLY_HUB)
        found = files(str(path))
        if suffix == ".parquet":
            return ParquetRows(found, spelling, groups)
        return ManifestRows(found, spelling) if suffix == ".jsonl" else TarRows(found, spelling)
    if path.is_dir() or (_HUB_ID.fullmatch(name) and not path.exists()):
        return open_data_set(spelling, n_clips)
    trouble = "not a data set" if path.exists() else "no such file"
    raise DataError(f"source {name!r}: {trouble}; expected {KINDS}")
