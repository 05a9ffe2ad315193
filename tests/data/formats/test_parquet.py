"""Parquet files: invalid rows, damaged files, and the cache of row groups."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.source_checks import read_errors, write_table
from support.tiny_speech import (
    encode_tone,
)

from ossicle.data.dataset import open_speech
from ossicle.data.formats.parquet import RowGroupCache
from ossicle.errors import DataError


@pytest.mark.parametrize(
    ("audio", "text", "message"),
    [
        ({"bytes": b"x", "path": None}, "  ", "the transcript is '  ', expected a text"),
        ({"bytes": b"x", "path": None}, "\u200b\x00", "expected a text"),
        ({"bytes": b"x", "path": None}, None, "the transcript is None, expected a text"),
        ({"bytes": None, "path": None}, "one", "the audio is None, expected the path or the bytes"),
        ({"bytes": b"", "path": ""}, "one", "the audio is '', expected the path or the bytes"),
        (None, "one", "the audio is None, expected the path or the bytes"),
        ({"bytes": None, "path": "gone.wav"}, "one", "gone.wav' does not exist"),
        ({"bytes": None, "path": "."}, "one", "does not exist"),
    ],
)
def test_an_invalid_row_of_a_table_is_named(
    tmp_path: Path, audio: object, text: str | None, message: str
) -> None:
    good = {"audio": {"bytes": b"x", "path": "x"}, "text": "good"}
    source = write_table(tmp_path / "speech.parquet", [good, {"audio": audio, "text": text}, good])
    found = read_errors(open_speech([source]))
    assert list(found) == [1]
    assert found[1].startswith(f"{source}, row 2: ")
    assert message in found[1]


@pytest.mark.parametrize("ratio", [0.3, 0.9])
def test_a_truncated_parquet_file_is_rejected(tmp_path: Path, ratio: float) -> None:
    source = tmp_path / "speech.parquet"
    write_table(source, [{"audio": {"bytes": encode_tone(), "path": "a"}, "text": "one"}] * 10)
    whole = source.read_bytes()
    source.write_bytes(whole[: int(len(whole) * ratio)])
    with pytest.raises(DataError, match=r"speech\.parquet is damaged or not a parquet file"):
        open_speech([str(source)])


def test_rows_of_a_damaged_row_group_are_invalid(tmp_path: Path) -> None:
    source = tmp_path / "speech.parquet"
    rows = pa.Table.from_pylist(
        [{"audio": encode_tone(1600, 100 * n), "text": f"one {n}"} for n in range(1, 11)]
    )
    pq.write_table(rows, source, compression="zstd", use_dictionary=False, row_group_size=5)
    damaged = bytearray(source.read_bytes())
    damaged[4:200] = bytes(196)
    source.write_bytes(damaged)
    found = read_errors(open_speech([str(source)]))
    assert list(found) == [0, 1, 2, 3, 4]
    assert "its row group cannot be read" in found[2]


def test_a_text_that_is_not_utf_8_is_one_invalid_row(tmp_path: Path) -> None:
    texts = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(np.array([0, 2, 5], np.int32)), pa.py_buffer(b"\xff\xfeone")]
    )
    pq.write_table(pa.table({"audio": [b"x", b"y"], "text": texts}), tmp_path / "a.parquet")
    dataset = open_speech([str(tmp_path / "a.parquet")])
    assert dataset.texts.to_pylist() == [None, "one"]
    assert list(read_errors(dataset)) == [0]
    assert dataset[1].text == "one"


def test_row_groups_are_cached_up_to_a_number_of_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"audio": [bytes([n]) * 1000 for n in range(9)]}), path, row_group_size=1)
    groups = RowGroupCache(max_bytes=3_500)
    for group in (0, 1, 2, 3, 0, 8):
        assert groups.get(path, group, ["audio"])["audio"][0].as_py()[0] == group
        assert sum(table.nbytes for table in groups._tables.values()) <= 3_500
    assert [group for _, group, _ in groups._tables] == [3, 0, 8]


def test_two_sources_may_read_other_columns_of_a_file(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", [{"audio": b"x", "text": "one", "translation": "eins"}])
    dataset = open_speech([f"{path}?text=text", f"{path}?text=translation"])
    assert [dataset[row].text for row in (0, 1, 0)] == ["one", "eins", "one"]


def test_a_file_with_two_columns_of_a_name_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays(
        [pa.array([b"x"]), pa.array(["a"]), pa.array(["b"])], ["audio", "text", "text"]
    )
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="it has two columns 'text'"):
        open_speech([str(tmp_path / "a.parquet")])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"audio": {"array": [0.0, 0.1], "sampling_rate": 16_000}, "text": "one"},
            "the type of audio is none that",
        ),
        ({"audio": [0.0, 0.1], "text": "one"}, "expected the bytes or the path of an audio file"),
        ({"audio": b"x", "text": ["one"]}, "the type of text is none that can be text: expected a text"),
    ],
)
def test_a_known_name_of_another_type_is_named(tmp_path: Path, row: dict[str, object], message: str) -> None:
    source = write_table(tmp_path / "speech.parquet", [row])
    with pytest.raises(DataError, match=message):
        open_speech([source])
