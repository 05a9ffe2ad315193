"""Transcribed speech from a table or a manifest, as utterances; it decodes no sound."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from earshot.bases import locate
from earshot.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One spoken sentence and its transcript."""

    name: str
    audio: bytes | Path
    text: str


def load_utterances(source: str, n_clips: int | None = None) -> list[Utterance]:
    """The utterances of a source, in its own order.

    Args:
        source: "pocket/speech", a parquet file with columns `audio` ({bytes, path}) and `text`, or a JSONL manifest
            of {"audio": path, "text": transcript}, paths relative to the manifest
        n_clips: only the first so many

    Raises:
        DataError: no such source, the wrong columns, or a row without sound or text
    """
    is_pocket = source.startswith("pocket/")
    path = Path(locate(source) + ".parquet") if is_pocket else Path(source)
    if not path.is_file():
        raise DataError(f"source {source!r}: no such file; expected a .parquet or .jsonl file, or pocket/speech")
    if path.suffix not in (".parquet", ".jsonl"):
        raise DataError(f"source {source!r}: expected a .parquet or .jsonl file")
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _manifest_rows(path)
    utterances = list(islice(rows, n_clips))
    if not utterances:
        raise DataError(f"source {source!r} holds no utterances")
    return utterances


def _checked(name: str, audio: object, text: object) -> Utterance:
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{name}: the transcript is {text!r}, expected a text")
    if not isinstance(audio, bytes | Path):
        raise DataError(f"{name}: the audio is {audio!r}, expected a path or the bytes of a sound file")
    return Utterance(name=name, audio=audio, text=text.strip())


def _parquet_rows(path: Path) -> Iterator[Utterance]:
    try:
        table = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} is not a parquet file that can be read: {error}") from error
    if missing := {"audio", "text"} - set(table.schema_arrow.names):
        raise DataError(f"{path} has no column {' and no column '.join(sorted(missing))}; expected audio and text")
    number = 0
    for batch in table.iter_batches(batch_size=256, columns=["audio", "text"]):
        for row in batch.to_pylist():
            number += 1
            audio = row["audio"]["bytes"] if isinstance(row["audio"], dict) else row["audio"]
            yield _checked(f"{path}, row {number}", audio, row["text"])


def _manifest_rows(path: Path) -> Iterator[Utterance]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            name = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{name}: not JSON ({error})") from error
            if not isinstance(row, dict) or not isinstance(row.get("audio"), str):
                raise DataError(f'{name}: expected {{"audio": path, "text": transcript}}')
            yield _checked(name, path.parent / row["audio"], row.get("text"))
