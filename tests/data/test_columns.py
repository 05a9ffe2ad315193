"""Columns of audio, transcript and duration are found, or reported as missing or ambiguous."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.source_checks import write_table
from support.tiny_speech import (
    write_tar,
)

from ossicle.data.dataset import open_speech
from ossicle.errors import DataError


@pytest.mark.parametrize(
    ("row", "options", "found"),
    [
        ({"wav": b"x", "sentence": "one"}, "", (b"x", "one")),
        ({"Audio": b"x", "TEXT": "one", "path": "p"}, "", (b"x", "one")),
        ({"audio": b"x", "raw_text": "One.", "normalized_text": "one"}, "", (b"x", "one")),
        ({"audio": b"x", "raw_text": "One.", "normalized_text": "one"}, "?text=raw_text", (b"x", "One.")),
        ({"clip": {"bytes": b"x", "path": "p"}, "text": "one"}, "", (b"x", "one")),
        ({"audio": 3, "sound": b"x", "text": b"?", "transcript": "one"}, "", (b"x", "one")),
    ],
)
def test_columns_are_found_by_option_or_by_name(
    tmp_path: Path, row: dict[str, Any], options: str, found: tuple[bytes, str]
) -> None:
    dataset = open_speech([write_table(tmp_path / "speech.parquet", [row]) + options])
    assert (dataset[0].audio, dataset[0].text) == found


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"clip": b"x", "text": "one"}, "", "has the columns clip, text; none has a known name for audio"),
        ({"audio": b"x", "words": "one"}, "", "name the column: ?text=COLUMN"),
        (
            {"audio": b"x", "text": "one"},
            "?text=words",
            "text=words: there is no such column; its columns are audio, text",
        ),
        ({"audio": b"x", "text": "one"}, "?text=audio", "text=audio: that column has another type"),
        ({"a\x1b\nb": b"x", "text": "one"}, "", r"has the columns 'a\x1b\nb', text; none"),
        ({"AUDIO": b"x", "Audio": b"y", "text": "one"}, "", "AUDIO and Audio could both hold its audio"),
    ],
)
def test_missing_or_ambiguous_columns_are_rejected(
    tmp_path: Path, row: dict[str, Any], options: str, message: str
) -> None:
    with pytest.raises(DataError) as error:
        open_speech([write_table(tmp_path / "speech.parquet", [row]) + options])
    assert message in str(error.value)


def test_durations_are_read_where_they_are_given_and_estimated_elsewhere(tmp_path: Path) -> None:
    rows = [{"audio": b"x", "text": "a" * 30, "duration": s} for s in (3.5, None, -1.0, float("nan"))]
    assert open_speech([write_table(tmp_path / "a.parquet", rows)]).durations_s.tolist() == [
        3.5,
        2.0,
        2.0,
        2.0,
    ]
    lines = "".join(json.dumps(row | {"audio": "x"}) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines + '{"audio": "x", "text": "a", "duration": "3"}\n')
    lengths = open_speech([str(tmp_path / "a.jsonl")]).durations_s
    assert lengths[:4].tolist() == [3.5, 2.0, 2.0, 2.0]
    assert lengths.dtype == np.float32
    write_tar(
        tmp_path / "a.tar",
        [
            ("a.wav", bytes(64_000)),
            ("a.txt", b"one"),
            ("b.wav", b"x"),
            ("b.json", b'{"duration": 7, "text": "b"}'),
        ],
    )
    assert open_speech([str(tmp_path / "a.tar")]).durations_s.tolist() == [2.0, 7.0]
