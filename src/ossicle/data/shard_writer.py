"""Collects checked rows and writes them as one shard of our packed format, which `formats/packed.py` reads."""

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int16
from safetensors.numpy import save_file

from ossicle.atomic_io import atomic_write
from ossicle.data.formats.packed import METADATA_KEY, PACKED_FORMAT
from ossicle.data.source import Utterance


@dataclass(frozen=True)
class StoredAudio:
    """The audio of a row in the encoding in which it is stored."""

    audio: bytes | Int16[np.ndarray, " N"]
    duration_s: float


@dataclass(frozen=True)
class CheckedRow:
    """One row with its audio, or the reason why it is skipped."""

    name: str
    utterance: Utterance | None
    result: StoredAudio | str


@dataclass
class ShardBuilder:
    """The rows of a shard that is not written yet."""

    first_row: int
    utterances: list[Utterance] = field(default_factory=list)
    stored: list[StoredAudio] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    n_bytes: int = 0
    """Size of the audio."""

    def add(self, row: CheckedRow) -> None:
        """Adds a row, or notes why it is skipped."""
        if isinstance(row.result, str):
            self.skipped.append({"row": row.name, "reason": row.result})
            return
        assert row.utterance is not None
        self.utterances.append(row.utterance)
        self.stored.append(row.result)
        audio = row.result.audio
        self.n_bytes += len(audio) if isinstance(audio, bytes) else audio.nbytes


def shard_name(number: int) -> str:
    """Returns the file name of a shard."""
    return f"shard-{number:05d}.safetensors"


def write_shard(folder: Path, number: int, builder: ShardBuilder, identity: dict[str, Any]) -> None:
    """Writes a shard, which appears whole or not at all.

    Args:
        identity: source, encoding and end_row, for the shard's metadata
    """
    dtype = np.int16 if identity["encoding"] == "int16" else np.uint8
    audio = [
        np.frombuffer(stored.audio, dtype) if isinstance(stored.audio, bytes) else stored.audio
        for stored in builder.stored
    ]
    texts = [utterance.text.encode() for utterance in builder.utterances]
    names = [utterance.name.encode(errors="replace") for utterance in builder.utterances]
    skipped = format_skipped_lines(builder.skipped).encode(errors="replace")
    tensors = {
        "audio": np.concatenate([np.zeros(0, dtype), *audio]),
        "offsets": _compute_offsets(audio),
        "texts": np.frombuffer(b"".join(texts), np.uint8),
        "text_offsets": _compute_offsets(texts),
        "names": np.frombuffer(b"".join(names), np.uint8),
        "name_offsets": _compute_offsets(names),
        "seconds": np.array([stored.duration_s for stored in builder.stored], np.float32),
        "sums": np.array([zlib.crc32(samples.data) for samples in audio], np.uint32),
        "skipped": np.frombuffer(skipped, np.uint8),
    }
    metadata = {
        "format": PACKED_FORMAT,
        "first_row": builder.first_row,
        "n_skipped": len(builder.skipped),
        **identity,
    }
    with atomic_write(folder / shard_name(number)) as path:
        # One entry: safetensors writes several in an order that changes from run to run.
        save_file(tensors, path, metadata={METADATA_KEY: json.dumps(metadata, sort_keys=True)})


def format_skipped_lines(skipped: list[dict[str, str]]) -> str:
    """Returns one line of JSON for each skipped row."""
    return "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in skipped)


def _compute_offsets(parts: list[Any]) -> np.ndarray:
    return np.cumsum([0, *map(len, parts)], dtype=np.int64)
