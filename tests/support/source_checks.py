"""Reads rows of sources in tests."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ossicle.data.dataset import SpeechDataset
from ossicle.data.source import Utterance
from ossicle.errors import DataError


def read_audio(utterance: Utterance) -> bytes:
    """Returns the encoded audio of an utterance."""
    assert isinstance(utterance.audio, bytes | Path)
    return utterance.audio if isinstance(utterance.audio, bytes) else utterance.audio.read_bytes()


def read_errors(dataset: SpeechDataset) -> dict[int, str]:
    """Reads all rows and returns the messages of invalid ones, by row number."""
    errors = {}
    for row in range(len(dataset)):
        try:
            dataset[row]
        except DataError as error:
            errors[row] = str(error)
    return errors


def write_table(path: Path, rows: list[dict[str, Any]]) -> str:
    """Writes rows to a parquet file unchanged, and returns its path."""
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)
