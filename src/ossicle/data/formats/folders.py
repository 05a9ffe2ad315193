"""Folders of speech in the layouts that data sets are published in: which layout one has, and what it lacks to have it.

Tables (LJSpeech, Hugging Face's audiofolder, Common Voice as Mozilla packs it), shards of webdataset, Kaldi's data
folders, Lhotse's manifests, NeMo's manifests, the trees of LibriSpeech, Multilingual LibriSpeech and VCTK, and pairs of
an audio file and a text. A folder whose subfolders have a layout each is one with splits.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ossicle.data.formats import file_trees, kaldi, lhotse
from ossicle.data.formats.json_values import read_objects
from ossicle.data.formats.listed import ListedSource
from ossicle.data.formats.tarred import NEMO_TARRED, TarredSource, find_nemo_tarred, find_nemo_tars
from ossicle.data.source import Source
from ossicle.data.source_spec import SourceSpec
from ossicle.errors import ConfigError, DataError

COMMON_VOICE, AUDIOFOLDER = "Common Voice", "audiofolder with metadata"
_METADATA = ("metadata.csv", "metadata.tsv", "metadata.jsonl", "metadata.parquet")
_NEMO_MANIFEST = re.compile(r"(?P<split>.*?)_?manifest\.json")
_COMMON_VOICE_COLUMNS = ("client_id", "path", "sentence")
_HEADER_BYTES = 1_000
_OTHER_TABLES = ("clip_durations", "reported", "unvalidated_sentences", "validated_sentences", "times")
"""Tables of Common Voice that list no clips."""
_ARROW_FILES = ("*.parquet", "*.arrow", "*/*.parquet", "*/*.arrow")
_PUBLISHED_FILES = ("*.json", "*.jsonl", "*.csv", "*.zip", "*/*.jsonl", "*/*.csv")
"""Files of a dataset that `datasets` reads."""
_SPLIT = re.compile(
    r"(train(ing)?|dev(el)?|val(id|idation)?|eval(uation)?|test(ing)?)(?![a-z]).*", re.IGNORECASE
)
"""Names of folders and tars that are parts of a data set."""


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The files that a folder's rows stand in, all of one form."""

    files: list[Path]
    label: str


def open_folder(folder: Path, spec: SourceSpec) -> Source | Tables | None:
    """Returns the rows of a folder of a known layout, or their tables; None for a folder that `datasets` reads.

    Raises:
        ConfigError: the folder has several languages or splits and none is named, or not the named one
        DataError: a file of the layout cannot be read, or the folder is almost of a known layout
    """
    if (tables := _find_tables(folder, spec)) is not None:
        return tables
    if any(any(folder.glob(pattern)) for pattern in _ARROW_FILES):
        return None
    if len(shards := lhotse.find_shards(folder)) > 1 or (shards and lhotse.find_shard_tar(shards[0])):
        return open_lhotse(shards)
    if manifests := lhotse.find_manifests(folder):
        return open_lhotse([manifests[_select(spec, "split", manifests)]])
    if (manifest := find_nemo_tarred(folder)) is not None:
        return open_nemo_tarred([manifest], spec) or Tables(files=[manifest], label="")
    if (tables := _find_shards(folder, spec) or _find_nemo(folder, spec)) is not None:
        return tables
    children = {child.name: child for child in _list_folders(folder) if _has_layout(child)}
    if children and not _has_layout(folder):
        folder = children[_select(spec, "split", children)]
    return _open_listed(folder) or _open_tree(folder, spec)


def open_lhotse(manifests: Sequence[Path]) -> ListedSource:
    """Opens manifests of cuts or supervisions in one folder."""
    label = lhotse.detect_manifest(manifests[0])
    read = lhotse.read_supervisions if label == lhotse.SUPERVISIONS else lhotse.read_cuts
    rows = (row for manifest in manifests for row in read(manifest))
    if tars := [tar for manifest in manifests if (tar := lhotse.find_shard_tar(manifest))]:
        return TarredSource(manifests[0].parent, rows, tars, label=lhotse.SHAR)
    return ListedSource(manifests[0].parent, rows, label=label or lhotse.CUTS)


def open_nemo_tarred(manifests: Sequence[Path], spec: SourceSpec) -> TarredSource | None:
    """Opens NeMo's manifests of sound in tars; None for other manifests."""
    tars = list(dict.fromkeys(tar for manifest in manifests for tar in find_nemo_tars(manifest)))
    if not tars:
        return None
    rows = (row for manifest in manifests for row in read_objects(manifest, spec))
    return TarredSource(manifests[0].parent, rows, tars, label=NEMO_TARRED)


def _find_tables(folder: Path, spec: SourceSpec) -> Tables | None:
    """Returns the tables of a folder, or of the split or language in it that is named."""
    if (found := _find_metadata(folder)) is not None:
        _select(spec, "split", ["train"])
        return found
    by_split = {child.name: found for child in _list_folders(folder) if (found := _find_metadata(child))}
    if by_split:
        return by_split[_select(spec, "split", by_split)]
    languages = {child.name: child for child in _list_folders(folder) if _list_common_voice(child)}
    if languages:
        folder = languages[_select(spec, "config", languages)]
    if tables := _list_common_voice(folder):
        return Tables(files=[tables[_select(spec, "split", tables)]], label=COMMON_VOICE)
    return None


def _find_metadata(folder: Path) -> Tables | None:
    path = next((folder / name for name in _METADATA if (folder / name).is_file()), None)
    if path is None:
        return None
    return Tables(files=[path], label="" if (folder / "wavs").is_dir() else AUDIOFOLDER)


def _list_common_voice(folder: Path) -> dict[str, Path]:
    """Returns the tables of a language by split; none for a folder of another layout."""
    if not (folder / "clips").is_dir():
        return {}
    return {path.stem: path for path in sorted(folder.glob("*.tsv")) if path.stem not in _OTHER_TABLES}


def _find_shards(folder: Path, spec: SourceSpec) -> Tables | None:
    if any(folder.glob("*.jsonl")) or not (shards := sorted(folder.glob("*.tar"))):
        return None
    files = [path for path in shards if path.name.startswith(spec.split or "")]
    if not files:
        raise ConfigError(f"source {spec.name!r} has no tar that begins with {spec.split}; leave split out")
    kinds = {found[1][:3].lower() if (found := _SPLIT.fullmatch(path.name)) else "" for path in files}
    if len(kinds) > 1:
        raise ConfigError(
            f"source {spec.name!r} has tars of several splits; name the beginning of one's: ?split=... of"
            f" {', '.join(sorted({re.split(r'[^a-zA-Z]', path.name)[0] for path in files}))}"
        )
    return Tables(files=files, label="")


def _find_nemo(folder: Path, spec: SourceSpec) -> Tables | None:
    found = {
        path: match for path in sorted(folder.iterdir()) if (match := _NEMO_MANIFEST.fullmatch(path.name))
    }
    by_split = {match["split"] or "train": path for path, match in found.items() if path.is_file()}
    return Tables(files=[by_split[_select(spec, "split", by_split)]], label="") if by_split else None


def _has_layout(folder: Path) -> bool:
    return kaldi.is_kaldi(folder) or file_trees.is_mls(folder) or file_trees.is_vctk(folder)


def _open_listed(folder: Path) -> ListedSource | None:
    """Opens a folder of a layout that its own files tell."""
    if kaldi.is_kaldi(folder):
        return ListedSource(folder, kaldi.read_kaldi(folder), label=kaldi.LABEL)
    if file_trees.is_mls(folder):
        return ListedSource(folder, file_trees.read_mls(folder), label=file_trees.MLS)
    if file_trees.is_vctk(folder):
        return ListedSource(folder, file_trees.read_vctk(folder), label=file_trees.VCTK)
    return None


def _open_tree(folder: Path, spec: SourceSpec) -> ListedSource | None:
    """Opens a tree of audio files with words beside them.

    Raises:
        ConfigError: it has several splits and none is named: its test data would be trained on
        DataError: it is almost of a known layout; the message says what differs
    """
    tree = file_trees.walk(folder)
    if tree.transcripts or tree.has_pairs:
        children = sorted({stem.partition("/")[0] for stem in tree.audio if "/" in stem})
        splits = [child for child in children if _SPLIT.fullmatch(child)]
        if splits and spec.split is None and any("/" not in stem for stem in tree.audio):
            raise ConfigError(
                f"source {spec.name!r} has sound beside its split {splits[0]}: give {folder / splits[0]}, or move one of"
                " them elsewhere"
            )
        if spec.split is not None or (splits and len(children) > 1):
            tree = file_trees.walk(folder / _select(spec, "split", children))
    if tree.transcripts:
        return ListedSource(tree.folder, file_trees.read_librispeech(tree), label=file_trees.LIBRISPEECH)
    if tree.has_pairs:
        return ListedSource(tree.folder, file_trees.read_pairs(tree), label=file_trees.PAIRS)
    if any(any(folder.glob(pattern)) for pattern in _PUBLISHED_FILES):
        return None
    difference = (
        kaldi.find_kaldi_difference(folder)
        or lhotse.find_lhotse_difference(folder)
        or _find_common_voice_difference(folder)
        or file_trees.find_tree_difference(tree)
    )
    if difference:
        raise DataError(f"source {spec.name!r} is almost of a known layout: {difference}")
    return None


def _find_common_voice_difference(folder: Path) -> str | None:
    """Returns what a folder lacks to be Common Voice; None for other folders."""
    for language in (folder, *_list_folders(folder)):
        tables = [path for path in sorted(language.glob("*.tsv")) if path.stem not in _OTHER_TABLES]
        where = "it" if language == folder else f"its folder {language.name}"
        if (language / "clips").is_dir():
            return f"{where} has Common Voice's clips, and no train.tsv or other table with their sentences"
        if is_table := next(filter(_is_common_voice, tables), None):
            return f"{where} has Common Voice's table {is_table.name}, and no folder clips beside it with the sound"
    return None


def _is_common_voice(table: Path) -> bool:
    """Whether a table is one of Common Voice's, by its name or its header."""
    if table.stem == "validated":
        return True
    try:
        with table.open("rb") as file:
            header = file.readline(_HEADER_BYTES).decode(errors="replace")
    except OSError:
        return False
    return set(_COMMON_VOICE_COLUMNS) <= set(header.removeprefix("\ufeff").strip().split("\t"))


def _list_folders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir())


def _select(spec: SourceSpec, key: str, available: Iterable[str]) -> str:
    """Returns the requested split or language, or the only one."""
    names, requested = list(available), getattr(spec, key)
    if requested is None and len(names) == 1:
        return names[0]
    if requested in names:
        return requested
    if not names:
        raise ConfigError(f"source {spec.name!r} has no {key}s; leave {key}={requested} out")
    problem = f"no {key} {requested!r}" if requested else f"several {key}s"
    raise ConfigError(f"source {spec.name!r} has {problem}; name one: ?{key}=... of {', '.join(names)}")
