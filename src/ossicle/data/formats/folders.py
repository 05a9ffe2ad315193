"""Folders of speech in the layouts that data sets are published in: which files in them a source is read from.

LJSpeech (metadata.csv), Hugging Face's audiofolder (metadata.csv, .jsonl or .parquet), Common Voice as Mozilla packs it
(clips/ and one .tsv a split, in a folder a language), and shards of webdataset.
"""

from collections.abc import Iterable
from pathlib import Path

from ossicle.data.source_spec import SourceSpec
from ossicle.errors import ConfigError

_METADATA = ("metadata.csv", "metadata.tsv", "metadata.jsonl", "metadata.parquet")
_OTHER_TABLES = ("clip_durations", "reported", "unvalidated_sentences", "validated_sentences", "times")
"""Tables of Common Voice that list no clips."""


def find_tables(folder: Path, spec: SourceSpec) -> list[Path]:
    """Returns the files that a folder's rows stand in, all of one form; none for a folder that `datasets` reads.

    Raises:
        ConfigError: the folder has several languages or splits and none is named, or not the named one
    """
    if (found := _find_metadata(folder)) is not None:
        _select(spec, "split", ["train"])
        return [found]
    by_split = {child.name: found for child in _list_folders(folder) if (found := _find_metadata(child))}
    if by_split:
        return [by_split[_select(spec, "split", by_split)]]
    languages = {child.name: child for child in _list_folders(folder) if (child / "clips").is_dir()}
    if languages:
        folder = languages[_select(spec, "config", languages)]
    if (folder / "clips").is_dir():
        tables = {path.stem: path for path in sorted(folder.glob("*.tsv")) if path.stem not in _OTHER_TABLES}
        if tables:
            return [tables[_select(spec, "split", tables)]]
    is_sharded = not any(folder.glob("*.parquet")) and not any(folder.glob("*.jsonl"))
    return sorted(folder.glob(f"{spec.split or ''}*.tar")) if is_sharded else []


def _find_metadata(folder: Path) -> Path | None:
    return next((folder / name for name in _METADATA if (folder / name).is_file()), None)


def _list_folders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir())


def _select(spec: SourceSpec, key: str, available: Iterable[str]) -> str:
    """Returns the requested split or language, or the only one."""
    names, requested = list(available), getattr(spec, key)
    if requested is None and len(names) == 1:
        return names[0]
    if requested in names:
        return requested
    problem = f"no {key} {requested!r}" if requested else f"several {key}s"
    raise ConfigError(f"source {spec.name!r} has {problem}; name one: ?{key}=... of {', '.join(names)}")
