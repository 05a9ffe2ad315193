"""Our own form of packed speech: safetensors shards that are mapped into memory, and an index written last.

A shard holds its clips' sound in one flat tensor (bytes as they were, or samples as int16), where each clip begins,
and texts, names, seconds and check sums beside it.
"""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ossicle.data.source import Rows, Utterance
from ossicle.errors import DataError

INDEX = "index.json"
FORMAT = "ossicle packed speech 1"
ABOUT = "ossicle"
"""Where a shard's header tells which source, rows and encoding it has."""
DAMAGED = "pack it again with `ossicle data pack`"
_TYPES = {"U8": np.uint8, "I16": np.int16, "I64": np.int64, "F32": np.float32, "U32": np.uint32}
_MAX_HEADER = 100_000_000


def is_packed(folder: Path) -> bool:
    """Whether a folder was begun to be packed, whole or not."""
    if next(folder.glob("shard-*.safetensors"), None) is not None:
        return True
    try:
        with (folder / INDEX).open("rb") as index:  # other folders have an index too
            return FORMAT.encode() in index.read(1_000)
    except OSError:
        return False


@dataclass(frozen=True)
class Shard:
    """The tensors of one safetensors file, mapped into memory, and what stands in its header beside them."""

    tensors: dict[str, np.ndarray]
    about: dict[str, Any]

    @property
    def n_rows(self) -> int:
        """Clips in it."""
        return len(self.tensors["seconds"])

    def text(self, kind: str, row: int) -> str:
        """One of the texts or names."""
        first, end = self.tensors[f"{kind}_offsets"][row : row + 2].tolist()
        return self.tensors[f"{kind}s"][first:end].tobytes().decode()

    def texts(self) -> pa.Array:
        """All transcripts, without a copy of them in Python."""
        offsets = self.tensors["text_offsets"]
        buffers = [None, pa.py_buffer(offsets.astype(np.int64)), pa.py_buffer(self.tensors["texts"])]
        return pa.Array.from_buffers(pa.large_string(), len(offsets) - 1, buffers).cast(pa.string())

    def table_sum(self) -> int:
        """Check sum of all but the sound."""
        total = 0
        for name in sorted(self.tensors):
            if name != "audio":
                total = zlib.crc32(np.ascontiguousarray(self.tensors[name]).data, total)
        return total


def map_shard(path: Path) -> Shard:
    """A shard mapped into memory.

    Raises:
        DataError: not a whole shard of ours
    """
    try:
        whole = np.memmap(path, np.uint8, mode="r")
        n_header = int(whole[:8].view("<u8")[0]) if len(whole) >= 8 else _MAX_HEADER
        if n_header >= min(_MAX_HEADER, len(whole)):
            raise ValueError("cut short")
        header = json.loads(whole[8 : 8 + n_header].tobytes())
        data = whole[8 + n_header :]
        about = json.loads(header.pop("__metadata__")[ABOUT])
        tensors = {name: _tensor(data, entry) for name, entry in header.items()}
        if about.get("format") != FORMAT or any(
            len(tensors[name]) != len(tensors["seconds"]) + extra
            for name, extra in (("offsets", 1), ("text_offsets", 1), ("name_offsets", 1), ("sums", 0))
        ):
            raise ValueError("not packed speech")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(f"{path} is damaged or no shard of packed speech ({error}); {DAMAGED}") from error
    return Shard(tensors, about)


def _tensor(data: np.ndarray, entry: dict[str, Any]) -> np.ndarray:
    first, end = entry["data_offsets"]
    if not 0 <= first <= end <= len(data):
        raise ValueError("cut short")
    return data[first:end].view(_TYPES[entry["dtype"]]).reshape(entry["shape"])


class PackedRows(Rows):
    """The rows of a packed folder.

    Raises:
        DataError: a folder that is unfinished or damaged
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._shards = folder, {}
        index = read_index(folder)
        self._files = [folder / shard["file"] for shard in index["shards"]]
        texts, lengths, starts, marks = [], [np.zeros(0, np.float32)], [0], []
        for path, listed in zip(self._files, index["shards"], strict=True):
            if not path.is_file() or path.stat().st_size != listed["n_bytes"]:
                raise DataError(f"{path} is missing or cut short; {DAMAGED}")
            shard = map_shard(path)
            if shard.n_rows != listed["n_rows"] or shard.table_sum() != listed["sum"]:
                raise DataError(f"{path} is not as the index lists it; {DAMAGED}")
            texts.append(shard.texts())
            lengths.append(np.array(shard.tensors["seconds"]))
            starts.append(starts[-1] + shard.n_rows)
            marks.append(str(listed["sum"]))
        self._starts = np.array(starts)
        self.texts = pa.chunked_array(texts, type=pa.string())
        self.lengths = np.concatenate(lengths)
        self.mark = f"packed {index['encoding']} " + " ".join(marks)

    def name(self, row: int) -> str:
        """Folder, row and what the row was called where it came from."""
        shard, within = self._at(row)
        return f"{self._folder}, row {row + 1} ({shard.text('name', within)})"

    def __getitem__(self, row: int) -> Utterance:
        """One row, checked against damage on disk."""
        shard, within = self._at(row)
        first, end = shard.tensors["offsets"][within : within + 2].tolist()
        audio = shard.tensors["audio"][first:end]
        if zlib.crc32(audio.data) != shard.tensors["sums"][within]:
            raise DataError(f"{self.name(row)}: its sound is damaged on disk; {DAMAGED}")
        return Utterance(
            name=self.name(row),
            audio=audio.tobytes() if audio.dtype == np.uint8 else audio.astype(np.float32) / 32_768,
            text=shard.text("text", within),
        )

    def _at(self, row: int) -> tuple[Shard, int]:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        if number not in self._shards:
            self._shards[number] = map_shard(self._files[number])
        return self._shards[number], row - int(self._starts[number])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_shards": {}}


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a packed folder.

    Raises:
        DataError: there is none, or it is damaged or another's
    """
    path = folder / INDEX
    if not path.is_file():
        raise DataError(
            f"{folder} was not packed to its end (it has no {INDEX}); give the command that began it again"
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if index["format"] != FORMAT:
            raise ValueError(f"its format is {index['format']!r}, expected {FORMAT!r}")
        for shard in index["shards"]:
            is_plain = Path(shard["file"]).name == shard["file"]
            if not is_plain or not all(isinstance(shard[key], int) for key in ("n_rows", "n_bytes", "sum")):
                raise ValueError("it lists a shard wrongly")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged or not of packed speech ({error}); {DAMAGED}") from error
    return index
