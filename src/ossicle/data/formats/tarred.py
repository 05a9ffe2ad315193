"""Speech whose rows are listed beside tars that hold the sound alone: NeMo's tarred manifests and Lhotse's Shar."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import numpy as np

from ossicle.data.formats.file_reader import FileReader
from ossicle.data.formats.listed import ListedRow, ListedSource
from ossicle.data.formats.webdataset import BYTES_PER_SECOND, read_members
from ossicle.errors import DataError

NEMO_TARRED = "NeMo tarred manifest"
_NEMO_NAME = re.compile(r"tarred_audio_manifest(_version_(?P<version>\d+))?\.json")
_NEMO_SHARDS = "sharded_manifests"
"""Folder of the manifests of single tars, which lie above it."""
_AUDIO_EXTENSIONS = (*BYTES_PER_SECOND, "original")
"""Lhotse calls a file that it did not encode anew .original, whatever its format."""
_SUBSEGMENT = re.compile(r"-sub\d+$")
"""Behind the name of a file of which NeMo's manifest lists several stretches; the tar has it once."""


class TarredSource(ListedSource):
    """Rows whose `audio` is the name of a tar's member without its extension, or TAR/NAME where names may repeat.

    Raises:
        DataError: a tar is damaged, or no row can be used, for one and the same reason
    """

    def __init__(self, folder: Path, rows: Iterable[ListedRow], tars: Sequence[Path], *, label: str) -> None:
        self._tars, self._reader = tuple(tars), FileReader()
        members, truncated, repeated = _index_members(self._tars)
        listed, places = [], []
        for row in rows:
            place = _find_member(members, row.audio)
            if place is None and row.problem is None:
                where = f"; {truncated[0]} is truncated: copy it again" if truncated else ""
                problem = f"no member {row.audio} is in the {len(self._tars)} tars{where}"
                if _find_member(repeated, row.audio) is not None:
                    problem = f"several of the {len(self._tars)} tars have a member {row.audio}: rename them"
                row = replace(row, problem=problem)
            listed.append(row)
            places.append(place or (0, 0, 0))
        super().__init__(folder, listed, label=label)
        self._places = np.array(places, np.int64).reshape(-1, 3)
        """Tar, first byte and number of bytes of each row's audio file."""
        self.content_id += f" {blake2b(self._places.tobytes(), digest_size=8).hexdigest()}"

    def audio_version(self, row: int) -> str:
        """Returns nothing: place and size of the audio files are a part of `content_id`."""
        return ""

    def _read_audio(self, row: int) -> tuple[Path, bytes]:
        tar, offset, n_bytes = self._places[row].tolist()
        try:
            return self._folder, self._reader.read(self._tars[tar], offset, n_bytes)
        except OSError as error:
            raise DataError(f"{self._tars[tar]} cannot be read: {error.strerror}") from error


def find_nemo_tarred(folder: Path) -> Path | None:
    """Returns the newest of a folder's manifests whose sound is in tars beside it."""
    versions = {
        int(match["version"] or 0): path
        for path in folder.glob("tarred_audio_manifest*.json")
        if (match := _NEMO_NAME.fullmatch(path.name))
    }
    return versions[max(versions)] if versions else None


def find_nemo_tars(manifest: Path) -> list[Path]:
    """Returns the tars that have the sound of a NeMo manifest, if it is one of tars by its name."""
    folder = manifest.parent
    if folder.name == _NEMO_SHARDS:
        return sorted(folder.parent.glob("*.tar"))
    return sorted(folder.glob("*.tar")) if _NEMO_NAME.fullmatch(manifest.name) else []


def _index_members(
    tars: Sequence[Path],
) -> tuple[dict[str, tuple[int, int, int]], list[str], dict[str, tuple[int, int, int]]]:
    """Returns tar, first byte and size of each audio file by NAME and TAR/NAME, and the names of truncated tars.

    Names that several tars have stand for no file alone, and are returned by themselves.
    """
    members: dict[str, tuple[int, int, int]] = {}
    repeated: dict[str, tuple[int, int, int]] = {}
    truncated: list[str] = []
    for number, tar in enumerate(tars):
        for stem, offset, n_bytes in _list_audio(tar):
            if offset + n_bytes > tar.stat().st_size:
                truncated.append(tar.name)
                continue
            if stem in members and members[stem][0] != number:
                repeated[stem] = members[stem]
            members[stem] = members[f"{tar.name}/{stem}"] = number, offset, n_bytes
    return {name: place for name, place in members.items() if name not in repeated}, truncated, repeated


def _list_audio(tar: Path) -> Iterator[tuple[str, int, int]]:
    try:
        with tar.open("rb") as file:
            n_bytes = file.seek(0, 2)
            file.seek(0)
            for member in read_members(tar, file, n_bytes):
                stem, _, extension = member.name.removeprefix("./").rpartition(".")
                if member.isreg() and extension.lower() in _AUDIO_EXTENSIONS:
                    yield stem, member.offset_data, member.size
    except OSError as error:
        raise DataError(f"{tar} cannot be read: {error.strerror}; expected a tar file") from error


def _find_member(members: dict[str, tuple[int, int, int]], audio: str | None) -> tuple[int, int, int] | None:
    if audio is None or audio in members:
        return members.get(audio or "")
    stem = audio.rpartition(".")[0]
    return members.get(stem) or members.get(_SUBSEGMENT.sub("", stem))
