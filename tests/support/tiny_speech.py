"""A few clips with transcripts, and functions that write the same rows in every format of a source."""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

TEXTS = ("one red hat", "Zwei Hüte?", "three  blue\thats", "FOUR OLD HATS", "ок")
NORMALIZED_TEXTS = ("one red hat", "Zwei Hüte?", "three blue hats", "Four old hats", "ок")


def encode_tone(n_samples: int = 1600, pitch: float = 440.0) -> bytes:
    """Encodes a tone of `n_samples` samples at 16 kHz as a flac file."""
    file = io.BytesIO()
    tone = 0.3 * np.sin(2 * np.pi * pitch * np.arange(n_samples) / 16_000)
    soundfile.write(file, tone, 16_000, format="flac", subtype="PCM_16")
    return file.getvalue()


@dataclass(frozen=True)
class Clip:
    """A row: its encoded audio and its transcript."""

    audio: bytes
    text: str


def make_clips(n: int = 5) -> list[Clip]:
    """Returns n rows with different audio; the transcripts repeat after five."""
    return [
        Clip(encode_tone(1600 + 160 * number, 220.0 * (1 + number % 7)), TEXTS[number % len(TEXTS)])
        for number in range(n)
    ]


def write_parquet(folder: Path, rows: Sequence[Clip]) -> str:
    """Writes two files with small row groups and the audio as Hugging Face embeds it; returns a pattern of both."""
    halves = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    for number, half in enumerate(halves):
        table = [{"audio": {"bytes": row.audio, "path": "x.flac"}, "text": row.text} for row in half]
        pq.write_table(pa.Table.from_pylist(table), folder / f"part-{number}.parquet", row_group_size=2)
    return str(folder / "part-*.parquet")


def write_plain_parquet(folder: Path, rows: Sequence[Clip]) -> str:
    """Writes one file with the audio as plain bytes, under other column names; returns its path."""
    path = folder / "plain.parquet"
    pq.write_table(pa.table({"wav": [r.audio for r in rows], "sentence": [r.text for r in rows]}), path)
    return str(path)


def write_jsonl(folder: Path, rows: Sequence[Clip]) -> str:
    """Writes audio files and a JSONL file with empty lines in it; returns the path of the latter."""
    lines = []
    for number, row in enumerate(rows):
        (folder / f"{number}.flac").write_bytes(row.audio)
        lines.append(json.dumps({"audio": f"{number}.flac", "text": row.text}) + "\n")
    path = folder / "speech.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    """Writes a tar with these members in order, and returns its path."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_webdataset(folder: Path, rows: Sequence[Clip]) -> str:
    """Writes two tars, with transcripts as .txt in one and as .json in the other; returns a pattern of both."""
    half = len(rows) // 2
    first = [
        (f"clips/{n:03}.{end}", content)
        for n, row in enumerate(rows[:half])
        for end, content in (("flac", row.audio), ("txt", row.text.encode()))
    ]
    second = [
        (f"{n:03}.{end}", content)
        for n, row in enumerate(rows[half:])
        for end, content in (("json", json.dumps({"text": row.text}).encode()), ("flac", row.audio))
    ]
    write_tar(folder / "shard-000.tar", first)
    write_tar(folder / "shard-001.tar", second)
    return str(folder / "shard-{000..001}.tar")


def write_huggingface(folder: Path, rows: Sequence[Clip]) -> str:
    """Writes a folder as datasets are published on the hub, with a card and a parquet file; returns its path."""
    (folder / "data").mkdir()
    table = [{"audio": {"bytes": row.audio, "path": None}, "transcription": row.text} for row in rows]
    pq.write_table(pa.Table.from_pylist(table), folder / "data" / "train-00000-of-00001.parquet")
    card = (
        "---\ndataset_info:\n  features:\n  - name: audio\n    dtype: audio\n  - name: transcription\n"
        f"    dtype: string\n  splits:\n  - name: train\n    num_examples: {len(rows)}\n    num_bytes: 1\n"
        "---\n"
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    return str(folder)


SOURCE_WRITERS: dict[str, Callable[[Path, Sequence[Clip]], str]] = {
    "parquet": write_parquet,
    "plain": write_plain_parquet,
    "jsonl": write_jsonl,
    "tar": write_webdataset,
    "hf": write_huggingface,
}
