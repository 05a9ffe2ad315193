"""Reads our own packed format: safetensors shards that are mapped into memory, and an index that is written last.

A shard holds the audio of its clips in one flat tensor (encoded bytes, or samples as int16), the offset of each clip,
and their texts, names, durations and checksums.
"""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ossicle.data.source import Source, Utterance, find_part
from ossicle.errors import DataError

INDEX_FILE = "index.json"
PACKED_FORMAT = "ossicle packed speech 1"
METADATA_KEY = "ossicle"
"""Entry of a shard's header that says which source, rows and encoding the shard has."""
REPACK_HINT = "pack it again with `ossicle data pack`"
_TYPES = {"U8": np.uint8, "I16": np.int16, "I64": np.int64, "F32": np.float32, "U32": np.uint32}
_MAX_HEADER_BYTES = 100_000_000


def is_packed(folder: Path) -> bool:
    """Whether packing into a folder has begun, finished or not."""
    if next(folder.glob("shard-*.safetensors"), None) is not None:
        return True
    try:
        with (folder / INDEX_FILE).open("rb") as index:  # other kinds of folders have an index.json too
            return PACKED_FORMAT.encode() in index.read(1_000)
    except OSError:
        return False


@dataclass(frozen=True)
class Shard:
    """The tensors of one safetensors file, mapped into memory, and the metadata of its header."""

    tensors: dict[str, np.ndarray]
    metadata: dict[str, Any]

    @property
    def n_rows(self) -> int:
        """Number of clips."""
        return len(self.tensors["seconds"])

    def read_text(self, kind: str, row: int) -> str:
        """Returns the transcript (kind "text") or the name (kind "name") of a row."""
        start, end = self.tensors[f"{kind}_offsets"][row : row + 2].tolist()
        return self.tensors[f"{kind}s"][start:end].tobytes().decode()

    def read_texts(self) -> pa.Array:
        """Returns all transcripts, without copying them into Python strings."""
        offsets = self.tensors["text_offsets"]
        buffers = [None, pa.py_buffer(offsets.astype(np.int64)), pa.py_buffer(self.tensors["texts"])]
        return pa.Array.from_buffers(pa.large_string(), len(offsets) - 1, buffers).cast(pa.string())

    def compute_checksum(self) -> int:
        """Returns the checksum of all tensors but the audio."""
        checksum = 0
        for name in sorted(self.tensors):
            if name != "audio":
                checksum = zlib.crc32(np.ascontiguousarray(self.tensors[name]).data, checksum)
        return checksum


def map_shard(path: Path) -> Shard:
    """Maps a shard into memory.

    Raises:
        DataError: the file is damaged or not a shard of ours
    """
    try:
        content = np.memmap(path, np.uint8, mode="r")
        n_header = int(content[:8].view("<u8")[0]) if len(content) >= 8 else _MAX_HEADER_BYTES
        if n_header >= min(_MAX_HEADER_BYTES, len(content)):
            raise ValueError("it is truncated")
        header = json.loads(content[8 : 8 + n_header].tobytes())
        data = content[8 + n_header :]
        metadata = json.loads(header.pop("__metadata__")[METADATA_KEY])
        tensors = {name: _view_tensor(data, entry) for name, entry in header.items()}
        if metadata.get("format") != PACKED_FORMAT or any(
            len(tensors[name]) != len(tensors["seconds"]) + extra
            for name, extra in (("offsets", 1), ("text_offsets", 1), ("name_offsets", 1), ("sums", 0))
        ):
            raise ValueError("it does not hold packed speech")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(
            f"{path} is damaged or not a shard of packed speech ({error}); {REPACK_HINT}"
        ) from error
    return Shard(tensors, metadata)


def _view_tensor(data: np.ndarray, entry: dict[str, Any]) -> np.ndarray:
    start, end = entry["data_offsets"]
    if not 0 <= start <= end <= len(data):
        raise ValueError("it is truncated")
    return data[start:end].view(_TYPES[entry["dtype"]]).reshape(entry["shape"])


class PackedSource(Source):
    """The rows of a packed folder.

    Raises:
        DataError: the folder is unfinished or damaged
    """

    label = "packed by ossicle"

    def __init__(self, folder: Path) -> None:
        self._folder, self._shards = folder, {}
        index = read_index(folder)
        self._paths = [folder / entry["file"] for entry in index["shards"]]
        texts, durations, starts, checksums = [], [np.zeros(0, np.float32)], [0], []
        for path, entry in zip(self._paths, index["shards"], strict=True):
            if not path.is_file() or path.stat().st_size != entry["n_bytes"]:
                raise DataError(f"{path} is missing or truncated; {REPACK_HINT}")
            shard = map_shard(path)
            if shard.n_rows != entry["n_rows"] or shard.compute_checksum() != entry["sum"]:
                raise DataError(f"{path} does not match the index; {REPACK_HINT}")
            texts.append(shard.read_texts())
            durations.append(np.array(shard.tensors["seconds"]))
            starts.append(starts[-1] + shard.n_rows)
            checksums.append(str(entry["sum"]))
        self._starts = np.array(starts)
        self.texts = pa.chunked_array(texts, type=pa.string())
        self.durations_s = np.concatenate(durations)
        self.content_id = f"packed {index['encoding']} " + " ".join(checksums)

    def row_name(self, row: int) -> str:
        """Returns folder, row number and the row's name in the source that it was packed from."""
        shard, shard_row = self._locate(row)
        return f"{self._folder}, row {row + 1} ({shard.read_text('name', shard_row)})"

    def __getitem__(self, row: int) -> Utterance:
        """Reads one row and verifies its checksum."""
        shard, shard_row = self._locate(row)
        start, end = shard.tensors["offsets"][shard_row : shard_row + 2].tolist()
        audio = shard.tensors["audio"][start:end]
        if zlib.crc32(audio.data) != shard.tensors["sums"][shard_row]:
            raise DataError(f"{self.row_name(row)}: its audio is damaged on disk; {REPACK_HINT}")
        return Utterance(
            name=self.row_name(row),
            audio=audio.tobytes() if audio.dtype == np.uint8 else audio.astype(np.float32) / 32_768,
            text=shard.read_text("text", shard_row),
        )

    def _locate(self, row: int) -> tuple[Shard, int]:
        """Returns the shard of a row and the row's number within it."""
        index = find_part(self._starts, row)
        if index not in self._shards:
            self._shards[index] = map_shard(self._paths[index])
        return self._shards[index], row - int(self._starts[index])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_shards": {}}


def read_index(folder: Path) -> dict[str, Any]:
    """Reads the index of a packed folder.

    Raises:
        DataError: there is no index, or it is damaged or not of packed speech
    """
    path = folder / INDEX_FILE
    if not path.is_file():
        raise DataError(
            f"{folder} is not completely packed (it has no {INDEX_FILE}); run the command that began it again"
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if index["format"] != PACKED_FORMAT:
            raise ValueError(f"its format is {index['format']!r}, expected {PACKED_FORMAT!r}")
        for entry in index["shards"]:
            is_plain_name = Path(entry["file"]).name == entry["file"]
            if not is_plain_name or not all(
                isinstance(entry[key], int) for key in ("n_rows", "n_bytes", "sum")
            ):
                raise ValueError("it has an invalid entry for a shard")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is damaged or not an index of packed speech ({error}); {REPACK_HINT}"
        ) from error
    return index
