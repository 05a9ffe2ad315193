"""Transcribed speech from a table or a manifest, as utterances; it decodes no sound."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from earshot.bases import locate
from earshot.errors import DataError

POCKET_SPEECH = "pocket/speech"
"""The name of the embedded speech."""
_ROWS_AT_ONCE = 256
_MAX_SHOWN = 300
"""Characters of a path that a message shows: what is no path may be as long as a sound."""


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One spoken sentence and its transcript."""

    name: str
    """File and row, for messages."""
    audio: bytes | Path
    """The encoded sound, or a file that holds it."""
    n_bytes: int
    """Size of the encoded sound: near enough its length, without decoding it."""
    text: str
    """The transcript, without white space around it."""


def load_utterances(source: str, n_clips: int | None = None) -> list[Utterance]:
    """The utterances of a source, in its own order.

    Args:
        source: "pocket/speech", a parquet file with columns `audio` ({bytes, path}) and `text`, or a JSONL
            manifest of {"audio": path, "text": transcript}; paths are relative to the file that names them
        n_clips: only the first so many

    Raises:
        DataError: no such source, the wrong columns, or a row without sound or text
    """
    path = Path(locate(source) + ".parquet") if source == POCKET_SPEECH else Path(source)
    if path.suffix not in (".parquet", ".jsonl") or not path.is_file():
        trouble = "no such file" if not path.exists() else "not a data set"
        raise DataError(
            f"source {source!r}: {trouble}; expected a .parquet or .jsonl file, or {POCKET_SPEECH}"
        )
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _manifest_rows(path)
    utterances = list(islice(rows, n_clips))
    if not utterances:
        raise DataError(f"source {source!r} holds no utterances; expected at least one")
    return utterances


def _utterance(name: str, folder: Path, audio: Any, text: Any) -> Utterance:
    """A checked row; its audio is bytes or the name of a file."""
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{name}: the transcript is {text!r}, expected a text that is not empty")
    if not isinstance(audio, bytes | str) or not audio:
        raise DataError(f"{name}: the audio is {audio!r}, expected the name or the bytes of a sound file")
    if isinstance(audio, bytes):
        return Utterance(name=name, audio=audio, n_bytes=len(audio), text=text.strip())
    file = folder / audio
    try:
        n_bytes = file.stat().st_size
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: the audio file {str(file)[:_MAX_SHOWN]!r} cannot be found") from error
    return Utterance(name=name, audio=file, n_bytes=n_bytes, text=text.strip())


def _parquet_rows(path: Path) -> Iterator[Utterance]:
    try:
        with pq.ParquetFile(path) as table:
            names = table.schema_arrow.names
            if not {"audio", "text"} <= set(names):
                raise DataError(f"{path} has the columns {', '.join(names)}; expected audio and text")
            number = 0
            for batch in table.iter_batches(_ROWS_AT_ONCE, columns=["audio", "text"]):
                for row in batch.to_pylist():
                    number += 1
                    name, audio = f"{path}, row {number}", _embedded(row["audio"])
                    yield _utterance(name, path.parent, audio, row["text"])
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = str(error).split("\n", 1)[0]
        raise DataError(f"{path} is damaged or not a parquet file: {reason}") from error


def _embedded(audio: Any) -> Any:
    """The bytes of Hugging Face's {bytes, path}, or the path where there are none."""
    return audio.get("bytes") or audio.get("path") if isinstance(audio, dict) else audio


def _manifest_rows(path: Path) -> Iterator[Utterance]:
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _manifest_row(f"{path}, line {number}", path.parent, line)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}; expected JSON lines in UTF-8") from error


def _manifest_row(name: str, folder: Path, line: str) -> Utterance:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{name}: not JSON ({error})") from error
    if not isinstance(row, dict) or not {"audio", "text"} <= row.keys():
        raise DataError(f'{name}: expected {{"audio": path, "text": transcript}}')
    return _utterance(name, folder, row["audio"], row["text"])
