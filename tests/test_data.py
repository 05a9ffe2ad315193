"""Where transcribed speech comes from."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from earshot.data.sources import load_utterances
from earshot.errors import DataError


def wav() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(1600), 16_000, format="wav")
    return file.getvalue()


def table(path: Path, rows: list[dict[str, Any]]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def manifest(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_table_gives_its_rows_in_order(tmp_path: Path) -> None:
    (tmp_path / "b.wav").write_bytes(wav())
    source = table(
        tmp_path / "speech.parquet",
        [
            {"audio": {"bytes": wav(), "path": "a.wav"}, "text": " one \n", "voice": "x"},
            {"audio": {"bytes": None, "path": "b.wav"}, "text": "two", "voice": "y"},
        ],
    )
    first, second = load_utterances(source)
    assert (first.audio, first.text, first.n_bytes) == (wav(), "one", len(wav()))
    assert (second.audio, second.text, second.n_bytes) == (tmp_path / "b.wav", "two", len(wav()))
    assert second.name == f"{source}, row 2"
    assert load_utterances(source, 1) == [first]


def test_a_table_of_plain_bytes_is_a_source(tmp_path: Path) -> None:
    source = table(tmp_path / "speech.parquet", [{"audio": wav(), "text": "one"}])
    assert load_utterances(source)[0].audio == wav()


def test_paths_of_a_manifest_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.wav").write_bytes(wav())
    source = tmp_path / "speech.jsonl"
    absolute = json.dumps({"audio": str(tmp_path / "clips" / "a.wav"), "text": "zwei"})
    source.write_text(
        f'{{"audio": "clips/a.wav", "text": "eins", "more": 1}}\n\n{absolute}\n', encoding="utf-8"
    )
    first, second = load_utterances(str(source))
    assert first.audio == second.audio == tmp_path / "clips" / "a.wav"
    assert (first.text, second.text) == ("eins", "zwei")
    assert second.name == f"{source}, line 3"


@pytest.mark.parametrize(
    ("audio", "text", "message"),
    [
        ({"bytes": b"x", "path": None}, "  ", "the transcript is '  ', expected a text"),
        ({"bytes": b"x", "path": None}, None, "the transcript is None, expected a text"),
        ({"bytes": None, "path": None}, "one", "the audio is None, expected the name or the bytes"),
        ({"bytes": b"", "path": ""}, "one", "the audio is '', expected the name or the bytes"),
        ({"bytes": None, "path": "gone.wav"}, "one", "gone.wav' cannot be found"),
    ],
)
def test_a_bad_row_of_a_table_is_named(tmp_path: Path, audio: object, text: str | None, message: str) -> None:
    good = {"audio": {"bytes": b"x", "path": "x"}, "text": "good"}
    source = table(tmp_path / "speech.parquet", [good, {"audio": audio, "text": text}])
    with pytest.raises(DataError) as refused:
        load_utterances(source)
    assert str(refused.value).startswith(f"{source}, row 2: ")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("3", "expected {"),
        ('{"text": "one"}', "expected {"),
        ('{"audio": "a.wav"}', "expected {"),
        ('{"audio": 3, "text": "one"}', "the audio is 3"),
        ('{"audio": "a.wav", "text": ""}', "the transcript is ''"),
        ('{"audio": "gone.wav", "text": "one"}', "gone.wav' cannot be found"),
        ('{"audio": "a\\u0000.wav", "text": "one"}', "cannot be found"),
    ],
)
def test_a_bad_line_of_a_manifest_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.wav").write_bytes(wav())
    source = tmp_path / "speech.jsonl"
    source.write_text(f'{{"audio": "a.wav", "text": "good"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(DataError) as refused:
        load_utterances(str(source))
    assert str(refused.value).startswith(f"{source}, line 2: ")
    assert message in str(refused.value)


def test_a_source_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "speech.csv").write_text("audio,text")
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    (tmp_path / "text.parquet").write_text("audio,text")
    table(tmp_path / "other.parquet", [{"sound": b"x", "text": "one"}])
    manifest(tmp_path / "empty.jsonl")
    for name, message in {
        "gone.parquet": "no such file",
        "speech.csv": "not a data set",
        "folder.jsonl": "not a data set",
        "bytes.jsonl": "cannot be read",
        "text.parquet": "damaged or not a parquet file",
        "other.parquet": "has the columns sound, text; expected audio and text",
        "empty.jsonl": "holds no utterances",
    }.items():
        with pytest.raises(DataError, match=message) as refused:
            load_utterances(str(tmp_path / name))
        assert name in str(refused.value)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_table_is_refused(tmp_path: Path, share: float) -> None:
    source = tmp_path / "speech.parquet"
    table(source, [{"audio": {"bytes": wav(), "path": "a"}, "text": "one"}] * 10)
    whole = source.read_bytes()
    source.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=r"speech\.parquet is damaged or not a parquet file"):
        load_utterances(str(source))


def test_a_table_damaged_inside_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "speech.parquet"
    rows = [{"audio": {"bytes": wav(), "path": str(n)}, "text": f"one {n}"} for n in range(10)]
    pq.write_table(pa.Table.from_pylist(rows), source, compression="zstd", use_dictionary=False)
    damaged = bytearray(source.read_bytes())
    damaged[4:200] = bytes(196)
    source.write_bytes(damaged)
    with pytest.raises(DataError, match=r"speech\.parquet is damaged or not a parquet file"):
        load_utterances(str(source))
